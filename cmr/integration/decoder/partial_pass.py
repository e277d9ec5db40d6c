"""Passes that look inside a decoder: what enters its blocks, and an end in front of one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from cmr._fork import passing
from cmr.integration.decoder.adapter import ModelAdapter, entering_states, with_states
from cmr.integration.decoder.wrapped import hooked


class _EnoughError(Exception):
    """Leaves a decoder in front of a block; never reaches a user."""


@contextmanager
def states_entering(
    adapter: ModelAdapter, layers: Iterable[int], stop: int | None = None
) -> Iterator[dict[int, torch.Tensor]]:
    """Layer number to the states `[batch, tokens, hidden]` that entered it in a forward inside.

    `stop` is the first block that is not run, although what would enter it is known; None, or the
    depth: the forward runs to its end, and gives what it gives.
    """
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[layer] = entering_states(args, kwargs)

        return hook

    def end(*_: Any) -> None:
        raise _EnoughError

    with ExitStack() as hooks, passing(hooks.close):
        for layer in layers:
            hooked(hooks, adapter.layers[layer], keep(layer), with_kwargs=True, noted=adapter.hooks)
        if stop is None or stop >= adapter.depth:
            yield found
            return
        hooked(hooks, adapter.layers[stop], end, noted=adapter.hooks)
        # Whoever compiled the decoder itself: an exception cannot leave a compiled graph.
        hooks.enter_context(torch.compiler.set_stance("force_eager"))
        with suppress(_EnoughError):
            yield found


@contextmanager
def graph_from(adapter: ModelAdapter, layer: int) -> Iterator[None]:
    """Forwards inside have a graph from the states that enter block `layer` on."""
    # Where the caller has one already it is left as it is.

    def begin(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = entering_states(args, kwargs)
        if torch.is_grad_enabled() and states.requires_grad:
            return None
        torch.set_grad_enabled(True)
        return with_states(args, kwargs, states.detach().requires_grad_())

    # The hook switches gradients on in the middle of a forward, and nothing in it switches back.
    with ExitStack() as after, passing(after.close):
        after.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        hooked(after, adapter.layers[layer], begin, with_kwargs=True, noted=adapter.hooks)
        yield


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards every module as it was."""
    training = [module for module in model.modules() if module.training]

    def restore() -> None:
        for module in training:
            module.training = True

    try:
        model.eval()
        with torch.no_grad(), passing(restore):
            yield
    finally:
        restore()
