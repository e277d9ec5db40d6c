"""Tensors that outlive the forward in which they are made.

A forward may run in `torch.inference_mode()`. A tensor made there may never be changed outside of
it, nor take part in what is differentiated; what the memory keeps is made outside of it, therefore.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch


class lasting:
    """What is made inside has no graph and is no inference tensor. Also a decorator."""

    def __init__(self) -> None:
        self._modes: ExitStack | None = None

    def __enter__(self) -> lasting:
        # In stock `generate` the mode is right already: every decoding step comes by here, and
        # switching would cost it.
        if torch.is_inference_mode_enabled() or torch.is_grad_enabled():
            self._modes = ExitStack()
            self._modes.enter_context(torch.inference_mode(False))
            # The former alone would switch graphs on.
            self._modes.enter_context(torch.no_grad())
        return self

    def __exit__(self, *failed: Any) -> None:
        if self._modes is not None:
            self._modes.__exit__(*failed)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with all that it makes made so."""

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with lasting():
                return function(*args, **kwargs)

        return inside
