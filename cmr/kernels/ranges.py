"""NVTX ranges around the operations, for Nsight: off unless asked for, and free when off.

`CMR_NVTX=1` in the environment or `with ranges.shown():` turns them on; the package `nvtx` makes
them, on a machine without a GPU too. The ranges are `cmr.score`, `cmr.write`, `cmr.retrieve` and
`cmr.reweave`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from cmr.errors import KernelError

VARIABLE = "CMR_NVTX"
NAMES = ("cmr.score", "cmr.write", "cmr.retrieve", "cmr.reweave")

annotate: Callable[[str], AbstractContextManager[object]] | None = None
"""Opens a range; None while ranges are off."""


@contextmanager
def shown() -> Iterator[None]:
    """Ranges are made inside a `with` block, in all threads.

    Raises:
        KernelError: the package `nvtx` is not installed.
    """
    global annotate
    before, annotate = annotate, _maker()
    try:
        yield
    finally:
        annotate = before


def _maker() -> Callable[[str], AbstractContextManager[object]]:
    try:
        nvtx = importlib.import_module("nvtx")
    except ImportError as error:
        raise KernelError("NVTX ranges were asked for, but nvtx is not installed") from error
    return lambda name: nvtx.annotate(name, domain="cmr")


if os.environ.get(VARIABLE, "0") not in ("", "0"):
    annotate = _maker()
