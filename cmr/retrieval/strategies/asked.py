"""The default search where tokens are known: every sentence asks, with its states and its words."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.kernels.reference.select import Rule
from cmr.kernels.search.parts import Numbers, Windows, part_scores
from cmr.kernels.standardise import standardise
from cmr.retrieval import context
from cmr.retrieval.ask import Ask, QueryParts, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.context import windows_of
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
    _windows: list[tuple[Any, tuple[int, int], Windows]] = field(
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
        windows, numbers = self._windows_of(store), _numbers(rule, ask.located)
        found = part_scores(z, seen, parts.of, parts.marked, words, windows, numbers)
        return Scored(
            found.line, found.certainty, winner=found.winner, values=z, shares=found.shares
        )

    def _windows_of(self, store: Searched) -> Windows:
        """The windows of a store, made anew where it has changed."""
        # By a weak reference, not by its number: a store that is gone may leave its number to one
        # of somebody else.
        version = store.ledger.changes, store.high_water
        for kept, when, windows in self._windows:
            if kept() is store and when == version:
                return windows
        windows = windows_of(store, self.vocabulary)
        self._windows[:] = [(weakref.ref(store), version, windows)]
        return windows

    def _parts(self, ask: Ask, token_ids: torch.Tensor) -> QueryParts:
        """The parts of what is asked, without tokens that do not ask."""
        if ask.parts is not None:
            return ask.parts
        if ask.located:
            return self.vocabulary.parts(token_ids, ask.mask)
        # Where nobody knows what is a question, a text goes on: some sentence of it always fits
        # something, and would be read with a certainty that it has not.
        return QueryParts.one(token_ids, ask.mask)


def _numbers(rule: Rule, located: bool) -> Numbers:
    return Numbers(
        peak_power=rule.peak_power,
        clamp=rule.clamp,
        words=WORD_WEIGHT,
        lined_words=context.WORD_WEIGHT,
        context=CONTEXT,
        marked=MARKED,
        null_base=NULL_BASE,
        null_blocks=NULL_BLOCKS,
        null_parts=NULL_PARTS,
        few_blocks=rule.few_blocks,
        few_certainty=FEW_CERTAINTY if located else rule.few_certainty,
    )
