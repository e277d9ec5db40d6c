"""Random rings with chosen blocks, for the tests of what reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from cmr.kernels.attention_partials import attention_partials_plain, merge_partials
from cmr.kernels.reweave_paged import read_blocks

SEEN = 37
"""Keys of the local attention."""


@dataclass
class Paged:
    """The arguments of `reweave_paged`, with partial local attention, and its local keys."""

    query: torch.Tensor
    key_store: torch.Tensor
    value_store: torch.Tensor
    table: torch.Tensor
    stamps: torch.Tensor
    created: torch.Tensor
    positions: torch.Tensor
    bias: torch.Tensor
    local_out: torch.Tensor
    local_lse: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    turn: tuple[torch.Tensor, torch.Tensor] | None = None
    query_mask: torch.Tensor | None = None
    softcap: float | None = None

    @classmethod
    def draw(
        cls,
        heads: int,
        groups: int,
        steps: int,
        width: int,
        block: int,
        *,
        batch: int = 2,
        slots: int = 7,
        entries: int = 5,
        parts: int = 1,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Paged:
        """Everything that is chosen can be read."""
        rng = torch.Generator().manual_seed(seed + 11 * width + steps)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=rng).to(dtype)

        query = normal(batch, steps, heads, width).transpose(1, 2)
        key, value = (normal(batch, groups, SEEN, width) for _ in range(2))
        table = torch.stack([torch.randperm(slots, generator=rng)[:entries] for _ in range(batch)])
        created = torch.randint(1, 1 << 40, (slots,), generator=rng)
        out = torch.empty(parts, batch, heads, steps, width)
        lse = torch.empty(parts, batch, heads, steps)
        attention_partials_plain(query, key, value, None, False, width**-0.5, None, out, lse)
        return cls(
            query=query,
            key_store=normal(slots, groups, block, width),
            value_store=normal(slots, groups, block, width),
            table=table,
            stamps=created[table],
            created=created,
            positions=torch.randint(0, 99, (slots, block), generator=rng),
            bias=torch.randn(batch, generator=rng),
            local_out=out.to(dtype) if parts == 1 else out,
            local_lse=lse,
            key=key,
            value=value,
        )

    def spoil(self) -> None:
        """Makes some entries empty, some stale and some tokens padding; NaN where none reads."""
        rng = torch.Generator().manual_seed(5)
        self.table[:, 1] = -1
        self.stamps[0, 3] -= 1
        self.positions[torch.rand(self.positions.shape, generator=rng) < 0.3] = -1
        read = torch.zeros(self.positions.shape, dtype=torch.bool)
        seen = self.mask().view(*self.table.shape, -1)
        for row, slots in enumerate(self.table.tolist()):
            for entry, slot in enumerate(slots):
                if slot >= 0:
                    read[slot] |= seen[row, entry]
        for store in (self.key_store, self.value_store):
            store.masked_fill_(~read[:, None, :, None], math.nan)

    def keep_slots(self, count: int) -> None:
        """Leaves the first `count` slots only."""
        for name in ("key_store", "value_store", "created", "positions"):
            setattr(self, name, getattr(self, name)[:count].contiguous())

    def mask(self) -> torch.Tensor:
        """Which tokens can be read, [B, M * block], one by one."""
        batch, entries = self.table.shape
        block = self.positions.shape[1]
        mask = torch.zeros(batch, entries, block, dtype=torch.bool)
        for b in range(batch):
            for m in range(entries):
                slot = int(self.table[b, m])
                if slot >= 0 and self.created[slot] == self.stamps[b, m]:
                    mask[b, m] = self.positions[slot] >= 0
        return mask.flatten(1)

    def gathered(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values of the chosen blocks, [B, G, M * block, D], and the mask."""
        picked = [store[self.table.clamp(min=0)] for store in (self.key_store, self.value_store)]
        keys, values = (x.transpose(1, 2).flatten(2, 3) for x in picked)
        return keys, values, self.mask()

    def arguments(self) -> dict[str, Any]:
        """For the public function."""
        names = (
            "query", "key_store", "value_store", "table", "stamps", "created", "positions",
            "bias", "local_out", "local_lse", "turn", "query_mask", "softcap",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def specified(case: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """What the specification makes of a case."""
    scale = case.query.shape[-1] ** -0.5
    given = case.arguments()
    cos, sin = given.pop("turn") or (None, None)
    return read_blocks(**given, cos=cos, sin=sin, scale=scale)


def local_attention(case: Paged) -> torch.Tensor:
    """The merged local attention in the query's dtype."""
    return merge_partials(case.local_out, case.local_lse)[0].to(case.query.dtype)


def joint_softmax(case: Paged, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax over chosen and local keys, in a dtype; the bias goes onto the memory's."""
    keys, values, mask = case.gathered()
    repeat = case.query.shape[1] // keys.shape[1]
    keys, values = (
        torch.cat(pair, 2).to(dtype).repeat_interleave(repeat, 1)
        for pair in ((keys, case.key), (values, case.value))
    )
    logits = case.query.to(dtype) @ keys.mT * case.query.shape[-1] ** -0.5
    count = mask.shape[1]
    logits[..., :count] += case.bias.to(dtype)[:, None, None, None]
    logits[..., :count] = logits[..., :count].masked_fill(~mask[:, None, None], -math.inf)
    shares = torch.softmax(logits, -1)
    return shares @ values, shares[..., :count].sum(-1)
