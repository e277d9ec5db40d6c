"""From what leaves the window to blocks in the ring buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cmr.integration.adapter import ModelAdapter
from cmr.integration.positions import unrotate
from cmr.kernels.reference.score import variance
from cmr.memory.ring import BlockBatch, RingBuffer
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
        length = -(-token_ids.shape[1] // size) * size
        keep = [
            (row, block)
            for row, (start, stop) in enumerate(valid)
            for block in range(start // size, -(-stop // size) if stop > start else 0)
        ]
        if not keep:
            return 0
        positions = self._positions(sessions, valid, length, token_ids.device)
        pick = torch.tensor([row * (length // size) + block for row, block in keep])
        turns: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        packed = {
            number: self._unrotated(number, keys, values, rope_positions, turns)
            for number, (keys, values) in layers.items()
        }
        blocks = _Cutter(size, length, pick)
        states = blocks.rows(index)
        batch = BlockBatch(
            sessions=[sessions[row] for row, _ in keep],
            token_ids=blocks.rows(token_ids),
            positions=blocks.rows(positions, fill=-1),
            index=states,
            layers={
                number: (blocks.heads(keys), None if values is None else blocks.heads(values))
                for number, (keys, values) in packed.items()
            },
            relevance=variance(states).mean(dim=-1),
        )
        self._store(batch)
        return len(keep)

    def _store(self, batch: BlockBatch) -> None:
        """Write; of more blocks than fit, the newest stay."""
        surplus = len(batch.sessions) - self._ring.slots
        if surplus > 0:
            batch = BlockBatch(
                sessions=batch.sessions[surplus:],
                token_ids=batch.token_ids[surplus:],
                positions=batch.positions[surplus:],
                index=batch.index[surplus:],
                layers={
                    n: (k[surplus:], None if v is None else v[surplus:])
                    for n, (k, v) in batch.layers.items()
                },
                relevance=None if batch.relevance is None else batch.relevance[surplus:],
            )
        self._ring.write(batch)

    def _positions(
        self,
        sessions: Sequence[int],
        valid: Sequence[tuple[int, int]],
        length: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Positions `[batch, length]` in the sessions' texts, -1 for padding."""
        rows = []
        for session, (start, stop) in zip(sessions, valid, strict=True):
            first = self._sessions.advance(session, max(0, stop - start))
            row = torch.full((length,), -1, dtype=torch.int64)
            row[start:stop] = torch.arange(first, first + max(0, stop - start))
            rows.append(row)
        return torch.stack(rows).to(device)

    def _unrotated(
        self,
        number: int,
        keys: torch.Tensor,
        values: torch.Tensor | None,
        rope_positions: torch.Tensor,
        turns: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if values is None or not self._adapter.has_rotary:
            return keys, values
        kind = self._adapter.rotary_kind(number)
        if kind not in turns:  # layers of a kind share theirs
            # The model rotates with cosines rounded to its own dtype: undo exactly those.
            turn = self._adapter.rotary(number, rope_positions.to(keys.device))
            cos, sin = (part.to(keys.dtype).float() for part in turn)
            turns[kind] = (cos, sin)
        cos, sin = turns[kind]
        return unrotate(keys, cos.to(keys.device), sin.to(keys.device)), values


class _Cutter:
    """Cuts `[batch, tokens, ...]` into blocks and picks some of them."""

    def __init__(self, size: int, length: int, pick: torch.Tensor) -> None:
        self._size, self._length, self._pick = size, length, pick

    def rows(self, x: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """`[batch, tokens, ...]` to `[picked, size, ...]`."""
        x = self._padded(x, 1, fill)
        x = x.reshape(-1, self._size, *x.shape[2:])
        return x.index_select(0, self._pick.to(x.device))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, tokens, dim]` to `[picked, heads, size, dim]`."""
        x = self._padded(x, 2, 0)
        batch, heads, _, dim = x.shape
        x = x.view(batch, heads, -1, self._size, dim).transpose(1, 2)
        x = x.reshape(-1, heads, self._size, dim)
        return x.index_select(0, self._pick.to(x.device))

    def _padded(self, x: torch.Tensor, dim: int, fill: int) -> torch.Tensor:
        missing = self._length - x.shape[dim]
        if missing == 0:
            return x.contiguous()
        shape = list(x.shape)
        shape[dim] = missing
        return torch.cat([x, x.new_full(shape, fill)], dim=dim)
