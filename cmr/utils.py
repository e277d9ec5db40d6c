"""The specification's helpers: hooks, clusters, cache and settings."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(
    __name__,
    "CMRConfig HookManager MemoryHierarchy RetrievalCache",
)
