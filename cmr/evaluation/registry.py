"""The systems by name: those that are always there, presses of kvpress, and others' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cmr.errors import EvaluationError
from cmr.evaluation.peers.pressed import Pressed
from cmr.evaluation.peers.presses import PRESSES
from cmr.evaluation.systems import Asked, Bm25, FullContext, Memory, PassagesAsText, System, Window

SYSTEMS = ("memory", "window", "full-context", "bm25", "passages-as-text")
"""Names of the systems, in the order in which they are shown.

`memory`: the question alone; the document was read into memory once. `window`: as much of the
document's end as fits into a prompt of the window's size. `full-context`: the whole document, where
the model can take it. `bm25`: the passages that BM25 finds, as many tokens as memory read for the
same question. `passages-as-text`: the passages that memory chose, as text before the question.
"""
MAKERS: dict[str, Callable[[Asked], System]] = {
    "memory": Memory,
    "window": Window,
    "full-context": FullContext,
    "bm25": Bm25,
    "passages-as-text": PassagesAsText,
    **{press: partial(Pressed, press) for press in PRESSES},
}
"""What makes a system of that name, in the order in which they are asked."""


def register_system(name: str, maker: Callable[[Asked], System]) -> None:
    """Has `evaluate` know another system by that name.

    Args:
        name: a word that no system has yet.
        maker: called with what is asked; gives the system, a subclass of `System`.

    Raises:
        EvaluationError: the name is taken.
    """
    if name in MAKERS:
        raise EvaluationError(f"register_system: another name expected, {name!r} is a system")
    MAKERS[name] = maker


def spelt_out(systems: Sequence[str]) -> list[str]:
    """Names of systems, with all presses in place of `kvpress`."""
    return [each for name in systems for each in (PRESSES if name == "kvpress" else (name,))]
