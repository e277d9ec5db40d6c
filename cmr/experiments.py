"""The specification's module of experiments: the names of `cmr.evaluation`."""

from __future__ import annotations

from typing import Any

from cmr import evaluation

__all__ = sorted(evaluation.__all__)


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'cmr.experiments' has no attribute {name!r}")
    return getattr(evaluation, name)


def __dir__() -> list[str]:
    return __all__
