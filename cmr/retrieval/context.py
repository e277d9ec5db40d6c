"""What stands around a passage: turns of a conversation say together what none of them does."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.standardise import standardise
from cmr.retrieval.ask import Searched
from cmr.retrieval.vocabulary import Vocabulary

STEPS = 3
"""Passages of two blocks in a window, one behind another."""
LINES = 4
"""That begin in a window, at least, of a text whose lines are understood from those around them.
In essays one window in 15 has so many, in conversations nine in ten."""
WORD_WEIGHT = 0.4
"""Of what such lines say in words, beside 1 for what their states say: people go by names."""


class Around(NamedTuple):
    """Windows of `STEPS` passages over the stored text; they begin at every block.

    Attributes:
        inside: `[blocks, STEPS]` int64, slots of the window's passages; `blocks` for none.
        holders: `[blocks, 2 * STEPS - 1]` int64, slots where windows begin that a passage lies in.
        lined: `[blocks]` bool, whether a window has `LINES` lines.
        within: `[blocks]` bool, whether a passage lies in such a window.
    """

    inside: torch.Tensor
    holders: torch.Tensor
    lined: torch.Tensor
    within: torch.Tensor

    @classmethod
    def of(cls, store: Searched, vocabulary: Vocabulary) -> Around:
        """Those of all blocks of a store."""
        size = store.high_water
        blocks = _chain(store.successor[:size], 2 * STEPS)
        holders = _chain(store.predecessor[:size], 2 * STEPS - 1)
        breaks = vocabulary.breaks(store.token_ids[:size]) & (store.positions[:size] >= 0)
        # Of several line ends in a row one line begins.
        begins = (breaks[:, :-1] & ~breaks[:, 1:]).sum(-1, dtype=torch.float32)
        lined = _at(begins, blocks, 0.0).sum(-1) >= LINES
        within = _at(lined.float(), holders, 0.0).amax(-1) > 0
        return cls(blocks[:, ::2].contiguous(), holders, lined, within)

    def fits(
        self,
        near: torch.Tensor,
        values: torch.Tensor,
        shares: torch.Tensor,
        words: torch.Tensor,
        seen: torch.Tensor,
        clamp: float,
    ) -> torch.Tensor:
        """How well the best window fits that a passage lies in; its own fit where there is none.

        Args:
            near: `[batch, parts, blocks]` float32, how well passages fit by themselves.
            values: `[batch, tokens, blocks]`, how well they match each token that asks.
            shares: `[batch, parts, tokens]`, the weight of a token in its part.
            words: `[batch, parts, blocks]`, at least 0, what passages say in the words of a part.
            seen: `[batch, blocks]` bool.
            clamp: largest deviation of what is said in words.
        """
        wide = _at(values, self.inside, NEG_INF).amax(-1)
        said = standardise(_at(words, self.inside, 0.0).sum(-1), seen, clamp)
        fits = standardise(torch.bmm(shares, wide), seen, torch.inf) + WORD_WEIGHT * said
        fits = fits.masked_fill(~(seen & self.lined)[:, None], NEG_INF)
        best = _at(fits, self.holders, NEG_INF).amax(-1)
        return torch.where(best > NEG_INF, best, near)


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
    """`values` `[..., blocks]` at slots `[blocks, n]`: `[..., blocks, n]`, `fill` for none."""
    picked = F.pad(values, (0, 1), value=fill).index_select(-1, slots.flatten())
    return picked.unflatten(-1, slots.shape)
