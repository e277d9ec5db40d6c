"""Contents to save, made up: small, of any shape, and easy to recognise again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.memory.store import Kind, Part, Saved

FULL = Kind(
    "full",
    {
        "index": Part(torch.bfloat16, (4, 6)),
        "keys.3": Part(torch.float32, (2, 4, 3)),
        "token_ids": Part(torch.int64, (4,)),
    },
)
CODES = Kind("codes", {"index": Part(torch.int8, (4, 6)), "scale": Part(torch.float32, (4,))})


@functools.cache
def row(part: Part, number: int, salt: int = 0) -> torch.Tensor:
    """What a block of that number has in a part: bytes drawn from the number."""
    generator = torch.Generator().manual_seed((number * 1009 + salt) % 2**62)
    data = torch.randint(0, 256, (part.nbytes,), generator=generator, dtype=torch.uint8)
    return (
        data.view(part.dtype).view(part.shape)
        if data.numel()
        else torch.empty(part.shape, dtype=part.dtype)
    )


@dataclass
class Made:
    """Blocks whose rows follow from their number and the name of the part.

    Attributes:
        asked: how many rows of blocks were asked for.
    """

    numbers: torch.Tensor
    kind: torch.Tensor
    session: torch.Tensor
    kinds: Sequence[Kind] = (FULL, CODES)
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    asked: int = 0

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        about = self.kinds[kind].parts[part]
        if part == sorted(self.kinds[kind].parts)[0]:
            self.asked += len(at)
        out = torch.empty((len(at), *about.shape), dtype=about.dtype)
        for i, number in enumerate(self.numbers[at].tolist()):
            out[i] = row(about, number, sum(part.encode()))
        return out


def made(numbers: Sequence[int], kinds: Sequence[Kind] = (FULL, CODES), **more: Any) -> Made:
    """Content with these block numbers: kind = number mod kinds, session = number mod 3."""
    given = torch.tensor(list(numbers), dtype=torch.int64)
    columns = {
        "relevance": given.float() / 7,
        "slot": given * 2,
        "pinned": given % 2 == 0,
        "positions": torch.stack([given, given + 1], 1),
    }
    about: dict[str, Any] = {
        "kind": given % max(len(kinds), 1),
        "session": given % 3,
        "kinds": kinds,
        "columns": columns,
        "header": {"sessions": {"anna": 0, "Ωmega": 1}, "count": len(given), "share": 0.1},
    }
    return Made(given, **(about | more))


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


def check_same(saved: Saved, content: Made) -> None:
    """Raises unless the saved memory is the content, in all that is in it."""
    assert saved.header == content.header
    assert list(saved.kinds) == list(content.kinds)
    for name in ("numbers", "kind", "session"):
        assert same_bytes(getattr(saved, name), getattr(content, name)), name
    assert set(saved.columns) == set(content.columns)
    for name, column in content.columns.items():
        assert same_bytes(saved.columns[name], column), name
    seen = []
    for batch in saved.batches():
        assert bool((content.kind[batch.positions] == batch.kind).all())
        assert set(batch.parts) == set(content.kinds[batch.kind].parts)
        for name, rows in batch.parts.items():
            wanted = content.rows(batch.kind, name, batch.positions)
            assert same_bytes(rows, wanted), name
        seen += batch.positions.tolist()
    assert sorted(seen) == list(range(len(content.numbers)))
