"""What stands around a passage: turns of a conversation say together what none of them does."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.search.parts import Windows
from cmr.retrieval.ask import Searched
from cmr.retrieval.vocabulary import Vocabulary

STEPS = 3
"""Passages of two blocks in a window, one behind another."""
LINES = 4
"""That begin in a window, at least, of a text whose lines are understood from those around them.
In essays one window in 15 has so many, in conversations nine in ten."""
WORD_WEIGHT = 0.4
"""Of what such lines say in words, beside 1 for what their states say: people go by names."""


def windows_of(store: Searched, vocabulary: Vocabulary) -> Windows:
    """Windows of `STEPS` passages over all blocks of a store."""
    size = store.high_water
    blocks = _chain(store.successor[:size], 2 * STEPS)
    holders = _chain(store.predecessor[:size], 2 * STEPS - 1)
    breaks = vocabulary.breaks(store.token_ids[:size]) & (store.positions[:size] >= 0)
    # Of several line ends in a row one line begins.
    begins = (breaks[:, :-1] & ~breaks[:, 1:]).sum(-1, dtype=torch.float32)
    lined = _at(begins, blocks, 0.0).sum(-1) >= LINES
    within = _at(lined.float(), holders, 0.0).amax(-1) > 0
    return Windows(blocks[:, ::2].contiguous(), holders, lined, within)


def _chain(link: torch.Tensor, length: int) -> torch.Tensor:
    """Slots `[blocks, length]` that links `[blocks]` lead to one after another, from each block on.

    `blocks` where they lead nowhere.
    """
    size = len(link)
    follow = F.pad(torch.where(link >= 0, link, size), (0, 1), value=size)
    steps = [torch.arange(size, device=link.device)]
    for _ in range(length - 1):
        steps.append(follow[steps[-1]])
    return torch.stack(steps, 1)


def _at(values: torch.Tensor, slots: torch.Tensor, fill: float) -> torch.Tensor:
    """`values` `[blocks]` at slots `[blocks, n]`, the same shape, `fill` for none."""
    return F.pad(values, (0, 1), value=fill)[slots]
