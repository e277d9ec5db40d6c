"""The part of a recalled passage that has to do with what was asked and answered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from rich.text import Text

LENGTH = 160
"""Characters of a passage that are shown."""
_WORD = re.compile(r"\w+")
_SHORTEST = 3
"""Letters of a word that is looked for, where it is no number: 'of' and 'is' are everywhere."""


def words_of(*texts: str) -> list[str]:
    """The words of some texts that are worth looking for, once each, in small letters."""
    found = (word.casefold() for text in texts for word in _WORD.findall(text))
    return list(dict.fromkeys(w for w in found if len(w) > _SHORTEST or w.isdigit()))


def excerpt(text: str, words: Iterable[str] = (), length: int = LENGTH) -> Text:
    """A passage on one line, cut to ``length`` where most of the ``words`` stand, which are bold.

    A word that is rare in the passage says more about the place than one that is all over it.
    Without any of them the passage's middle is shown, which is what the search found.
    """
    flat = re.sub(r"\s+", " ", text).strip()
    places = _places(flat, words)
    start = _best_start(flat, places, length)
    cut = flat[start : start + length]
    before, after = "… " if start else "", " …" if start + length < len(flat) else ""
    shown = Text(before + cut + after)
    for at, end in places:
        if start <= at and end <= start + len(cut):
            shown.stylize("bold green", at - start + len(before), end - start + len(before))
    return shown


def _places(flat: str, words: Iterable[str]) -> list[tuple[int, int]]:
    """Where the words begin and end in a text; longer ones that begin so count, too: bee, bees."""
    known = tuple(words)
    if not known:
        return []
    found = ((match.span(), match[0].casefold()) for match in _WORD.finditer(flat))
    return [span for span, word in found if word in known or word.startswith(_long(known))]


def _long(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if len(word) > _SHORTEST)


def _best_start(flat: str, places: list[tuple[int, int]], length: int) -> int:
    last = max(0, len(flat) - length)
    if not places or not last:
        return last // 2
    counts = Counter(flat[at:end].casefold() for at, end in places)

    def worth(first: int) -> float:
        begin = places[first][0]
        inside = {
            flat[at:end].casefold() for at, end in places if begin <= at and end <= begin + length
        }
        return sum(1 / counts[word] for word in inside)

    first = max(range(len(places)), key=worth)
    begin = places[first][0]
    # What is found stands in the middle of what is shown, with what is said around it.
    end = max(end for at, end in places if begin <= at and end <= begin + length)
    return min(max(0, (begin + end - length) // 2), last)
