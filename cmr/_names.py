"""Modules that only pass on names of the package, each imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cmr


def passed_on(
    module: str, names: str
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a module that has these public names of `cmr`."""
    known = sorted(names.split())

    def get(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(cmr, name)

    return known, get, lambda: known
