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
        CorruptMemoryError,
        MemoryKeyError,
        MemoryNotFoundError,
        MissingPackageError,
        ModelMismatchError,
        NewerFormatError,
        StoreBusyError,
        StoreError,
        UnknownSessionError,
        UnsupportedModelError,
    )
    from cmr.integration.attaching import attach, load
    from cmr.integration.forgetting import ForgetReport
    from cmr.integration.memory import Memory
    from cmr.integration.reading import ReadReport
    from cmr.integration.recalled import RecalledPassage
    from cmr.integration.upkeep import ConsolidationReport
    from cmr.memory.buffer import LayeredMemoryBuffer
    from cmr.memory.entry import MemoryEntry
    from cmr.memory.inspection import Inspection, StoredBlock
    from cmr.memory.relevance import RelevanceScorer
    from cmr.memory.store import SaveReport

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
        "CorruptMemoryError",
        "MemoryKeyError",
        "MemoryNotFoundError",
        "MissingPackageError",
        "ModelMismatchError",
        "NewerFormatError",
        "StoreBusyError",
        "StoreError",
        "UnknownSessionError",
        "UnsupportedModelError",
    ),
    "cmr.integration.attaching": ("attach", "load"),
    "cmr.integration.forgetting": ("ForgetReport",),
    "cmr.integration.memory": ("Memory",),
    "cmr.integration.reading": ("ReadReport",),
    "cmr.integration.recalled": ("RecalledPassage",),
    "cmr.integration.upkeep": ("ConsolidationReport",),
    "cmr.memory.buffer": ("LayeredMemoryBuffer",),
    "cmr.memory.entry": ("MemoryEntry",),
    "cmr.memory.inspection": ("Inspection", "StoredBlock"),
    "cmr.memory.relevance": ("RelevanceScorer",),
    "cmr.memory.store": ("SaveReport",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttachError",
    "CMRConfig",
    "CMRError",
    "ConfigError",
    "ConsolidationReport",
    "CorruptMemoryError",
    "ForgetReport",
    "Inspection",
    "LayeredMemoryBuffer",
    "Memory",
    "MemoryConfig",
    "MemoryEntry",
    "MemoryKeyError",
    "MemoryNotFoundError",
    "MissingPackageError",
    "ModelMismatchError",
    "NewerFormatError",
    "OptimizationConfig",
    "ReadReport",
    "RecalledPassage",
    "RelevanceScorer",
    "RetrievalConfig",
    "ReweaveConfig",
    "SaveReport",
    "StoreBusyError",
    "StoreError",
    "StoredBlock",
    "UnknownSessionError",
    "UnsupportedModelError",
    "attach",
    "load",
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
