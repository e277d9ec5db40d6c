"""Warnings that point at the line of the user's that they are about."""

from __future__ import annotations

import sys
import warnings

from cmr.errors import CMRWarning

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Warn, as a `CMRWarning`, at the line outside this package that called into it."""
    # Counted here, as `skip_file_prefixes` of `warnings.warn` came with Python 3.12 only.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CMRWarning, stacklevel=level)


def _ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE
