"""From scores to the choice: the best passages, the floor under them, and how many are taken."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cmr.config import RetrievalConfig
from cmr.kernels.cover import Cover, Enough, cover
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import (
    Rule,
    SearchColumns,
    Selection,
    at_peaks,
    certainty_of,
    may_see,
    shares_of,
    topk_lowest_slot,
)
from cmr.kernels.search.lines import within_lines
from cmr.kernels.select import Scratch, best_passages, floored, maxsim_select
from cmr.kernels.standardise import spread, standardise
from cmr.retrieval.ask import Ask, Scored, Searched, columns_of, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.vocabulary import Vocabulary

CANDIDATES = 8
"""Best passages among which those to read are chosen."""
TUNED = Rule(
    # A query token weighs the square of its best standardised match: template words match
    # everywhere alike and weigh little, a name that one passage holds weighs most.
    peak_power=2,
    clamp=8.0,
    threshold=0.0,
    # Score of the best passage when nothing fits: base + slope * ln(blocks), fitted to questions
    # about other documents at 2 to 500 stored blocks (docs/how-it-works.md).
    null_base=0.70,
    null_slope=0.18,
    # Below so many blocks a best score says nothing about how well it fits: a middling certainty.
    few_blocks=12,
    few_certainty=1.0,
    # Blocks that are scored together, so that no fact is cut by an edge.
    passage=2,
    neighbours=0,
)
"""What the search was tuned to without a calibration; a configuration sets the rest."""


class Best(NamedTuple):
    """The best passages of each row, best first, by score; their first slots; see `Choice`."""

    scores: torch.Tensor
    starts: torch.Tensor
    certainty: torch.Tensor

    def only(self, keep: torch.Tensor) -> Best:
        """Those of `keep` `[batch, k]` bool; where the others stand there is none then."""
        keep = keep & (self.starts >= 0)
        return self._replace(
            starts=self.starts.masked_fill(~keep, -1),
            scores=self.scores.masked_fill(~keep, NEG_INF),
        )


class Ranked(NamedTuple):
    """What a ranking chose: `scores` `[batch, k]`, -inf for none, and `slots` int64, -1 for none.

    Without a weight on diversity the scores fall.
    """

    scores: torch.Tensor
    slots: torch.Tensor


def rule_for(
    located: bool, calibration: Calibration | None = None, config: RetrievalConfig | None = None
) -> Rule:
    """The rule for questions that were `located`, that is told from the text around them, or not.

    The calibration says what is expected when nothing fits, the settings threshold and neighbours.
    """
    # All words of a located question were meant: they weigh by their best match, not its square.
    rule = TUNED._replace(peak_power=1 if located else 2)
    if calibration is not None:
        base, slope = calibration.question_null if located else calibration.text_null
        rule = rule._replace(null_base=base, null_slope=slope)
    if config is not None:
        rule = rule._replace(threshold=config.threshold, neighbours=config.neighbours)
    return rule


class Selector:
    """Chooses passages by the settings; a strategy only says how well each of them fits.

    Attributes:
        candidates: passages among which those to read are chosen.
        run: blocks of a passage with its neighbours.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        calibration: Calibration | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._config, self._vocabulary = config, vocabulary
        # Decided here and not in every search, which only picks one of the two.
        self._rules = {located: rule_for(located, calibration, config) for located in (False, True)}
        self.run = self._rules[False].passage + 2 * self._rules[False].neighbours
        # Of a single passage without a floor, the kernels' first one is all that is wanted.
        self._takes_first = config.blocks == 1 and config.similarity_threshold is None
        self.candidates = 1 if self._takes_first else max(CANDIDATES, config.blocks)

    def fused(
        self,
        ask: Ask,
        store: Searched,
        room: tuple[Selection | None, Scratch | None] = (None, None),
        out: Choice | None = None,
    ) -> Choice:
        """By late interaction (Khattab and Zaharia 2020, ColBERT), all of it in the kernels.

        Each query token's block maxima are standardised over the session's blocks, a passage takes
        the larger of its two blocks' values, and its score is the mean over the query's tokens,
        weighted by their best value where the question was located and by its square elsewhere.

        The kernels write into `room`, and into `out` where it is of the same shape.
        """
        maxima, rule = ask.maxima(store), self._rules[ask.located]
        # As many columns as there are maxima: a growing query has them for padded slots.
        columns = columns_of(store, maxima.shape[2])
        who, k = (ask.sessions, ask.before), self.candidates
        found = maxsim_select(maxima, ask.mask, columns, *who, rule, k, *room)
        if self._takes_first:
            return Choice(found.table, found.stamps, found.scores, found.certainty)
        best = Best(found.scores, found.starts, found.certainty)
        # What is left out for its cosines moves the others forward, away from their values.
        moved = self._config.similarity_threshold is not None
        told = None if moved else (found.values, found.shares)
        return self._taken(ask, store, columns, rule, best, None, out, told)

    def by_scores(
        self, ask: Ask, store: Searched, found: Scored, out: Choice | None = None
    ) -> Choice:
        """By a strategy's scores; what a row may not see is left out whatever they are.

        The kernels write into `out` where it is given, and of the same shape.
        """
        columns, rule = columns_of(store, store.high_water), self._rules[ask.located]
        seen, k = visible(ask, store), self.candidates
        passages = found.passages.float()
        line = passages if found.line is None else found.line.float()
        certainty = found.certainty
        if certainty is None:
            certainty = certainty_of(line.masked_fill(~seen, NEG_INF), seen.sum(-1), rule)
        if found.profiles is None:
            base = None if found.line is None else passages
            given = (line, base, seen, certainty, columns, k, rule.threshold)
            best = Best(*best_passages(*given), certainty)
        else:
            line, passages = (x.masked_fill(~seen, NEG_INF) for x in (line, passages))
            peaks = at_peaks(line, passages, columns)
            taken = ranked(peaks, k, found.profiles, found.diversity)
            fits = None if found.line is None else line
            best = Best(*floored(*taken, fits, certainty, rule.threshold), certainty)
        return self._taken(ask, store, columns, rule, best, found, out)

    def _taken(
        self,
        ask: Ask,
        store: Searched,
        columns: SearchColumns,
        rule: Rule,
        best: Best,
        found: Scored | None,
        out: Choice | None,
        told: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Choice:
        """Those of the best passages that are read; the end of every search."""
        least = self._config.similarity_threshold
        if least is not None:
            best = near(ask.maxima(store), ask.mask, columns.successor, best, least)
        winner = None
        if found is not None and found.values is not None:
            assert found.shares is not None
            values, shares, winner = found.values, found.shares, found.winner
        elif told is not None:
            values, shares = told
        elif found is None or found.explained is None:
            values, shares = values_of(ask, store, columns, rule, best.starts)
        else:
            values, shares = found.explained(best.starts)
        own = _similarity(best, None if found is None else found.line)
        enough = Enough(self._config.ratio, self._config.gain, rule.passage, rule.neighbours)
        most = min(self._config.blocks, self.candidates)
        given = (values, shares, best.scores, best.starts, own, columns, enough, most, winner)
        room = (len(best.starts), most, self.run)
        if out is None or out.table.shape != room:
            taken = cover(*given)
        else:
            into = Cover(out.scores, best.starts.new_empty(room[:2]), out.table, out.stamps)
            taken = cover(*given, into)
        parts = None
        # Of a query that goes on nobody wants to know.
        known = ask.parts is not None and ask.known is None
        if known and found is not None and found.winner is not None:
            parts = found.winner.gather(1, taken.starts.clamp(min=0))
            parts = parts.masked_fill(taken.starts < 0, -1)
        choice = Choice(taken.table, taken.stamps, taken.scores, best.certainty, parts=parts)
        within = None if out is None else out.within
        return self._in_lines(choice, taken.starts, store, columns, rule, within)

    def _in_lines(
        self,
        choice: Choice,
        starts: torch.Tensor,
        store: Searched,
        columns: SearchColumns,
        rule: Rule,
        within: torch.Tensor | None,
    ) -> Choice:
        """The same, read no further than the lines go on, where a vocabulary knows their ends."""
        ids = store.token_ids[: len(columns.session)]
        if self._vocabulary is None or not rule.neighbours or not len(ids):
            return choice
        ends, beside = self._vocabulary.tables.breaks, (rule.passage, rule.neighbours)
        if within is not None and within.shape != (*starts.shape, 2):
            within = None
        return choice._replace(within=within_lines(starts, columns, ids, ends, *beside, within))


def _similarity(best: Best, line: torch.Tensor | None) -> torch.Tensor:
    """How well passages fit `[batch, k]`: by the line, where they are ranked by something else."""
    if line is None or not line.shape[1]:
        return best.scores
    return line.gather(1, best.starts.clamp(min=0))


def ranked(
    base: torch.Tensor, k: int, profiles: torch.Tensor | None = None, weight: float = 0.0
) -> Ranked:
    """The `k` best by `base` `[batch, entries]` float32, `-inf` for what is not to be chosen.

    With profiles `[batch or 1, features, entries]` float32 one after the other, each the best given
    those before: `base + weight * diversity`. Diversity is 1 less the largest cosine with a profile
    that was chosen before; the cosine with one that is all 0 is 0.

    Source: Carbonell and Goldstein (1998), maximal marginal relevance.
    """
    if profiles is None:
        return Ranked(*topk_lowest_slot(base, k))
    norms = profiles.norm(dim=1)
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0).expand_as(base)
    profiles = profiles.expand(len(base), -1, -1)
    alike, left = torch.zeros_like(base), base
    scores, slots = [], []
    for _ in range(k):
        score, slot = topk_lowest_slot(left + weight * (1.0 - alike), 1)
        scores.append(score)
        slots.append(slot)
        if not base.shape[1]:
            continue
        at = slot.clamp(min=0)
        last = profiles.gather(2, at[:, None].expand(-1, profiles.shape[1], -1))
        cosine = torch.bmm(last.mT, profiles)[:, 0] * inverse * inverse.gather(1, at)
        alike = torch.maximum(alike, cosine)
        left = left.scatter(1, at, NEG_INF)
    return Ranked(torch.cat(scores, 1), torch.cat(slots, 1))


def near(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    successor: torch.Tensor,
    best: Best,
    least: float,
) -> Best:
    """The passages of which a token has a cosine of `least` with a token that asks, at least.

    Maxima are cosines `[batch, tokens, blocks]`; those of passages that are left out move behind.
    """
    if not maxima.shape[2]:
        return best
    if query_mask is not None:
        maxima = maxima.masked_fill(~query_mask[..., None], NEG_INF)
    largest = maxima.amax(1)
    at = best.starts.clamp(min=0)
    after = successor[at]
    beside = largest.gather(1, after.clamp(min=0)).masked_fill(after < 0, NEG_INF)
    fits = (torch.maximum(largest.gather(1, at), beside) >= least) & (best.starts >= 0)
    # Those that fit come first, in the order they had: the first one decides what the others add.
    order = (~fits).long().argsort(dim=1, stable=True)
    moved = Best(best.scores.gather(1, order), best.starts.gather(1, order), best.certainty)
    return moved.only(fits.gather(1, order))


def values_of(
    ask: Ask, store: Searched, columns: SearchColumns, rule: Rule, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How well passages match each query token, and each token's share of a score.

    Of passages that begin at `starts` `[batch, k]`, -1 for none: `[batch, tokens, k]` in deviations
    from what is usual, and `[batch, tokens]`.
    """
    maxima, query_mask, successor = ask.maxima(store), ask.mask, columns.successor
    visible = may_see(columns, ask.sessions, ask.before)
    batch, tokens, size = maxima.shape
    if not size:
        return maxima.new_zeros(batch, tokens, starts.shape[1]), maxima.new_zeros(batch, tokens)
    if maxima.device.type != "cpu":  # one launch writes all blocks' values, many compute a few
        z = standardise(maxima, visible, rule.clamp, successor if rule.passage == 2 else None)
        values = z.gather(2, starts.clamp(min=0)[:, None].expand(-1, tokens, -1))
        return values, shares_of(z.amax(-1), query_mask, rule.peak_power)[0]
    usable, mean, deviation = spread(maxima, visible)

    def standard(values: torch.Tensor) -> torch.Tensor:
        z = torch.where(deviation > 0, (values - mean) / deviation, 0.0)
        return torch.where(values.isfinite(), z.clamp(-rule.clamp, rule.clamp), -rule.clamp)

    # Only what the passages hold is standardised: writing all blocks' values costs a search more.
    at = starts.clamp(min=0)
    after = successor[at]
    values = standard(maxima.gather(2, at[:, None].expand(-1, tokens, -1)))
    if rule.passage == 2:
        beside = standard(maxima.gather(2, after.clamp(min=0)[:, None].expand(-1, tokens, -1)))
        values = torch.maximum(values, torch.where(after[:, None] >= 0, beside, -rule.clamp))
    peaks = standard(maxima.masked_fill(~usable, NEG_INF).amax(-1, keepdim=True))[..., 0]
    return values, shares_of(peaks, query_mask, rule.peak_power)[0]
