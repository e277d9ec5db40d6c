"""One step of a decoder with everything that it reads and writes at addresses that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cmr.integration.hooks import graph
from cmr.integration.hooks.step import Step
from cmr.integration.reweave.fixed_recall import FixedRecall
from cmr.integration.window.fixed_window import HIDDEN, FixedWindow
from cmr.integration.window.lasting import lasting

if TYPE_CHECKING:
    from cmr.integration.hooks.forward import ForwardHooks


class FixedStep:
    """A forward of one token of each row: its inputs are written in place, then it is replayed.

    Args:
        hooks: of the decoder.
        window: keys and values of as many rows.
        entries: blocks that a row reads at most.
        like: the decoder's input `[rows, 1]` of token ids or `[rows, 1, hidden]` of embeddings.

    Attributes:
        turn: of the weights that it was recorded with, see `Identity`.
    """

    @lasting()
    def __init__(
        self, hooks: ForwardHooks, window: FixedWindow, entries: int, like: torch.Tensor
    ) -> None:
        self._hooks, self.window = hooks, window
        self.recall = FixedRecall(hooks.core.ring, len(like), entries, window.columns)
        self._input = torch.zeros_like(like)
        self._name = "inputs_embeds" if like.is_floating_point() else "input_ids"
        self._ids = like.new_zeros(like.shape[:2], dtype=torch.int64)
        self._positions = torch.zeros_like(self._ids)
        self._graph: graph.Graph | None = None
        self.turn = hooks.core.identity.turn
        # What it was recorded with is not given to others while it can be replayed.
        self._weights = [*hooks.core.adapter.decoder.parameters()]

    def takes(self, given: torch.Tensor) -> bool:
        """Whether it was made for such an input."""
        return (given.shape, given.dtype) == (self._input.shape, self._input.dtype)

    def point(
        self, given: torch.Tensor, positions: torch.Tensor, column: int, starts: Sequence[int]
    ) -> None:
        """Say what the new token is, its position, and where in the window it stands."""
        self._input.copy_(given)
        self._positions.copy_(positions)
        self.window.point(column, starts)

    def run(self, own: Callable[..., Any]) -> tuple[Any, Step]:
        """The forward: what the decoder gives, and what was noted in it, written over by the next.

        `own` is the decoder's own forward.
        """
        if self._graph is None:
            self._graph = graph.record(lambda: self.body(own), self.window.at.device)
        self._graph.replay()
        return self._graph.result

    @property
    def recorded(self) -> bool:
        """Whether `run` only replays."""
        return self._graph is not None

    def body(self, own: Callable[..., Any]) -> tuple[Any, Step]:
        """What is recorded: the decoder's own forward, and what its layers read."""
        hooks, reading = self._hooks, self._hooks.reading
        hidden = self.window.hidden()
        dtype = self.window.keys[0].dtype
        step = Step(None, [], self._ids, self._positions)
        aside = self.recall.aside(hidden, dtype)
        step.ready = {
            number: self.recall.layer(
                number, reading.turn(step, number, hidden.device), step.gates, aside
            )
            for number in sorted(hooks.core.layout.read_layers)
        }
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        before, hooks.step = hooks.step, step
        try:
            out = own(
                **{self._name: self._input},
                attention_mask=mask.masked_fill(hidden, HIDDEN),
                position_ids=self._positions,
                past_key_values=self.window.cache,
                use_cache=True,
            )
        finally:
            hooks.step = before
        return out, step
