"""Rows as data: every run appends JSON lines together with the conditions it ran under."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The short commit the run was made on; `+changes` when library or benchmarks differ."""
    name = _git("rev-parse", "--short", "HEAD") or "none"
    changed = _git("status", "--porcelain", "--", "../cmr", "*.py")
    return name + ("+changes" if changed else "")


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _library() -> str:
    import cmr

    return cmr.__version__


def conditions(model: Any = None, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """What a row needs to be repeated: date, commit, machine, versions, model, seed, settings."""
    import torch

    module = Path(sys.argv[0]).stem
    out: dict[str, Any] = {
        "run": uuid.uuid4().hex[:8],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]]),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cmr": _library(),
        "seed": seed,
        "settings": settings,
    }
    if model is not None:
        parameter = next(model.parameters())
        out["model"] = Path(model.config.name_or_path).name or type(model).__name__
        out["parameters"] = model.num_parameters()
        out["dtype"] = str(parameter.dtype).removeprefix("torch.")
        out["device"] = str(parameter.device)
    return out


def append(name: str, *rows: dict[str, Any], folder: Path | None = None) -> Path:
    """Appends rows to `results/<name>.jsonl` (one JSON object a line) and returns the path."""
    path = (folder or RESULTS) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return path


def load(name: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """All rows of `results/<name>.jsonl`; none when the file is not there."""
    path = (folder or RESULTS) / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
