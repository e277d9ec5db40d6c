"""How much a loss hangs on the states of a text: one forward with a graph, and one way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cmr.integration.decoder.adapter import ModelAdapter, entering_states, with_states
from cmr.integration.decoder.partial_pass import states_entering
from cmr.memory.token_scores import gradient_times_state


@contextmanager
def graph_from(adapter: ModelAdapter, layer: int) -> Iterator[None]:
    """Forwards inside have a graph from the states that enter block `layer` on.

    Where the caller has one already it is left as it is.
    """

    def begin(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = entering_states(args, kwargs)
        if torch.is_grad_enabled() and states.requires_grad:
            return None
        torch.set_grad_enabled(True)
        leaf = states.detach().requires_grad_()
        return with_states(args, kwargs, leaf)

    before = torch.is_grad_enabled()
    handle = adapter.layers[layer].register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        torch.set_grad_enabled(before)


def scored_forward(
    adapter: ModelAdapter,
    forward: Callable[[], Any],
    layers: Iterable[int],
    final: Callable[[], torch.Tensor],
    tokens: int,
) -> tuple[Any, dict[int, torch.Tensor]]:
    """A forward that gives a loss, and |g·h| of its tokens by layer.

    Args:
        adapter: the model.
        forward: runs the model with labels.
        layers: states that are wanted; `adapter.depth` is what stands in front of the head.
        final: gives that, once `forward` has run.
        tokens: that the loss is a mean over: scores are of the sum.

    Returns:
        What `forward` gave, and layer number to `[batch, tokens]` float32.
    """
    wanted = sorted(set(layers))
    inside = [n for n in wanted if n < adapter.depth]
    first = min([*inside, adapter.depth - 1])
    kept = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(kept):
        with graph_from(adapter, first), states_entering(adapter, inside) as states:
            output = forward()
            if adapter.depth in wanted:
                states[adapter.depth] = final()
        found = torch.autograd.grad(
            output.loss, [states[n] for n in wanted], retain_graph=kept, allow_unused=False
        )
    return output, {
        n: gradient_times_state(gradient, states[n]) * tokens
        for n, gradient in zip(wanted, found, strict=True)
    }
