"""Rows as data: every run appends JSON lines together with the conditions it ran under.

A reader's own runs go into `benchmarks/own/`, which git ignores; `benchmarks/results/` holds the
rows that the documents quote. `command.Parser` says which of them a run appends to.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from cmr.evaluation.machine import described, machine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
OWN = ROOT / "benchmarks" / "own"

into = OWN
"""The folder that this run appends to."""
written: list[Path] = []
"""Files that this run has appended to, each once."""


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The short commit the run was made on; `+changes` when library or benchmarks differ."""
    name = _git("rev-parse", "--short", "HEAD") or "none"
    changed = _git("status", "--porcelain", "--", "cmr", "benchmarks/*.py")
    return name + ("+changes" if changed else "")


def module() -> str:
    """The module that is run, as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    path = Path(sys.argv[0]).resolve().with_suffix("")
    inside = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else (path.name,)
    return ".".join(inside).removesuffix(".__main__")


def command() -> str:
    """The command line of this run; of a folder elsewhere on the machine only the name."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return " ".join(["python -m", module(), *words])


def conditions(model: Any = None, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """What a row needs to be repeated: date, commit, machine, versions, model, seed, settings."""
    out: dict[str, Any] = {
        "run": uuid.uuid4().hex[:8],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command(),
        **machine(),
        "seed": seed,
        "settings": settings,
    }
    if model is not None:
        out.update(described(model))
    return out


def append(name: str, *rows: dict[str, Any], folder: Path | None = None) -> Path:
    """Appends rows to `<name>.jsonl` (one JSON object a line) of `into` and returns the path."""
    path = (folder or into) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    if path not in written:
        written.append(path)
    return path


def load(name: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """All rows of `<name>.jsonl` of the committed results; none when the file is not there."""
    path = (folder or RESULTS) / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def of_runs(name: str, runs: list[str]) -> list[dict[str, Any]]:
    """The rows of these runs, whether committed or in the folder that this run appends to."""
    every = load(name) + (load(name, into) if into != RESULTS else [])
    return [row for row in every if row["run"] in runs]
