"""How layers of a window let go of their oldest tokens: one, or all of a cache at once.

A GPU takes as long to begin a copy as to make it: all layers together take as many as one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cmr.integration.window.window_layer import WindowLayer


def settle(layers: Sequence[WindowLayer]) -> None:
    """`WindowLayer.settle` of all layers of a cache that were run."""
    held = [layer for layer in layers if layer.seen]
    if not held or not held[0].over():  # all hold as many columns
        return
    alike = {(x.keys.shape, x.keys.dtype, x.keys.device, x.values.shape) for x in held}
    if len(alike) == 1 and held[0].owner.padded is None:
        let_go(held, held[0].over())
        return
    for layer in held:
        layer.settle()


def let_go(held: Sequence[WindowLayer], leaving: int) -> None:
    """The tokens behind the sinks leave layers that are alike, and the sinks move up."""
    if not leaving:
        return
    sinks = held[0].owner.sinks
    for layer in held:
        _hand_over(layer, leaving)
    keys = _behind([layer.moved_on() for layer in held], [x.keys for x in held], leaving)
    first = [layer.values[..., :sinks, :] for layer in held]
    values = _behind(first, [layer.values for layer in held], leaving)
    for layer, own_keys, own_values in zip(held, keys, values, strict=True):
        layer.hold(own_keys, own_values)


def _behind(
    first: Sequence[torch.Tensor], held: Sequence[torch.Tensor], leaving: int
) -> Sequence[torch.Tensor]:
    """Of each layer its first tokens, and behind them what stays of all that it held."""
    sinks = first[0].shape[-2]
    parts = zip(first, (x[..., sinks + leaving :, :] for x in held), strict=True)
    whole = torch.cat([part for pair in parts for part in pair], dim=-2)
    return whole.split(whole.shape[-2] // len(held), dim=-2)


def _hand_over(layer: WindowLayer, leaving: int) -> None:
    """Hand over what leaves, and note the sinks as they first were."""
    owner, sinks, keys, values = layer.owner, layer.owner.sinks, layer.keys, layer.values
    if owner.on_leave is not None:
        # Where the whole text is wanted, the first ones to go take the sinks along: as they are
        # before they are turned for the first time.
        going = slice(0 if owner.whole and not layer.left else sinks, sinks + leaving)
        owner.on_leave(layer.number, keys[..., going, :], values[..., going, :])
    if layer.number not in owner.first:
        # A copy: a view would keep all that leaves alive.
        owner.first[layer.number] = keys[..., :sinks, :].clone()
    layer.left += leaving
