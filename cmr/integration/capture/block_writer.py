"""From what leaves the window to blocks in the ring buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.memory.batch import Angles, BlockBatch, LayerSource
from cmr.memory.block_store import RingBuffer
from cmr.memory.sessions import SessionTable

Keep = Callable[[torch.Tensor], torch.Tensor]
"""Says of token ids `[batch, tokens]` which may be stored: bool of the same shape."""


class BlockWriter:
    """Cuts tokens into blocks, un-rotates their keys and stores them.

    Args:
        adapter: the model.
        ring: the store.
        sessions: numbers and positions of the sessions.
        indexed: gives what is indexed of states `[batch, tokens, hidden]`.
        keep: what `kept` asks; None: everything may be stored.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        ring: RingBuffer,
        sessions: SessionTable,
        indexed: Callable[[torch.Tensor], torch.Tensor],
        keep: Keep | None = None,
    ) -> None:
        self._adapter, self._ring, self._sessions = adapter, ring, sessions
        self._indexed, self._keep = indexed, keep

    def write(
        self,
        *,
        sessions: Sequence[int],
        token_ids: torch.Tensor,
        rope_positions: torch.Tensor,
        index: torch.Tensor,
        layers: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]],
        valid: Sequence[tuple[int, int]],
        relevance: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        rope_reach: torch.Tensor | None = None,
    ) -> int:
        """Store tokens of several rows; returns the number of blocks written.

        Nothing of a token that is not to be kept is stored, and no block without any other.

        Args:
            sessions: session number of each row.
            token_ids: `[batch, tokens]`.
            rope_positions: `[batch, tokens]`, where the keys were rotated to.
            index: `[batch, tokens, hidden]` states at the index layer.
            layers: layer number to rotated keys and values `[batch, heads, tokens, dim]`, or to
                `(states [batch, 1, tokens, hidden], None)`.
            valid: each row's half-open range of tokens that are no padding.
            relevance: `[batch, blocks]` float32 in [0, 1], one for each block of the text.
            keep: `[batch, tokens]` bool, False for tokens that must not be stored, see `kept`;
                None: all may.
            rope_reach: `[batch, tokens]`, the furthest position of the forward that each token went
                through; None: all went through one forward.
        """
        size = self._ring.block_size
        tokens = token_ids.shape[1]
        blocks = -(-tokens // size)
        positions = self._positions(sessions, valid, tokens, token_ids.device)
        if keep is not None:
            keep = keep.to(token_ids.device)
            positions = positions.masked_fill(~keep, -1)
            token_ids = token_ids.masked_fill(~keep, 0)
            index = index.masked_fill(~keep.to(index.device)[..., None], 0)
            layers = {n: _without(keep, *source) for n, source in layers.items()}
        chosen = [
            (row, block)
            for row, (start, stop) in enumerate(valid)
            for block in range(start // size, -(-stop // size) if stop > start else 0)
            if keep is None or bool((positions[row, block * size : (block + 1) * size] >= 0).any())
        ]
        if not chosen:
            return 0
        written = len(chosen)
        chosen = chosen[-self._ring.slots :]  # of more blocks than fit, the newest
        turns: dict[str, Angles] = {}
        batch = BlockBatch(
            sessions=[sessions[row] for row, _ in chosen],
            token_ids=token_ids,
            positions=positions,
            index=self._indexed(index),
            layers={
                number: LayerSource(
                    keys if values is None else self._adapter.distinct(keys),
                    None if values is None else self._adapter.distinct(values),
                    self._turned(number, values, rope_positions, rope_reach, turns),
                )
                for number, (keys, values) in layers.items()
            },
            relevance=relevance,
            pick=torch.tensor([row * blocks + block for row, block in chosen]),
        )
        self._ring.write(batch)
        return written

    def kept(self, token_ids: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor | None:
        """Which tokens may be stored, `[batch, tokens]` bool; None: all.

        Args:
            token_ids: `[batch, tokens]`.
            keep: what is known already, the same shape; None: nothing.

        Raises:
            TypeError, ValueError: what was given to say which tokens may be stored answered
                something else than a bool tensor of their shape.
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

    def _positions(
        self,
        sessions: Sequence[int],
        valid: Sequence[tuple[int, int]],
        tokens: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Positions `[batch, tokens]` in the sessions' texts, -1 for padding."""
        rows = []
        for session, (start, stop) in zip(sessions, valid, strict=True):
            first = self._sessions.advance(session, max(0, stop - start))
            row = torch.full((tokens,), -1, dtype=torch.int64)
            row[start:stop] = torch.arange(first, first + max(0, stop - start))
            rows.append(row)
        return torch.stack(rows).to(device)

    def _turned(
        self,
        number: int,
        values: torch.Tensor | None,
        rope_positions: torch.Tensor,
        rope_reach: torch.Tensor | None,
        turns: dict[str, Angles],
    ) -> Angles | None:
        """By what the keys of a layer are rotated; None where they are not, or are states."""
        if values is None or not self._adapter.rotates(number):
            return None
        kind = self._adapter.rotary_kind(number)
        if kind not in turns:  # layers of a kind share theirs
            # The model rotates with cosines rounded to its own dtype: undo exactly those.
            turn = self._rotated(number, rope_positions.to(values.device), rope_reach)
            cos, sin = (part.to(values.dtype).float() for part in turn)
            turns[kind] = (cos, sin)
        return turns[kind]

    def _rotated(self, number: int, positions: torch.Tensor, reach: torch.Tensor | None) -> Angles:
        """Cosine and sine at positions `[batch, tokens]`, as each token's forward had them."""
        if reach is None:
            return self._adapter.rotary(number, positions)
        reach = reach.to(positions.device)
        cos, sin = self._adapter.rotary(number, positions, reach)
        for furthest in reach.unique():
            other = self._adapter.rotary(number, positions, furthest)
            here = (reach == furthest)[..., None]
            cos, sin = torch.where(here, other[0], cos), torch.where(here, other[1], sin)
        return cos, sin


def _without(
    keep: torch.Tensor, keys: torch.Tensor, values: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys and values `[batch, heads, tokens, dim]` with zeros where nothing may be stored."""
    drop = ~keep.to(keys.device)[:, None, :, None]
    return keys.masked_fill(drop, 0), None if values is None else values.masked_fill(drop, 0)
