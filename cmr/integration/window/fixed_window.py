"""A window at addresses that stay: what a step that is recorded once and replayed reads and writes.

The layers of one cache at a time have their keys and values there. A replayed step writes into them
without asking the cache, which only counts on; whoever looks at a layer finds what it holds.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from cmr.integration.window.lasting import lasting
from cmr.integration.window.window_layer import WindowLayer
from cmr.kernels.upload import uploaded

HIDDEN = float("-inf")


class FixedWindow:
    """Keys and values of all layers, and which of their columns a new token sees.

    Args:
        like: of each layer keys and values `[1, heads, any, dim]` as its cache holds them.
        rows: of the batch.
        columns: that are held at most, a new token included.

    Attributes:
        keys: `[rows, heads, columns, dim]` of each layer; behind what is held stands 0.
        values: the same.
        at: `[1]` int64, the column that the new token is written to.
        first: `[rows, 1]` int64, in front of it nothing of a row is held.
        cache: hands them to the decoder's layers, and writes the new token where `at` says.
    """

    @lasting()
    def __init__(
        self, like: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: int, columns: int
    ) -> None:
        self.columns = columns
        self.keys, self.values = (
            [x[side].new_zeros(rows, x[side].shape[1], columns, x[side].shape[3]) for x in like]
            for side in (0, 1)
        )
        device = like[0][0].device
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.first = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._order = torch.arange(columns, device=device)
        self._starts: list[int] = [0] * rows
        self._holder: weakref.ref[DynamicCache] | None = None
        self.cache = Cache(layers=[FixedLayer(self, number) for number in range(len(like))])

    def fits(self, layers: Sequence[WindowLayer]) -> bool:
        """Whether layers hold keys and values of these shapes and kinds."""
        return len(layers) == len(self.keys) and all(
            (held.shape[0], held.shape[1], held.shape[3], held.dtype, held.device)
            == (own.shape[0], own.shape[1], own.shape[3], own.dtype, own.device)
            for layer, *both in zip(layers, self.keys, self.values, strict=True)
            if not self.lends(layer)
            for held, own in zip((layer.keys, layer.values), both, strict=True)
        )

    def lends(self, layer: object) -> bool:
        """Whether a layer has its keys and values here."""
        return type(layer) is LentLayer and layer.lent is self

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    @lasting()
    def lend(self, cache: DynamicCache) -> None:
        """Let the layers of a cache have their keys and values here, instead of another's."""
        layers: list[Any] = cache.layers
        if self._holder is None or self._holder() is not cache:
            self.take_back()
            self._holder = weakref.ref(cache)
        new = [layer for layer in layers if not self.lends(layer)]
        if not new:
            return
        held = new[0].keys.shape[-2]
        mine, theirs, behind = [], [], []
        for layer in new:
            for whole, part in (
                (self.keys[layer.number], layer.keys),
                (self.values[layer.number], layer.values),
            ):
                mine.append(whole[..., :held, :])
                theirs.append(part)
                behind.append(whole[..., held:, :])
        # All layers at once; what another text has left behind them is not kept.
        torch._foreach_copy_(mine, theirs)
        torch._foreach_zero_(behind)
        for layer in new:
            LentLayer.begin(layer, self, held)

    def point(self, column: int, starts: Sequence[int]) -> None:
        """Say where the new token goes, and where each row begins."""
        self.at.fill_(column)
        if self._starts != starts:
            self._starts = list(starts)
            self.first.copy_(uploaded(torch.tensor(self._starts), self.first.device)[:, None])

    def hidden(self) -> torch.Tensor:
        """`[rows, 1, 1, columns]` bool: what a new token does not see."""
        seen = (self._order >= self.first) & (self._order <= self.at)
        return seen.logical_not()[:, None, None]

    @lasting()
    def take_back(self) -> None:
        """Nobody has anything here any more: who had has it copied."""
        cache = None if self._holder is None else self._holder()
        self._holder = None
        lent = [x for x in ([] if cache is None else cache.layers) if self.lends(x)]
        theirs = [part for layer in lent for part in (layer.keys, layer.values)]
        copies = [torch.empty_like(part) for part in theirs]
        if copies:
            torch._foreach_copy_(copies, theirs)
        for layer, keys, values in zip(lent, copies[::2], copies[1::2], strict=True):
            layer.hold(keys, values)

    def forget(self) -> None:
        """Zero what a cache that is gone has left."""
        if self._holder is None or self._holder() is None:
            torch._foreach_zero_([*self.keys, *self.values])


class FixedLayer(CacheLayerMixin):
    """A layer of `FixedWindow.cache`: as long as it can be, whatever of it is held."""

    is_sliding = False

    def __init__(self, window: FixedWindow, number: int) -> None:
        super().__init__()
        self._window, self._number = window, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing to make."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's `[rows, heads, 1, dim]`; returns all columns."""
        window = self._window
        keys, values = window.keys[self._number], window.values[self._number]
        keys.index_copy_(2, window.at, key_states)
        values.index_copy_(2, window.at, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns in front of the last one."""
        return self._window.columns - 1

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """All columns; which of them a token sees is told by the mask."""
        return self._window.columns, 0

    def get_max_length(self) -> int:
        """The same."""
        return self._window.columns

    get_max_cache_shape = get_max_length  # its name in the first releases of transformers 5


class LentLayer(WindowLayer):
    """A layer that has its keys and values in a `FixedWindow`, as long as nobody changes them.

    They are looked up when somebody asks: a replayed step only counts. Whoever sets others makes it
    a `WindowLayer` again.

    Attributes:
        lent: where they are.
        held: columns that the layer holds there.
    """

    lent: FixedWindow
    held: int

    @staticmethod
    def begin(layer: WindowLayer, lent: FixedWindow, held: int) -> None:
        """Make it of a layer whose keys and values were copied."""
        del layer.keys, layer.values
        layer.__dict__.update(lent=lent, held=held, _room=None)
        layer.__class__ = LentLayer

    def _end(self, **new: torch.Tensor) -> None:
        found = {"keys": self.keys, "values": self.values, **new}
        del self.lent, self.held
        self.__class__ = WindowLayer
        self.__dict__.update(found)

    @property
    def keys(self) -> torch.Tensor:
        """What it holds, `[rows, heads, held, dim]`: a view, which a later step may change."""
        return self.lent.keys[self.number][..., : self.held, :]

    @keys.setter
    def keys(self, new: torch.Tensor) -> None:
        self._end(keys=new)

    @property
    def values(self) -> torch.Tensor:
        """The same."""
        return self.lent.values[self.number][..., : self.held, :]

    @values.setter
    def values(self, new: torch.Tensor) -> None:
        self._end(values=new)

    def _held(self) -> int:
        return self.held

    def own(self) -> None:
        """Have copies instead, which are nobody else's."""
        with lasting():
            self.hold(self.keys.clone(), self.values.clone())

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of any layer: what it holds is its own then, unless it only looks."""
        if not self.peeking:
            self.own()
        return WindowLayer.update(self, key_states, value_states, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """As of any layer, on copies of its own."""
        self.own()
        self.crop(tokens_to_remove)

    def reset(self) -> None:
        """As of any layer, on copies of its own."""
        self.own()
        self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowLayer:
        """A copy has its own keys and values."""
        other = memo[id(self)] = WindowLayer.__new__(WindowLayer)
        state = {n: x for n, x in vars(self).items() if n not in ("lent", "held")}
        with lasting():
            other.__dict__.update(keys=self.keys.clone(), values=self.values.clone())
        other.__dict__.update(copy.deepcopy(state, memo))
        return other
