"""A cache layer of transformers, bounded: sinks are kept, and what leaves is handed on.

One forward in order. Each layer's attention calls `WindowLayer.update` with its new keys and
values and gets back all that the new tokens may attend to. Then, unless the forward is a compiled
one, `settle` lets the oldest blocks go: they are handed to the owner's `on_leave`, and the sinks
move up to what stays. `LocalWindow` holds what all layers of one cache share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from cmr.integration.window.lasting import lasting
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.padded_rows import Leave, columns_from, pick, put
from cmr.integration.window.room import Pair, Room
from cmr.integration.window.settling import let_go
from cmr.kernels.attention import rotate
from cmr.kernels.upload import uploaded


class WindowLayer(DynamicLayer):
    """A layer's keys and values of the first `sinks` tokens and of the last ones.

    Once more than `sinks + window` tokens are held, the oldest behind the sinks leave in steps of
    `block`. Sinks are kept because models put on the first tokens what attention they have to
    spare, and say nonsense without them. Their keys are turned forward by as many positions as have
    left, so they stay next to the window (Xiao et al. 2023, StreamingLLM). Rows padded on the left
    each hold what they would hold alone, see `PaddedRows`; left of a row's first held token there
    is nothing of it, and `visible` masks it.

    The layer reports the length of everything it has seen, so masks and positions come out as for
    a cache that keeps all.

    Attributes:
        owner: what all layers of the cache share.
        sliding_window: tokens that the model itself lets this layer see, None for all: what lies
            further back is kept for the memory and not shown to the layer.
        seen: columns seen in all.
        left: columns that left.
        gone: tokens that left each row, where some are padded.
        peeking: whether `update` only shows what it would, and keeps nothing.
        peeked: the new keys and values that it was given last while peeking.
        new: keys and values of the newest tokens, where the owner wants them.
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
        self.peeked: Pair | None = None
        self.gone = (0,) * owner.rows
        self.new: tuple[torch.Tensor, torch.Tensor] | None = None
        self._wanted = number in owner.wanted
        self._begin: torch.Tensor | None = None
        self._room: Room | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, new, dim]`; returns all that the new tokens may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held: Pair = self.keys, self.values  # type: ignore[has-type]
        keys, values = self._grown(held, (key_states, value_states))
        hidden = self._hidden()
        # What is about to leave is still shown: this forward's tokens may attend to all of it.
        shown = keys[..., hidden:, :], values[..., hidden:, :]
        # A pass ahead of a search: the forward itself will bring these tokens again.
        if self.peeking:
            self.peeked = key_states, value_states
            return shown
        self.seen += key_states.shape[-2]
        self.keys, self.values = keys, values
        if self._wanted:
            self.new = key_states.detach(), value_states.detach()
        if not self.owner.deferred:
            self.settle()
        return shown

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these in the place of what was held, of which nothing is kept alive."""
        self.keys, self.values, self._room = keys, values, None

    def _grown(self, held: Pair, new: Pair) -> Pair:
        """What is held with new tokens behind it; a decoding step copies these alone."""
        # A graph keeps what it was given, and a compiler lays out its own.
        graph = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if self.peeking or graph or not self.seen or new[0].shape[-2] > 1:
            return torch.cat([held[0], new[0]], dim=-2), torch.cat([held[1], new[1]], dim=-2)
        grown = None if self._room is None else self._room.append(held, new)
        if grown is None:
            self._room = Room(held, new, (self._blank(new[0]), self._blank(new[1])))
            grown = self._room.held
        return grown

    def _blank(self, new: torch.Tensor) -> torch.Tensor:
        """Zeros in the place of the tokens of a block but for the new one; layers share them."""
        batch, heads, _, width = new.shape
        key = batch, heads, width, new.dtype, new.device
        if key not in self.owner.blank:
            with lasting():
                zeros = new.new_zeros(batch, heads, self.owner.block - 1, width)
            self.owner.blank[key] = zeros
        return self.owner.blank[key]

    def settle(self) -> None:
        """Let the tokens leave that are more than the window holds, in whole blocks."""
        owner, leaving = self.owner, self.over()
        if owner.padded is None:
            let_go([self], leaving)
            return
        if not leaving:
            return
        leave = owner.padded.leave(self.keys.device, self._held(), self.seen, self.gone)
        if leave is not None:
            self._let_go_by_row(leave)

    def over(self) -> int:
        """Tokens that are to leave: whole blocks; of padded rows, of one that holds all columns."""
        over, block = self._held() - self.owner.most, self.owner.block
        return 0 if self.owner.patient or over <= 0 else -(-over // block) * block

    def only_grows(self, tokens: int) -> bool:
        """Whether nothing leaves in a forward of so many new tokens."""
        owner = self.owner
        return owner.deferred or owner.patient or self._held() + tokens <= owner.most

    def visible(self, mask: torch.Tensor | None, new: int) -> torch.Tensor | None:
        """A mask `[batch, seen + new]` in which no row sees columns that hold nothing of it."""
        # The mask itself (None: nobody is masked) where every row holds all of its columns.
        # The model sees columns as if nothing had left: what a row holds less is masked in front.
        if self._begin is None:
            return mask
        columns = torch.arange(self.seen + new, device=self._begin.device)
        held = columns >= self._begin[:, None]
        return held.long() if mask is None else mask * held.to(mask)

    def newest(
        self, tokens: Sequence[int], rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the last tokens that are held, so many of each row, left-aligned.

        Of some rows `[rows]` on the device alone; None: of all.
        """
        keys, values = self.keys, self.values
        if rows is not None:
            keys, values = keys.index_select(0, rows), values.index_select(0, rows)
        most, held = max(tokens), keys.shape[-2]
        if min(tokens) == most:
            behind = slice(held - most, None)
            return keys[..., behind, :], values[..., behind, :]
        first = torch.tensor([held - n for n in tokens], device=keys.device)
        columns = columns_from(first, most, held)
        return pick(keys, columns), pick(values, columns)

    def _held(self) -> int:
        """Columns held."""
        # By the shape: a compiled graph knows that, whatever has left.
        return self.keys.shape[-2] if self.seen else 0

    def _hidden(self) -> int:
        """Columns held that lie before the model's own sliding window of a new token."""
        if self.sliding_window is None:
            return 0
        return max(0, self._held() - self.sliding_window + 1)

    def _let_go_by_row(self, leave: Leave) -> None:
        owner, keys, values = self.owner, self.keys, self.values
        if self.number == 0 and owner.record is not None:
            owner.record.go(leave.going)
        if owner.on_leave is not None:
            owner.on_leave(self.number, pick(keys, leave.columns), pick(values, leave.columns))
        sinks, known = pick(keys, leave.sinks), owner.first.get(self.number)
        owner.first[self.number] = sinks if known is None else sinks.where(leave.new, known)
        self._begin = leave.begin
        self.gone = tuple(n + going for n, going in zip(self.gone, leave.going, strict=True))
        turned, kept = self.moved_on(), pick(values, leave.sinks)
        self.hold(
            put(keys[..., leave.dropped :, :], leave.places, turned, leave.moved),
            put(values[..., leave.dropped :, :], leave.places, kept, leave.moved),
        )
        self.left += leave.dropped

    def moved_on(self) -> torch.Tensor:
        """The sinks at the positions right before what is held."""
        # Always from where they first were: turning what was turned adds up rounding errors.
        owner, sinks = self.owner, self.owner.first[self.number]
        kinds, device = owner.adapter.rotary_kinds, sinks.device
        kind = kinds[self.number]
        if kind is None:
            return sinks
        # A tensor that was made in inference mode may not take part in a gradient later.
        asked = self.left, self.gone, self.seen, torch.is_inference_mode_enabled()
        if owner.turned[0] != asked:
            owner.turned = asked, {}, {}
        _, angles, turned = owner.turned
        if (kind, device) not in angles:
            # Once for all layers of a kind: the embedding is a module, and a call of it is slow.
            if owner.padded is None:
                found = owner.turns.by(self.number, self.left, self.seen, device)
            else:
                amount = uploaded(torch.tensor(self.gone), device)
                found = owner.adapter.shift(self.number, amount, self.seen)
            angles[kind, device] = found
        if owner.padded is not None:  # the layers behind have not looked at their rows yet
            return rotate(sinks, *angles[kind, device])
        if self.number not in turned:
            like = kind, device, sinks.shape, sinks.dtype
            alike = {
                n: x
                for n, x in owner.first.items()
                if (kinds[n], x.device, x.shape, x.dtype) == like
            }
            # In one go, as heads of one layer: a GPU takes as long to begin as to turn them all.
            whole = rotate(torch.cat([*alike.values()], dim=1), *angles[kind, device])
            turned.update(zip(alike, whole.split(sinks.shape[1], dim=1), strict=True))
        return turned[self.number]

    def get_seq_length(self) -> int:
        """Tokens seen so far, those that left included."""
        return self.seen

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Columns that `update` will return for `query_length` new tokens, and their offset."""
        # The first releases of transformers 5 pass the new tokens' positions instead.
        if isinstance(query_length, torch.Tensor):
            query_length = query_length.shape[0]
        held, hidden = self._held(), self._hidden()
        return held - hidden + query_length, self.seen - held + hidden

    def reset(self) -> None:
        """Drop everything; the text that comes next is another one, with a record of its own."""
        super().reset()
        # The first releases of transformers 5 keep zeroed tensors.
        self.is_initialized = False
        self.seen = self.left = 0
        self.gone = ()
        self.new = self._begin = self._room = None
        self.owner.forget()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows follow their beams; the record of the window follows once."""
        self._take(beam_idx)
        if self.seen and self.number == 0 and self.owner.record is not None:
            self.owner.record.reorder(beam_idx)

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
        if self.number == 0 and self.owner.record is not None:
            self.owner.record.select(rows)

    def _take(self, rows: torch.Tensor) -> None:
        if not self.seen:
            return
        rows = rows.to(self.keys.device)
        self.hold(self.keys.index_select(0, rows), self.values.index_select(0, rows))
        if (first := self.owner.first.get(self.number)) is not None:
            self.owner.first[self.number] = first.index_select(0, rows)
        if self._begin is not None:
            self._begin = self._begin.index_select(0, rows.to(self._begin.device))
        if self.owner.padded is not None:
            if self.number == 0:
                # The device is asked once, and the other layers look at the owner.
                self.owner.order = rows.tolist()
                self.owner.padded = self.owner.padded.select(self.owner.order)
            self.gone = tuple(self.gone[row] for row in self.owner.order)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens (a negative number), as assisted decoding does.

        Raises `ValueError` where some of them have left the window; nothing is removed then.
        """
        # The first releases of transformers 5 give the length that is to stay, a positive number.
        going = self.seen - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if going <= 0 or not self.is_initialized:
            return
        # Once something has left, the sinks are not next to what they stood next to: they stay.
        kept = self._held() - self.owner.sinks if self.left else self._held()
        if self.owner.padded is not None:
            kept = self.owner.padded.croppable(self._held(), self.seen, self.gone)
        if going > kept:
            raise ValueError(
                f"crop: at most {kept} tokens can be taken back, the others left the window for "
                f"memory; got {going}"
            )
        self.hold(self.keys[..., :-going, :], self.values[..., :-going, :])
        self.seen -= going
        if self.number == 0 and self.owner.record is not None:
            self.owner.record.crop(going)


def adopt(cache: DynamicCache, window: LocalWindow) -> DynamicCache:
    """Make every layer of an empty cache a bounded one."""
    depth = window.adapter.depth
    sliding = [getattr(layer, "sliding_window", None) for layer in cache.layers]
    sliding += [None] * (depth - len(sliding))
    cache.layers = [WindowLayer(window, i, sliding[i]) for i in range(depth)]
    cache.layer_class_to_replicate = None
    return cache


def is_windowed(cache: object) -> bool:
    """Whether the cache's layers are ours."""
    layers = getattr(cache, "layers", None) or [None]
    return isinstance(layers[0], WindowLayer)


def can_adopt(cache: object) -> bool:
    """Whether the cache is an empty dynamic one."""
    return isinstance(cache, DynamicCache) and cache.get_seq_length() == 0
