"""The default search where tokens are known: every sentence asks, with its states and its words."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import Rule
from cmr.kernels.standardise import standardise
from cmr.retrieval import context
from cmr.retrieval.ask import Ask, QueryParts, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.context import Around
from cmr.retrieval.selection import rule_for
from cmr.retrieval.strategies.semantic import Semantic
from cmr.retrieval.vocabulary import Vocabulary
from cmr.retrieval.words import words_of

WORD_WEIGHT = 0.2
"""Of what a passage says in the words of a part, beside 1 for what its states say."""
CONTEXT = 0.7
"""Of how well what stands around a passage fits, where lines are short, beside 1 for itself."""
MARKED = 1.4
"""How much more it counts what a part finds that has a question mark."""
NULL_BASE, NULL_BLOCKS, NULL_PARTS = -0.75, 0.8, 0.45
"""The best score when nothing fits: base + blocks' slope * ln(blocks) + parts' * ln(parts), fitted
to questions about another text at 12 to 900 blocks, with and without everyday talk around them."""
FEW_CERTAINTY = 1.4
"""Of a question to so few blocks that nothing can stand out: they are read strongly. Requests that
have nothing to do with them are disturbed less by it than by the same text in the prompt."""


@dataclass(frozen=True)
class Asked:
    """Each part of what is asked is a query of its own; the one that singles out a passage wins.

    Of each part: every token's block maxima as deviations from what is usual, in the mean, weighted
    by the token's best one and by how rare its word is; and BM25 for the part's words. Both as
    deviations over the passages that the row sees, added up, and once more as deviations: so the
    parts of a message are comparable, however long they are, and one that fits everything a little
    outbids none that fits one passage well. A passage has the best score that a part gives it.

    Attributes:
        vocabulary: says which tokens are words, and where sentences end.
        calibration: of the model, for asks whose tokens nobody knows: those are one part.

    Sources: Khattab and Zaharia (2020), ColBERT; Robertson and Zaragoza (2009), BM25.
    """

    vocabulary: Vocabulary
    calibration: Calibration | None = None
    _windows: list[tuple[Any, tuple[int, int], Around]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        if ask.token_ids is None:
            return Semantic(self.calibration).score(ask, store)
        seen, rule = visible(ask, store), rule_for(ask.located)
        parts = self._parts(ask, ask.token_ids)
        z = standardise(ask.maxima(store), seen, rule.clamp, store.successor[: store.high_water])
        if not z.shape[-1]:
            return Scored(z.new_zeros(seen.shape), z.new_zeros(len(z)))
        words = words_of(ask.token_ids, parts, self.vocabulary, store, seen)
        numbers = torch.arange(parts.marked.shape[1], device=z.device)
        own = parts.of[:, None] == numbers[:, None]
        peaks = z.amax(-1).clamp(min=0) ** rule.peak_power
        # A single block stands out from nothing: it is chosen, as no other can be meant.
        peaks = torch.where((seen.sum(-1) < 2)[:, None], 1.0, peaks)
        weights = own * (peaks * (1.0 + words.rarity))[:, None]
        total = weights.sum(-1, keepdim=True)
        shares = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        said = standardise(words.scores, seen, rule.clamp)
        around = self._around(store)
        weight = torch.where(around.within, context.WORD_WEIGHT, WORD_WEIGHT)
        near = standardise(torch.bmm(shares, z), seen, torch.inf) + weight * said
        wide = around.fits(near, z, shares, words.scores, seen, rule.clamp)
        asks = (total > 0) & seen[:, None]
        both = standardise(near + CONTEXT * wide, seen, torch.inf)
        scores = both.masked_fill(~asks, NEG_INF)
        favour = torch.where(parts.marked, MARKED, 1.0)[..., None]
        line, winner = (scores * favour).max(1)

        def explained(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            at = starts.clamp(min=0)
            values = z.gather(2, at[:, None].expand(-1, z.shape[1], -1))
            # What a further passage adds is measured on the part that found the first one.
            first = winner.gather(1, at[:, :1])[..., None].expand(-1, 1, z.shape[1])
            return values, shares.gather(1, first)[:, 0]

        # How well the best one fits by itself: what lies around it is not certain to answer.
        alone = standardise(near, seen, torch.inf).masked_fill(~asks, NEG_INF)
        best = alone.gather(1, winner[:, None])[:, 0].gather(1, line.argmax(1, keepdim=True))
        if ask.located:
            rule = rule._replace(few_certainty=FEW_CERTAINTY)
        certainty = _certainty(best[:, 0], seen.sum(-1), (total > 0).sum((1, 2)), rule)
        return Scored(line, certainty, explained=explained)

    def _around(self, store: Searched) -> Around:
        """The windows of a store, made anew where it has changed."""
        # By a weak reference, not by its number: a store that is gone may leave its number to one
        # of somebody else.
        version = store.ledger.changes, store.high_water
        for kept, when, windows in self._windows:
            if kept() is store and when == version:
                return windows
        windows = Around.of(store, self.vocabulary)
        self._windows[:] = [(weakref.ref(store), version, windows)]
        return windows

    def _parts(self, ask: Ask, token_ids: torch.Tensor) -> QueryParts:
        """The parts of what is asked, without tokens that do not ask."""
        # Where nobody knows what is a question, a text goes on: some sentence of it always fits
        # something, and would be read with a certainty that it has not.
        parts = ask.parts
        if parts is None and ask.located:
            parts = self.vocabulary.parts(token_ids, ask.mask)
        parts = parts or QueryParts.one(token_ids)
        of = parts.of if ask.mask is None else parts.of.masked_fill(~ask.mask, -1)
        return parts._replace(of=of)


def _certainty(
    best: torch.Tensor, blocks: torch.Tensor, parts: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """The best score `[batch]` over what is expected of so many blocks and parts; 0 for nothing."""
    # Among few blocks some block always stands out, which says nothing of how well it fits.
    many = blocks.clamp(min=rule.few_blocks).log()
    null = NULL_BASE + NULL_BLOCKS * many + NULL_PARTS * parts.clamp(min=1).log()
    sure = torch.where(blocks < rule.few_blocks, rule.few_certainty, best / null)
    return torch.where(best > NEG_INF, sure, 0.0)
