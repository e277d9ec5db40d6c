"""What a row says of the machine and the packages that it was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def processor() -> str:
    """The CPU's name as the system gives it."""
    # Where there is no such file, Python knows less: often only the architecture.
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


def machine() -> dict[str, Any]:
    """Processor, cores, PyTorch's threads and the versions of Python and of what is used."""
    import torch

    import cmr

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cmr": cmr.__version__,
    }


def described(model: Any) -> dict[str, Any]:
    """A model's name without folders, its number of parameters, dtype and device."""
    # Of a folder only its name: where it lies is no condition, and nobody's business.
    parameter = next(model.parameters())
    return {
        "model": Path(model.config.name_or_path).name or type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
    }
