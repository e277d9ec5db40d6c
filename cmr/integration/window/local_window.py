"""What all layers of a bounded cache share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.window.padded_rows import PaddedRows
from cmr.integration.window.sink_turns import SinkTurns

if TYPE_CHECKING:  # the record of a window knows what its text recalls, a floor above
    from cmr.integration.capture.window_record import WindowRecord

Take = Callable[[int, torch.Tensor, torch.Tensor], None]
Angles = dict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]]
Turned = tuple[object, Angles, dict[int, torch.Tensor]]


class LocalWindow:
    """What all layers of one cache share, beside a record of the tokens in it.

    Attributes:
        sinks: first tokens that are always kept.
        block: tokens that leave at once; half the window where that is less.
        on_leave: takes `(layer, keys, values)` of the tokens that leave, or None.
        whole: the sinks are handed to `on_leave`, too, with the first tokens that leave.
        wanted: layers that keep the keys and values of the newest tokens at hand.
        most: tokens that are held at most between two forwards.
        rows: of the batch that the cache began with.
        padded: what is known of the rows, where some of them are padded; else None.
        order: rows of the batch before that the present ones were, where some are padded.
        record: what is known of the tokens in it; None where nobody follows them.
        on_copy: takes the record of a deep copy of the cache, or None.
        deferred: whether nothing leaves until `settle` is called, behind the forward.
        patient: whether nothing leaves at all, for a piece that is read in several forwards.
        first: sinks as they first were, by layer, from the first time on that something left.
        blank: zeros that layers put behind what they hold, by shape, data type and device.
        turns: angles for the sinks.
        turned: for which amount sinks were turned last, by which angles, by kind of layer and
            device, and what came of it, by layer.
    """

    padded: PaddedRows | None

    def __init__(
        self,
        adapter: ModelAdapter,
        *,
        window: int,
        sinks: int,
        block: int,
        padding: Sequence[int],
        on_leave: Take | None = None,
        whole: bool = False,
        wanted: frozenset[int] = frozenset(),
    ) -> None:
        self.adapter, self.wanted = adapter, wanted
        self.sinks, self.whole = sinks, whole
        # Blocks leave, not tokens: memory stores blocks, and the sinks are turned less often.
        self.block = min(block, max(1, window // 2))
        self.turns = SinkTurns(adapter, self.block)
        self.on_leave = on_leave
        self.on_copy: Callable[[WindowRecord], None] | None = None
        self.deferred = self.patient = False
        self.most = sinks + window
        self.rows = len(padding)
        self.order: list[int] = []
        self.blank: dict[object, torch.Tensor] = {}
        self.forget()
        if any(padding):
            self.padded = PaddedRows(padding, sinks, self.most, self.block, whole)

    def forget(self) -> None:
        """Another text comes next: of its padding and its sinks nothing is known yet."""
        self.record: WindowRecord | None = None
        self.padded = None
        self.first: dict[int, torch.Tensor] = {}
        self.turned: Turned = (None, {}, {})

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalWindow:
        # The copy of a cache has a record of its own; everything else is shared.
        other = memo[id(self)] = copy.copy(self)
        other.first = dict(self.first)
        if self.record is not None:
            other.record = copy.deepcopy(self.record, memo)
            if self.on_copy is not None:
                self.on_copy(other.record)
        return other
