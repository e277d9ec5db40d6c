"""The numbers of a search: what it was tuned to, and what a model or a configuration changes."""

from __future__ import annotations

from cmr.config import RetrievalConfig
from cmr.kernels.reference.select import Rule
from cmr.retrieval.calibration import Calibration

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
