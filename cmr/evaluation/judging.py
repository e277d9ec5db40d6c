"""How right a reply is: by what it contains, exactly, or by the words that it shares."""

from __future__ import annotations

from collections import Counter

from cmr.evaluation.questions import Question
from cmr.evaluation.words import normalise

JUDGES = ("contains", "exact", "f1")
"""How a reply may be judged; each is a number from 0 to 1."""


def judge(reply: str, question: Question) -> dict[str, float]:
    """The reply's score by each of `JUDGES`; letters' case and punctuation never count.

    - `contains`: 1 where an accepted answer stands in the reply as whole words. Of a question with
      `parts` the share of them that stand there.
    - `exact`: 1 where the reply is an accepted answer and nothing else.
    - `f1`: of the words of the reply and of the accepted answer that fits best, the harmonic mean
      of the shares that both have in common (token F1, Rajpurkar et al. 2016).

    For the last two the parts of a question are one answer, in their order.
    """
    accepted = question.answers or (" ".join(question.parts),)
    words = normalise(reply)
    if question.parts:
        contained = sum(contains(reply, part) for part in question.parts) / len(question.parts)
    else:
        contained = float(any(contains(reply, answer) for answer in accepted))
    return {
        "contains": contained,
        "exact": float(any(words == normalise(answer) for answer in accepted)),
        "f1": max(f1(words.split(), normalise(answer).split()) for answer in accepted),
    }


def f1(said: list[str], wanted: list[str]) -> float:
    """Token F1 of two lists of words, 0 to 1; a word counts as often as it stands in both."""
    # Without a word in common both shares are 0, and have no harmonic mean.
    both = sum((Counter(said) & Counter(wanted)).values())
    return 2 * both / (len(said) + len(wanted)) if both else 0.0


def contains(reply: str, answer: str) -> bool:
    """Whether an answer stands in a reply as whole words."""
    return f" {normalise(answer)} " in f" {normalise(reply)} "


def share_found(evidence: list[tuple[int, int]], shown: list[tuple[int, int]]) -> float:
    """The share of the pieces of evidence of which 60 % of the tokens were shown.

    Args:
        evidence: tokens [start, end) of each piece, at least one.
        shown: tokens [start, end) of what the model could see of the document.
    """
    # As a set: passages may overlap.
    seen = {token for start, end in shown for token in range(start, end)}
    found = [
        sum(token in seen for token in range(start, end)) >= ENOUGH * (end - start)
        for start, end in evidence
    ]
    return sum(found) / len(found)


ENOUGH = 0.6
"""The share of a piece of evidence that has to be shown for it to count as found."""
