"""Passages by late interaction at the index layer, where several searches are put together."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.kernels.reference.select import certainty_of, similarity_line
from cmr.retrieval.ask import Ask, Scored, Searched, visible
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.rules import rule_for


@dataclass(frozen=True)
class Semantic:
    """The similarity that the default search ranks by (`Selector.fused`), of every passage.

    Attributes:
        calibration: of the model, for what is expected when nothing fits; None: see `TUNED`.

    Source: Khattab and Zaharia (2020), ColBERT.
    """

    calibration: Calibration | None = None

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores in standard deviations from what is usual; see `Strategy`."""
        seen = visible(ask, store)
        rule = rule_for(ask.located, self.calibration)
        successor = store.successor[: store.high_water]
        line = similarity_line(ask.maxima(store), ask.mask, successor, seen, rule)[0]
        return Scored(line, certainty_of(line, seen.sum(-1), rule))
