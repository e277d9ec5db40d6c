"""Tensors that outlive the forward in which they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside has no graph and is no inference tensor, whatever the forward is.

    A tensor that was made in `torch.inference_mode()` may never be changed outside of it, nor take
    part in what is differentiated. Also a decorator.
    """
    with torch.inference_mode(False), torch.no_grad():  # the former alone would switch graphs on
        yield
