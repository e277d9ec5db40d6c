"""Keys and values of a layer's window with room behind them for the tokens to come."""

from __future__ import annotations

import torch

from cmr.integration.window.lasting import lasting

Pair = tuple[torch.Tensor, torch.Tensor]


class Room:
    """A token that comes is written behind those that are held, which stay where they are.

    Whoever holds what was given before finds it unchanged: nothing is ever written over. Keys and
    values `[batch, heads, tokens, dim]` each, without a graph.

    Attributes:
        held: what was given last.
    """

    def __init__(self, held: Pair, new: Pair, blank: Pair) -> None:
        """Copies of what is held, the new token behind them, and `blank` as the room for more."""
        # It is written to in later steps, whatever mode those run in. The room is zeros: memory as
        # it comes may hold what was forgotten.
        with lasting():
            self._whole: Pair = (
                torch.cat([held[0], new[0], blank[0]], dim=-2),
                torch.cat([held[1], new[1], blank[1]], dim=-2),
            )
        tokens = held[0].shape[-2] + new[0].shape[-2]
        self.held: Pair = self._whole[0][..., :tokens, :], self._whole[1][..., :tokens, :]

    def append(self, held: Pair, new: Pair) -> Pair | None:
        """What is held and a new token behind it; None where it does not fit, or not to `held`."""
        keys, values = self._whole
        at, one = held[0].shape[-2], new[0].shape[-2]
        # What was cut, or put in the place of what was given here, may be somebody else's.
        if held[0] is not self.held[0] or held[1] is not self.held[1] or at + one > keys.shape[-2]:
            return None
        if new[0].dtype != keys.dtype or new[1].dtype != values.dtype:
            return None
        keys[..., at : at + one, :] = new[0]
        values[..., at : at + one, :] = new[1]
        self.held = keys[..., : at + one, :], values[..., : at + one, :]
        return self.held
