"""A pass over the first layers of a decoder only, and what enters layers on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from cmr.integration.decoder.adapter import ModelAdapter, entering_states


class _EnoughError(Exception):
    """Leaves a decoder in front of a block; never reaches a user."""


class Stopped:
    """What a partial pass gave: the states that were about to enter the block, or None."""

    states: torch.Tensor | None = None


@contextmanager
def stop_before(adapter: ModelAdapter, layer: int) -> Iterator[Stopped]:
    """Forwards inside end in front of block `layer`; those of a shallower decoder run to the end.

    Args:
        adapter: the model.
        layer: the first block that is not run.
    """
    stopped = Stopped()
    if layer >= adapter.depth:
        yield stopped
        return

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stopped.states = entering_states(args, kwargs)
        raise _EnoughError

    handle = adapter.layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.compiler.set_stance("force_eager"):  # whoever compiled the decoder itself
            yield stopped
    except _EnoughError:
        pass
    finally:
        handle.remove()


@contextmanager
def states_entering(
    adapter: ModelAdapter, layers: Iterable[int]
) -> Iterator[dict[int, torch.Tensor]]:
    """Layer number to the states `[batch, tokens, hidden]` that entered it in a forward inside."""
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[layer] = entering_states(args, kwargs)

        return hook

    with ExitStack() as hooks:
        for layer in layers:
            handle = adapter.layers[layer].register_forward_pre_hook(keep(layer), with_kwargs=True)
            hooks.callback(handle.remove)
        yield found
