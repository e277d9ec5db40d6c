"""What is looked at before an evaluation begins: names, settings, evidence, packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from cmr.config import CMRConfig
from cmr.config.checks import nearest
from cmr.errors import EvaluationError
from cmr.evaluation.documents import place
from cmr.evaluation.peers.presses import PRESSES, python
from cmr.evaluation.questions import Question
from cmr.evaluation.registry import MAKERS, SYSTEMS, spelt_out

Named = dict[str, tuple[str, dict[str, Any]]]
"""Systems by the name that they are shown by: which one it is, and its settings of a memory."""


def named(
    systems: Sequence[str],
    settings: Mapping[str, Any],
    configurations: Mapping[str, Mapping[str, Any]],
) -> Named:
    """All that is to be asked, memory first: others show as much as it read.

    Raises:
        EvaluationError: a name is unknown or taken, or what a system needs is not there.
        ConfigError: a setting is unknown or out of its range.
    """
    systems = spelt_out(systems)
    for name in systems:
        if name not in MAKERS:
            known = [*MAKERS, "kvpress"]
            raise EvaluationError(f"systems: unknown system {name!r}: {nearest(name, known)}")
    if not systems and not configurations:
        raise EvaluationError(f"systems: at least one of {', '.join(SYSTEMS)} expected")
    if "passages-as-text" in systems and "memory" not in systems:
        raise EvaluationError("systems: passages-as-text shows what memory chose: name memory, too")
    if "bm25" in systems and importlib.util.find_spec("rank_bm25") is None:
        raise EvaluationError(
            "systems: bm25 needs the package rank-bm25: run `pip install 'cmr[evaluate]'`"
        )
    if not PRESSES.keys().isdisjoint(systems):
        python()
    # In the order of `MAKERS`, not of the words.
    found: Named = {name: (name, dict(settings)) for name in MAKERS if name in systems}
    for name, own in configurations.items():
        if name in MAKERS:
            raise EvaluationError(f"configurations: another name expected, {name!r} is a system")
        found[name] = ("memory", {**settings, **own})
    for _, own in found.values():
        # Told now and not after other systems have answered for an hour.
        CMRConfig().with_overrides(**own)
    return found


def check_kept(kept: float | None) -> None:
    """Looks whether that is a number of tokens, or a share of them; None: nobody said.

    Raises:
        EvaluationError: it is not.
    """
    if kept is not None and not (0 < kept < 1 or (kept >= 1 and float(kept).is_integer())):
        raise EvaluationError(
            f"kept: a number of tokens, or a share between 0 and 1, expected, got {kept}"
        )


def check_questions(documents: Mapping[str, str], questions: Sequence[Question]) -> None:
    """Looks whether every question is about a document, and its evidence stands there.

    Raises:
        EvaluationError: one is not, or there is none.
    """
    if not questions:
        raise EvaluationError("questions: at least one expected, got none")
    for question in questions:
        if question.document not in documents:
            raise EvaluationError(
                f"question {question.text!r}: is about {question.document!r}, which is not among "
                f"the documents: {nearest(question.document, documents)}"
            )
        for piece in question.evidence:
            if place(documents[question.document], piece) is None:
                raise EvaluationError(
                    f"question {question.text!r}: its evidence {piece!r} does not stand in "
                    f"{question.document}"
                )
