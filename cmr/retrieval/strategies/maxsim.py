"""Late interaction over blocks: which passages answer the newest tokens, and how surely."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.config import RetrievalConfig
from cmr.kernels.reference.select import Rule, SearchColumns, Selection, may_see
from cmr.kernels.select import maxsim_select
from cmr.retrieval.ask import Ask, Searched, columns_of
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.rolling_query import RollingQuery
from cmr.retrieval.rules import rule_for
from cmr.retrieval.selection import CANDIDATES, Best, cover, near, values_of


@dataclass(frozen=True)
class MaxSimRetriever:
    """Passages by MaxSim (Khattab and Zaharia 2020, ColBERT) on one layer's states, in kernels.

    Each query token's block maxima are standardised over the session's blocks, a passage takes the
    larger of its two blocks' values, and its score is the mean over the query's tokens, weighted
    by their best value where the question was located and by its square elsewhere.

    Attributes:
        config: `blocks`, `gain`, `neighbours`, `ratio`, `threshold` and `similarity_threshold` are
            used.
        calibration: what was measured for the model; None: nothing was.
    """

    config: RetrievalConfig
    calibration: Calibration | None = None

    def search(self, ask: Ask, store: Searched) -> Choice:
        """Choose passages for each row from its own session's blocks.

        Args:
            ask: what the rows look for.
            store: where.

        Returns:
            The choice. Its certainty is the best score over what is expected of the best passage
            when nothing fits (about 1 then, 1.3 to 2 for a question that a passage answers), and 0
            where the row has no passage. Rows below `threshold` read nothing.
        """
        columns = columns_of(store, store.high_water)
        rule = rule_for(ask, self.config, self.calibration)
        maxima = ask.maxima(store)
        found = maxsim_select(
            maxima, ask.mask, columns, ask.sessions, ask.before, rule, self._candidates
        )
        return self._covered(ask, maxima, columns, rule, found)

    def search_again(self, query: RollingQuery, store: Searched) -> Choice:
        """Choose passages for a query that is up to date; its next search writes over the choice.

        Args:
            query: the newest tokens of a text.
            store: what it compares them with.
        """
        ask, columns = query.ask(), columns_of(store, query.width)
        rule = rule_for(ask, self.config, self.calibration)
        maxima = query.maxima[:, :, : query.width]
        run = rule.passage + 2 * rule.neighbours
        shape = (len(query.sessions), self._candidates, run)
        if query.found is not None and query.found.table.shape != shape:
            query.found = None  # other settings hold since the last search
        query.found = maxsim_select(
            maxima,
            query.mask,
            columns,
            query.sessions,
            None,
            rule,
            self._candidates,
            out=query.found,
            scratch=query.scratch,
        )
        return query.settle(self._covered(ask, maxima, columns, rule, query.found))

    @property
    def _candidates(self) -> int:
        return 1 if self._takes_first else max(CANDIDATES, self.config.blocks)

    @property
    def _takes_first(self) -> bool:
        """Whether the kernels' first choice is all that is wanted."""
        return self.config.blocks == 1 and self.config.similarity_threshold is None

    def _covered(
        self, ask: Ask, maxima: torch.Tensor, columns: SearchColumns, rule: Rule, found: Selection
    ) -> Choice:
        if self._takes_first:
            return Choice(found.table, found.stamps, found.scores, found.certainty)
        seen = may_see(columns, ask.sessions, ask.before)
        best = Best(found.scores, found.starts, found.certainty)
        least = self.config.similarity_threshold
        if least is not None:
            best = near(maxima, ask.mask, columns.successor, best, least)
        values = values_of(maxima, ask.mask, columns.successor, seen, rule, best.starts)
        close = (best.scores >= self.config.ratio * best.scores[:, :1]) & (best.scores > 0)
        return cover(*values, columns, rule, best, close, self.config.blocks, self.config.gain)
