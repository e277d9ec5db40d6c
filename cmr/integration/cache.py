"""The local window: transformers' cache layers, bounded, with sinks kept and leavers handed on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from cmr.integration.record import WindowRecord

Take = Callable[[int, torch.Tensor, torch.Tensor], None]
Turn = Callable[[int, torch.Tensor, torch.Tensor, int], torch.Tensor]


class WindowLayer(DynamicLayer):
    """A layer's keys and values of the first `sinks` tokens and of the last ones.

    Once more than `sinks + window` tokens are held, the oldest behind the sinks leave in steps of
    `block` and are handed to `on_leave`. The sinks' keys are turned forward by as many positions,
    so they stay next to the window (Xiao et al. 2023, StreamingLLM). Rows that are padded on the
    left take their first real tokens for sinks.

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
        self._sinks: torch.Tensor | None = None
        self._turned: torch.Tensor | None = None

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
        leaving = self.owner.leaving(self._held())
        if leaving:
            self._let_go(leaving)

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
        shift = owner.sink_shift(self.left, leaving).to(keys.device).expand(len(keys))
        columns = shift[:, None] + torch.arange(sinks, device=keys.device)
        if self._sinks is None or self._turned is None or self.left < owner.longest_padding:
            self._sinks, self._turned = _pick(keys, columns), leaving - shift
        else:  # from where they first were: turning what was turned adds up rounding errors
            self._turned = self._turned + leaving
        kept_keys = owner.turn(self.number, self._sinks, self._turned, self.seen)
        self.keys = torch.cat([kept_keys, keys[..., behind, :]], dim=-2)
        self.values = torch.cat([_pick(values, columns), values[..., behind, :]], dim=-2)
        self.left += leaving

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
        self._sinks = self._turned = None
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
        device: of the token ids.
        on_new: takes `(layer, keys, values)` of the tokens that come, or None.
        on_leave: the same of the tokens that leave.
        whole: the sinks are handed to `on_leave`, too, with the first tokens that leave.

    Attributes:
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
        device: torch.device,
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
        self.longest_padding = max(padding, default=0)
        self.padding = torch.tensor(list(padding), device=device)

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
        self.padding = self.padding.index_select(0, rows.to(self.padding.device))
        if self.record is not None:
            self.record.reorder(rows)

    def select(self, rows: torch.Tensor) -> None:
        """These rows are the batch from now on, `[rows]` int64."""
        self.padding = self.padding.index_select(0, rows.to(self.padding.device))
        if self.record is not None:
            self.record.select(rows)

    def restart(self) -> None:
        """The text is over, and nobody knows the next one's padding."""
        self.record, self.longest_padding = None, 0
        self.padding = self.padding.new_zeros(1)

    def leaving(self, held: int) -> int:
        """How many tokens leave when `held` are held: whole blocks, enough to fit the window."""
        over = 0 if self.patient else held - self.sinks - self.window
        return -(-over // self.block) * self.block if over > 0 else 0

    def room(self, held: int) -> int:
        """How many tokens may come before any leaves when `held` are held."""
        return self.sinks + self.window - held

    def sink_shift(self, left: int, leaving: int) -> torch.Tensor:
        """Columns `[batch]` by which each row's sinks move on before `leaving` columns go.

        A row whose padding reaches behind the present sinks moves on to its first real tokens.
        """
        return (self.padding - left).clamp(0, leaving)

    def adopt(self, cache: DynamicCache, depth: int) -> DynamicCache:
        """Make every layer of an empty cache a bounded one."""
        sliding = [getattr(layer, "sliding_window", None) for layer in cache.layers]
        sliding += [None] * (depth - len(sliding))
        cache.layers = [WindowLayer(self, i, sliding[i]) for i in range(depth)]
        cache.layer_class_to_replicate = None
        return cache


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
