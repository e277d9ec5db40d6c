"""From what leaves the window to blocks in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cmr.integration.capture.turns import Layout
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.upload import uploaded
from cmr.memory.batch import Angles, BlockBatch, LayerSource
from cmr.memory.keeper import Keeper
from cmr.memory.sessions import SessionTable

# Says of token ids `[batch, tokens]` which may be stored: bool of the same shape.
Keep = Callable[[torch.Tensor], torch.Tensor]
KeysValues = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Captured:
    """Tokens of several rows that are to be stored, as the model came by them.

    Attributes:
        sessions: session number of each row.
        token_ids: `[batch, tokens]`.
        valid: each row's half-open range of tokens that are no padding.
        index: `[batch, tokens, hidden]` states at the index layer.
        layers: layer number to rotated keys and values `[batch, heads, tokens, dim]`, or to
            `(states [batch, 1, tokens, hidden], None)`.
        rope: `[batch, tokens]`, the positions that the keys were rotated to.
        reach: `[batch, tokens]`, the furthest position of the forward that each token went through;
            None: all went through one forward.
        relevance: `[batch, blocks]` float32 in [0, 1], one for each block of the text; or None.
        keep: `[batch, tokens]` bool, False for tokens that must not be stored, see
            `BlockWriter.kept`; None: all may.
        kinds: `[batch, 1 + tokens]` int8 on the CPU, whose words they are, see `turns`, beginning
            with the token in front of them; None: nobody knows.
    """

    sessions: Sequence[int]
    token_ids: torch.Tensor
    valid: Sequence[tuple[int, int]]
    index: torch.Tensor
    layers: Mapping[int, KeysValues]
    rope: torch.Tensor
    reach: torch.Tensor | None = None
    relevance: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    kinds: torch.Tensor | None = None

    def kept_only(self) -> Captured:
        """The same with zeros for whatever must not be stored."""
        if self.keep is None:
            return self
        keep = self.keep.to(self.token_ids.device)

        def without(x: torch.Tensor) -> torch.Tensor:
            return x.masked_fill(~keep.to(x.device)[:, None, :, None], 0)

        return replace(
            self,
            keep=keep,
            token_ids=self.token_ids.masked_fill(~keep, 0),
            index=self.index.masked_fill(~keep.to(self.index.device)[..., None], 0),
            layers={
                number: (without(keys), None if values is None else without(values))
                for number, (keys, values) in self.layers.items()
            },
        )

    def laid_out(self, layout: Layout, size: int) -> Captured:
        """The same where each turn begins a block of `size` tokens."""
        relevance = self.relevance
        if relevance is not None:
            # A block is as relevant as the one that its first token was in.
            first = layout.places[:, ::size].clamp(min=0) // size
            relevance = relevance.gather(1, first.to(relevance.device))
        return replace(
            self,
            token_ids=layout.moved(self.token_ids),
            valid=[(0, layout.places.shape[1])] * len(self.valid),
            index=layout.moved(self.index),
            layers={
                n: (layout.moved(keys, 2), None if values is None else layout.moved(values, 2))
                for n, (keys, values) in self.layers.items()
            },
            rope=layout.moved(self.rope),
            reach=None if self.reach is None else layout.moved(self.reach),
            relevance=relevance,
            keep=None if self.keep is None else layout.moved(self.keep),
        )


class BlockWriter:
    """Cuts tokens into blocks, un-rotates their keys and stores them.

    `indexed` gives what is indexed of states `[batch, tokens, hidden]`, and `keep` says which
    tokens may be stored; None: all.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        keeper: Keeper,
        sessions: SessionTable,
        indexed: Callable[[torch.Tensor], torch.Tensor],
        keep: Keep | None = None,
    ) -> None:
        self._adapter, self._keeper, self._sessions = adapter, keeper, sessions
        self._indexed, self._keep = indexed, keep

    def write(self, captured: Captured) -> int:
        """Store tokens, all of them or none; returns the number of blocks written."""
        # What expires has expired, also where the change below is taken back.
        self._keeper.expire()
        with self._keeper.journal.change():
            return self._write(captured)

    def _write(self, captured: Captured) -> int:
        # Nothing of a token that is not to be kept is stored, and no block without any other.
        store, text = self._keeper.blocks, captured.kept_only()
        size = store.block_size
        # Positions go on over tokens that are not kept: what is stored says where it stood.
        positions = self._positions(text)
        if text.keep is not None:
            positions = positions.masked_fill(~text.keep.cpu(), -1)
        layout = None
        if text.kinds is not None:
            layout = Layout(text.kinds, size)
            text, positions = text.laid_out(layout, size), layout.moved(positions, padding=-1)
        tokens = text.token_ids.shape[1]
        blocks = -(-tokens // size)
        chosen = [
            (row, block)
            for row, (start, stop) in enumerate(text.valid)
            for block in range(start // size, -(-stop // size) if stop > start else 0)
            if (text.keep is None and layout is None)
            or bool((positions[row, block * size : (block + 1) * size] >= 0).any())
        ]
        if not chosen:
            return 0
        written = len(chosen)
        chosen = chosen[-store.slots :]  # of more blocks than fit, the newest
        turns: dict[str, Angles] = {}
        batch = BlockBatch(
            sessions=[text.sessions[row] for row, _ in chosen],
            token_ids=text.token_ids,
            positions=uploaded(positions, text.token_ids.device),
            index=self._indexed(text.index),
            layers={
                number: LayerSource(keys, None)
                if values is None
                else self._source(number, keys, values, text, turns)
                for number, (keys, values) in text.layers.items()
            },
            relevance=text.relevance,
            pick=torch.tensor([row * blocks + block for row, block in chosen]),
            turns=None if layout is None else layout.turns(chosen),
        )
        self._keeper.write(batch)
        return written

    def kept(self, token_ids: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor | None:
        """Which of token ids `[batch, tokens]` may be stored, as bool; None: all.

        `keep` is what is known already. Raises `TypeError` or `ValueError` where the function that
        was given at `attach` answers something else than a bool tensor of their shape.
        """
        if self._keep is None:
            return keep
        says = self._keep(token_ids.clone())
        if not isinstance(says, torch.Tensor) or says.dtype != torch.bool:
            got = getattr(says, "dtype", type(says).__name__)
            raise TypeError(f"keep: a bool tensor expected from the function given, got {got}")
        if says.shape != token_ids.shape:
            raise ValueError(
                f"keep: shape {list(token_ids.shape)} expected from the function given, "
                f"got {list(says.shape)}"
            )
        says = says.to(token_ids.device)
        return says if keep is None else says & keep.to(token_ids.device)

    def _positions(self, text: Captured) -> torch.Tensor:
        """Positions `[batch, tokens]` in the sessions' texts on the CPU, -1 for padding."""
        positions = torch.full(text.token_ids.shape, -1, dtype=torch.int64)
        for row, (session, (start, stop)) in enumerate(zip(text.sessions, text.valid, strict=True)):
            count = max(0, stop - start)
            first = self._sessions.advance(session, count)
            positions[row, start : start + count] = torch.arange(first, first + count)
        return positions

    def _source(
        self,
        number: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        text: Captured,
        turns: dict[str, Angles],
    ) -> LayerSource:
        """What a layer gives, each head once, with the angles that un-rotate its keys."""
        adapter = self._adapter
        # The first question, as most caches hold each head once: a call less for every layer.
        if keys.shape[1] != adapter.kv_heads:
            keys, values = adapter.distinct(keys), adapter.distinct(values)
        kind = adapter.rotary_kinds[number]
        if kind is None:
            return LayerSource(keys, values)
        if kind not in turns:  # layers of a kind share theirs
            turn = self._turn(number, text.rope.to(values.device), text.reach)
            # The model rotates with cosines rounded to its own dtype: undo exactly those.
            cos, sin = (part.to(values.dtype).float() for part in turn)
            turns[kind] = (cos, sin)
        return LayerSource(keys, values, turns[kind])

    def _turn(self, number: int, positions: torch.Tensor, reach: torch.Tensor | None) -> Angles:
        """Cosine and sine at positions `[batch, tokens]`, as each token's forward had them."""
        if reach is None:
            return self._adapter.rotary(number, positions)
        reach = reach.to(positions.device)
        cos, sin = self._adapter.rotary(number, positions, reach)
        # An embedding that changes with the length of a text gave each forward other angles.
        for furthest in reach.unique():
            other = self._adapter.rotary(number, positions, furthest)
            here = (reach == furthest)[..., None]
            cos, sin = torch.where(here, other[0], cos), torch.where(here, other[1], sin)
        return cos, sin
