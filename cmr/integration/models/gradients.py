"""How much a loss hangs on the states of a text: one forward with a graph, and one way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.partial_pass import graph_from, states_entering
from cmr.memory.token_scores import gradient_times_state


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
    # A caller that trains needs the graph once more for its own way back.
    kept = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    # No graph can be made in inference mode, whoever called for it.
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
