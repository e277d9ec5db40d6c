"""The local window: transformers' cache layers, bounded, with sinks kept and leavers handed on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from cmr.integration.capture.window_record import WindowRecord

Take = Callable[[int, torch.Tensor, torch.Tensor], None]
Turn = Callable[[int, torch.Tensor, torch.Tensor, int], torch.Tensor]


class WindowLayer(DynamicLayer):
    """A layer's keys and values of the first `sinks` tokens and of the last ones.

    Once more than `sinks + window` tokens are held, the oldest behind the sinks leave in steps of
    `block` and are handed to `on_leave`. The sinks' keys are turned forward by as many positions,
    so they stay next to the window (Xiao et al. 2023, StreamingLLM).

    Rows that are padded on the left hold what each would hold alone: a block leaves a row when
    that row's own tokens are too many. What the rows hold stands at the right end of the columns;
    left of a row's first held token there is nothing of it, and `visible` masks it.

    The layer reports the length of everything it has seen, so masks and positions come out as for
    a cache that keeps all; columns of the sinks stand in front of the window without a gap.

    Args:
        owner: what all layers of the cache share.
        number: of the layer.
        sliding_window: tokens that the model itself lets this layer see, None for all: what lies
            further back is kept for the memory and not shown to the layer.
    """

    def __init__(self, owner: LocalWindow, number: int, sliding_window: int | None = None) -> None:
        super().__init__()
        self.owner = owner
        self.number = number
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.seen = 0
        self.left = 0
        self.peeking = False
        self.gone = (0,) * len(owner.padding)
        self._sinks: torch.Tensor | None = None
        self._turned: torch.Tensor | None = None
        self._begin: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, new, dim]`; returns all that the new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held_keys: torch.Tensor = self.keys  # type: ignore[has-type]
        held_values: torch.Tensor = self.values  # type: ignore[has-type]
        keys = torch.cat([held_keys, key_states], dim=-2)
        values = torch.cat([held_values, value_states], dim=-2)
        hidden = self._hidden()
        shown = keys[..., hidden:, :], values[..., hidden:, :]
        if self.peeking:
            return shown
        self.seen += key_states.shape[-2]
        self.keys, self.values = keys, values
        if self.owner.on_new is not None:
            self.owner.on_new(self.number, key_states, value_states)
        if not self.owner.deferred:
            self.settle()
        return shown

    def settle(self) -> None:
        """Let the tokens leave that are more than the window holds."""
        if self.owner.padding:
            leave = self.owner.leave(self.keys.device, self._held(), self.seen, self.gone)
            if leave is not None:
                self._let_go_by_row(leave)
            return
        leaving = self.owner.leaving(self._held())
        if leaving:
            self._let_go(leaving)

    def visible(self, mask: torch.Tensor | None, new: int) -> torch.Tensor | None:
        """A mask `[batch, seen + new]` in which no row sees columns that hold nothing of it.

        Args:
            mask: as it was given, for padding; None: nobody is masked.
            new: tokens that come.

        Returns:
            The mask itself where every row holds all of its columns.
        """
        if self._begin is None:
            return mask
        columns = torch.arange(self.seen + new, device=self._begin.device)
        held = columns >= self._begin[:, None]
        return held.long() if mask is None else mask * held.to(mask)

    def newest(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the last tokens that are held, so many of each row, left-aligned."""
        most, held = max(tokens), self.keys.shape[-2]
        if min(tokens) == most:
            behind = slice(held - most, None)
            return self.keys[..., behind, :], self.values[..., behind, :]
        first = torch.tensor([held - n for n in tokens], device=self.keys.device)
        columns = _columns(first, most, held)
        return _pick(self.keys, columns), _pick(self.values, columns)

    def _held(self) -> int:
        """Columns held: a compiled graph knows this number by the shape, whatever has left."""
        return self.keys.shape[-2] if self.seen else 0

    def _hidden(self) -> int:
        """Columns held that lie before the model's own sliding window of a new token."""
        if self.sliding_window is None:
            return 0
        return max(0, self._held() - self.sliding_window + 1)

    def _let_go(self, leaving: int) -> None:
        owner, sinks = self.owner, self.owner.sinks
        keys, values = self.keys, self.values
        behind = slice(sinks + leaving, None)
        if owner.on_leave is not None:
            # Where the whole text is wanted, the first ones to go take the sinks along: as they are
            # before they are turned for the first time.
            going = slice(0 if owner.whole and not self.left else sinks, sinks + leaving)
            owner.on_leave(self.number, keys[..., going, :], values[..., going, :])
        if self._sinks is None or self._turned is None:
            self._sinks = keys[..., :sinks, :].clone()
            self._turned = torch.full((len(keys),), leaving, device=keys.device)
        else:  # from where they first were: turning what was turned adds up rounding errors
            self._turned = self._turned + leaving
        kept_keys = owner.turn(self.number, self._sinks, self._turned, self.seen)
        self.keys = torch.cat([kept_keys, keys[..., behind, :]], dim=-2)
        self.values = torch.cat([values[..., :sinks, :], values[..., behind, :]], dim=-2)
        self.left += leaving

    def _let_go_by_row(self, leave: Leave) -> None:
        owner, keys, values = self.owner, self.keys, self.values
        if self.number == 0 and owner.record is not None:
            owner.record.go(leave.going)
        if owner.on_leave is not None:
            owner.on_leave(self.number, _pick(keys, leave.columns), _pick(values, leave.columns))
        sinks, moved = _pick(keys, leave.sinks), leave.moved[:, None, None, None]
        known = self._sinks
        self._sinks = sinks if known is None else sinks.where(leave.new[:, None, None, None], known)
        self._turned, self._begin = leave.after, leave.begin
        turned = owner.turn(self.number, self._sinks, self._turned, self.seen)
        self.keys = _put(keys[..., leave.dropped :, :], leave.places, turned, moved)
        kept = _pick(values, leave.sinks)
        self.values = _put(values[..., leave.dropped :, :], leave.places, kept, moved)
        self.left += leave.dropped
        self.gone = tuple(n + going for n, going in zip(self.gone, leave.going, strict=True))

    def get_seq_length(self) -> int:
        """Tokens seen so far, those that left included."""
        return self.seen

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Columns that `update` will return for `query_length` new tokens, and their offset.

        The first releases of transformers 5 pass the new tokens' positions instead.
        """
        if isinstance(query_length, torch.Tensor):
            query_length = query_length.shape[0]
        held, hidden = self._held(), self._hidden()
        return held - hidden + query_length, self.seen - held + hidden

    def reset(self) -> None:
        """Drop everything; the text that comes next is another one, with a record of its own."""
        super().reset()
        self.is_initialized = False  # the first releases of transformers 5 keep zeroed tensors
        self.seen = self.left = 0
        self.gone = ()
        self._sinks = self._turned = self._begin = None
        if self.number == 0:
            self.owner.restart()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows follow their beams; the record of the window follows once."""
        self._take(beam_idx)
        if self.seen and self.number == 0:
            self.owner.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row becomes a group of so many; the first of each goes on writing to memory."""
        self._select(lambda rows: rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; each goes on with its own session."""
        self._select(lambda rows: rows[indices])

    def _select(self, chosen: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if not self.seen:
            return
        rows = chosen(torch.arange(len(self.keys), device=self.keys.device))
        self._take(rows)
        if self.number == 0:
            self.owner.select(rows)

    def _take(self, rows: torch.Tensor) -> None:
        if not self.seen:
            return
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if self._sinks is not None and self._turned is not None:
            self._sinks = self._sinks.index_select(0, rows)
            self._turned = self._turned.index_select(0, rows.to(self._turned.device))
        if self._begin is not None:
            self._begin = self._begin.index_select(0, rows.to(self._begin.device))
        if self.owner.padding:
            if self.number == 0:  # the device is asked once
                self.owner.order = rows.tolist()
            self.gone = tuple(self.gone[row] for row in self.owner.order)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens (a negative number), as assisted decoding does.

        The first releases of transformers 5 give the length that is to stay, a positive number.

        Raises:
            ValueError: some of them have left the window; nothing is removed then.
        """
        going = self.seen - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if going <= 0 or not self.is_initialized:
            return
        kept = self._held() - self.owner.sinks if self.left else self._held()
        if self.owner.padding:
            kept = self.owner.croppable(self._held(), self.seen, self.gone)
        if going > kept:
            raise ValueError(
                f"crop: at most {kept} tokens can be taken back, the others left the window for "
                f"memory; got {going}"
            )
        self.keys, self.values = self.keys[..., :-going, :], self.values[..., :-going, :]
        self.seen -= going
        if self.number == 0 and self.owner.record is not None:
            self.owner.record.crop(going)


class LocalWindow:
    """What all layers of one cache share, beside a record of the tokens in it.

    Args:
        window: tokens kept behind the sinks.
        sinks: first tokens that are always kept.
        block: tokens that leave at once; half the window where that is less.
        turn: rotates `(layer, keys, positions [batch], tokens seen)` forward.
        padding: tokens of left padding of each row.
        on_new: takes `(layer, keys, values)` of the tokens that come, or None.
        on_leave: the same of the tokens that leave.
        whole: the sinks are handed to `on_leave`, too, with the first tokens that leave.

    Attributes:
        padding: as given; empty where no row is padded.
        order: rows of the batch before that the present ones were, where some are padded.
        record: what is known of the tokens in it; None where nobody follows them.
        on_copy: takes the record of a deep copy of the cache, or None.
        deferred: whether nothing leaves until `settle` is called, as behind a compiled forward.
        patient: whether nothing leaves at all, for a piece that is read in several forwards.
    """

    def __init__(
        self,
        *,
        window: int,
        sinks: int,
        block: int,
        turn: Turn,
        padding: Sequence[int],
        on_new: Take | None = None,
        on_leave: Take | None = None,
        whole: bool = False,
    ) -> None:
        self.window, self.sinks, self.whole = window, sinks, whole
        self.block = min(block, max(1, window // 2))
        self.turn, self.on_new = turn, on_new
        self.on_leave = on_leave
        self.on_copy: Callable[[WindowRecord], None] | None = None
        self.record: WindowRecord | None = None
        self.deferred = self.patient = False
        self.padding = tuple(padding) if any(padding) else ()
        self.order: list[int] = []
        self._leave: tuple[object, Leave | None] = (None, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalWindow:
        """That of a copied cache: a record of its own, everything else is shared."""
        other = memo[id(self)] = copy.copy(self)
        if self.record is not None:
            other.record = copy.deepcopy(self.record, memo)
            if self.on_copy is not None:
                self.on_copy(other.record)
        return other

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams."""
        self.padding = tuple(self.padding[row] for row in self.order) if self.padding else ()
        if self.record is not None:
            self.record.reorder(rows)

    def select(self, rows: torch.Tensor) -> None:
        """These rows are the batch from now on, `[rows]` int64."""
        self.padding = tuple(self.padding[row] for row in self.order) if self.padding else ()
        if self.record is not None:
            self.record.select(rows)

    def restart(self) -> None:
        """The text is over, and nobody knows the next one's padding."""
        self.record, self.padding = None, ()

    def leaving(self, held: int) -> int:
        """How many tokens leave when `held` are held: whole blocks, enough to fit the window."""
        over = 0 if self.patient else held - self.sinks - self.window
        return -(-over // self.block) * self.block if over > 0 else 0

    def room(self, held: int) -> int:
        """How many tokens may come before any leaves when `held` are held."""
        return self.sinks + self.window - held

    def leave(
        self, device: torch.device, held: int, seen: int, gone: tuple[int, ...]
    ) -> Leave | None:
        """What leaves the rows of a padded batch; None where nothing does. No device is asked then.

        Args:
            device: where its tensors are wanted.
            held: columns.
            seen: columns seen in all.
            gone: tokens of each row that left before.
        """
        key = device, held, seen, gone, self.patient
        if key != self._leave[0]:  # the layers ask one after the other
            found = self._leaving(held, seen, gone)
            self._leave = key, None if found is None else found.to(device)
        return self._leave[1]

    def _leaving(self, held: int, seen: int, gone: tuple[int, ...]) -> Leave | None:
        empty = self._empty(held, seen, gone)
        going = [self.leaving(held - first) for first in empty]
        if not any(going):
            return None
        kept = max(held - first - n for first, n in zip(empty, going, strict=True))
        whole = [self.whole and not n for n in gone]
        count = [n + (self.sinks if all_of else 0) if n else 0
                 for n, all_of in zip(going, whole, strict=True)]  # fmt: skip
        at = [first + (0 if all_of else self.sinks)
              for first, all_of in zip(empty, whole, strict=True)]  # fmt: skip
        first, moved = torch.tensor(empty), torch.tensor(going) > 0
        after = torch.tensor(gone) + torch.tensor(going)
        begin = torch.where(after > 0, torch.tensor(self.padding) + after, 0)
        places = first + torch.tensor(going) - (held - kept)
        return Leave(
            going=going,
            dropped=held - kept,
            columns=_columns(torch.tensor(at), max(count), held),
            sinks=_columns(first, self.sinks, held),
            places=_columns(places, self.sinks, kept),
            moved=moved,
            new=moved & (torch.tensor(gone) == 0),
            after=after,
            begin=begin,
        )

    def _empty(self, held: int, seen: int, gone: tuple[int, ...]) -> list[int]:
        """Columns of each row, of those held, that stand before all that it holds."""
        return [n + left - (seen - held) for n, left in zip(self.padding, gone, strict=True)]

    def croppable(self, held: int, seen: int, gone: tuple[int, ...]) -> int:
        """Tokens that can be taken back from every row of a padded batch."""
        empty = self._empty(held, seen, gone)
        behind = [held - n - self.sinks for n, left in zip(empty, gone, strict=True) if left]
        return min([held, *behind])

    def adopt(self, cache: DynamicCache, depth: int) -> DynamicCache:
        """Make every layer of an empty cache a bounded one."""
        sliding = [getattr(layer, "sliding_window", None) for layer in cache.layers]
        sliding += [None] * (depth - len(sliding))
        cache.layers = [WindowLayer(self, i, sliding[i]) for i in range(depth)]
        cache.layer_class_to_replicate = None
        return cache


@dataclass(frozen=True)
class Leave:
    """What leaves the rows of a padded batch at once.

    Attributes:
        going: tokens behind the sinks that leave each row.
        dropped: columns that no row needs any more.
        columns: `[batch, n]` where each row's leaving tokens are, the sinks before them where the
            whole text is wanted; what a row has fewer than `n` is filled with others.
        sinks: `[batch, sinks]` where each row's sinks are.
        places: `[batch, sinks]` where they are afterwards.
        moved: `[batch]` bool, rows of which something leaves.
        new: `[batch]` bool, those of which nothing left before.
        after: `[batch]` int64, tokens that have left each row afterwards.
        begin: `[batch]` int64, column, in all that were seen, in front of which nothing of the row
            is held; 0 where nothing has left it.
    """

    going: list[int]
    dropped: int
    columns: torch.Tensor
    sinks: torch.Tensor
    places: torch.Tensor
    moved: torch.Tensor
    new: torch.Tensor
    after: torch.Tensor
    begin: torch.Tensor

    def to(self, device: torch.device) -> Leave:
        """The same on a device."""
        if self.moved.device == device:
            return self
        there: dict[str, Any] = {
            n: x.to(device) for n, x in vars(self).items() if isinstance(x, torch.Tensor)
        }
        return replace(self, **there)


def _columns(first: torch.Tensor, count: int, held: int) -> torch.Tensor:
    """Columns `[batch, count]` from each row's first on, none of them outside of those held."""
    return (first[:, None] + torch.arange(count, device=first.device)).clamp(0, held - 1)


def _put(
    x: torch.Tensor, columns: torch.Tensor, new: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """`[batch, heads, tokens, dim]` with `new` in the columns `[batch, n]` of some rows."""
    new = torch.where(rows, new, _pick(x, columns))
    return x.scatter(2, columns[:, None, :, None].expand_as(new), new)


def _pick(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns `[batch, n]` of `[batch, heads, tokens, dim]`."""
    return x.gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


def is_windowed(cache: object) -> bool:
    """Whether the cache's layers are ours."""
    layers = getattr(cache, "layers", None) or [None]
    return isinstance(layers[0], WindowLayer)


def can_adopt(cache: object) -> bool:
    """Whether the cache is an empty dynamic one."""
    return isinstance(cache, DynamicCache) and cache.get_seq_length() == 0
