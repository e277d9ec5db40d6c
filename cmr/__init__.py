"""Contextual Memory Reweaving: a memory for any Hugging Face decoder.

Public names are imported when they are first used, so `import cmr` is light: it loads neither
triton nor faiss nor any model code and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cmr.config import (
        CMRConfig,
        MemoryConfig,
        OptimizationConfig,
        RetrievalConfig,
        ReweaveConfig,
    )
    from cmr.errors import (
        AttachError,
        CMRError,
        ConfigError,
        ModelMismatchError,
        UnknownSessionError,
        UnsupportedModelError,
    )
    from cmr.integration.memory import Memory, attach
    from cmr.integration.reading import ReadReport
    from cmr.integration.recalled import RecalledPassage
    from cmr.memory.entry import MemoryEntry

_HOMES = {
    "cmr.config": (
        "CMRConfig",
        "MemoryConfig",
        "OptimizationConfig",
        "RetrievalConfig",
        "ReweaveConfig",
    ),
    "cmr.errors": (
        "AttachError",
        "CMRError",
        "ConfigError",
        "ModelMismatchError",
        "UnknownSessionError",
        "UnsupportedModelError",
    ),
    "cmr.integration.memory": ("Memory", "attach"),
    "cmr.integration.reading": ("ReadReport",),
    "cmr.integration.recalled": ("RecalledPassage",),
    "cmr.memory.entry": ("MemoryEntry",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttachError",
    "CMRConfig",
    "CMRError",
    "ConfigError",
    "Memory",
    "MemoryConfig",
    "MemoryEntry",
    "ModelMismatchError",
    "OptimizationConfig",
    "ReadReport",
    "RecalledPassage",
    "RetrievalConfig",
    "ReweaveConfig",
    "UnknownSessionError",
    "UnsupportedModelError",
    "attach",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cmr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
