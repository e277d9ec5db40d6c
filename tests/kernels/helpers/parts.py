"""Values, words and windows at random, for the tests of scores in parts."""

from __future__ import annotations

from typing import Any

import torch

from cmr.kernels.search.parts import Numbers, Windows
from cmr.kernels.words import Words

NUMBERS = Numbers(
    peak_power=1,
    clamp=8.0,
    words=0.2,
    lined_words=0.4,
    context=0.7,
    marked=1.4,
    null_base=-0.75,
    null_blocks=0.8,
    null_parts=0.45,
    few_blocks=12,
    few_certainty=1.4,
)


def parts_of(batch: int, tokens: int, blocks: int, parts: int) -> tuple[Any, ...]:
    """What `part_scores` is given but the numbers: texts of 7 blocks, half of the windows lined."""
    z = torch.randn(batch, tokens, blocks).clamp(-8, 8)
    seen = torch.rand(batch, blocks) > 0.2
    z = torch.where(seen[:, None], z, -8.0)
    of = torch.randint(-1, parts, (batch, tokens))
    marked = torch.rand(batch, parts) > 0.5
    words = Words(torch.rand(batch, tokens), torch.randn(batch, parts, blocks).clamp(min=0))
    slots = torch.arange(blocks)[:, None]
    ahead, back = slots + torch.arange(0, 6, 2), slots - torch.arange(5)
    inside = torch.where((ahead // 7 == slots // 7) & (ahead < blocks), ahead, blocks)
    holders = torch.where((back // 7 == slots // 7) & (back >= 0), back, blocks)
    lined, within = torch.rand(blocks) > 0.5, torch.rand(blocks) > 0.5
    return z, seen, of, marked, words, Windows(inside, holders, lined, within)
