"""From what leaves the window to blocks in the ring buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cmr.integration.adapter import ModelAdapter
from cmr.kernels.score import state_scores
from cmr.memory.ring import Angles, BlockBatch, LayerSource, RingBuffer
from cmr.memory.sessions import SessionTable


class BlockWriter:
    """Cuts tokens into blocks, un-rotates their keys and stores them.

    Args:
        adapter: the model.
        ring: the store.
        sessions: numbers and positions of the sessions.
    """

    def __init__(self, adapter: ModelAdapter, ring: RingBuffer, sessions: SessionTable) -> None:
        self._adapter, self._ring, self._sessions = adapter, ring, sessions

    def write(
        self,
        *,
        sessions: Sequence[int],
        token_ids: torch.Tensor,
        rope_positions: torch.Tensor,
        index: torch.Tensor,
        layers: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]],
        valid: Sequence[tuple[int, int]],
    ) -> int:
        """Store tokens of several rows; returns the number of blocks written.

        Args:
            sessions: session number of each row.
            token_ids: `[batch, tokens]`.
            rope_positions: `[batch, tokens]`, where the keys were rotated to.
            index: `[batch, tokens, hidden]` states at the index layer.
            layers: layer number to rotated keys and values `[batch, heads, tokens, dim]`, or to
                `(states [batch, 1, tokens, hidden], None)`.
            valid: each row's half-open range of tokens that are no padding.
        """
        size = self._ring.block_size
        tokens = token_ids.shape[1]
        blocks = -(-tokens // size)
        keep = [
            (row, block)
            for row, (start, stop) in enumerate(valid)
            for block in range(start // size, -(-stop // size) if stop > start else 0)
        ]
        if not keep:
            return 0
        written = len(keep)
        positions = self._positions(sessions, valid, tokens, token_ids.device)
        keep = keep[-self._ring.slots :]  # of more blocks than fit, the newest
        turns: dict[str, Angles] = {}
        batch = BlockBatch(
            sessions=[sessions[row] for row, _ in keep],
            token_ids=token_ids,
            positions=positions,
            index=index,
            layers={
                number: LayerSource(
                    keys, values, self._turned(number, values, rope_positions, turns)
                )
                for number, (keys, values) in layers.items()
            },
            relevance=state_scores(index, size).pooled,
            pick=torch.tensor([row * blocks + block for row, block in keep]),
        )
        self._ring.write(batch)
        return written

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
        turns: dict[str, Angles],
    ) -> Angles | None:
        """By what the keys of a layer are rotated; None where they are not, or are states."""
        if values is None or not self._adapter.has_rotary:
            return None
        kind = self._adapter.rotary_kind(number)
        if kind not in turns:  # layers of a kind share theirs
            # The model rotates with cosines rounded to its own dtype: undo exactly those.
            turn = self._adapter.rotary(number, rope_positions.to(values.device))
            cos, sin = (part.to(values.dtype).float() for part in turn)
            turns[kind] = (cos, sin)
        return turns[kind]
