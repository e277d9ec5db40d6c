"""Words of a text that carry meaning."""

from __future__ import annotations

from cmr.evaluation.words import normalise


def listed(text: str) -> tuple[str, ...]:
    """The words of a list that is written as a text."""
    return tuple(text.split())


_STOP = frozenset(
    listed(
        "a about above after all almost also am an and any are as at be been before being both "
        "but by can could did do does doing done down during each every few for from had has have "
        "having he her here hers him his how i if in into is it its just many may me more most "
        "much must my no not now of off on once one only or other others our out over own same "
        "shall she should since so some such than that the their them then there these they this "
        "those through to too two under until up us very was we were what when where which while "
        "who whom whose why will with would you your"
    )
)
_IRREGULAR = {
    "grew": "grow", "grown": "grow", "built": "build", "made": "make", "kept": "keep",
    "took": "take", "taken": "take", "won": "win", "left": "leave", "gave": "give", "went": "go",
    "goes": "go", "bought": "buy", "held": "hold", "sold": "sell", "children": "child",
    "flies": "fly", "said": "say", "told": "tell", "stood": "stand", "feet": "foot",
    "travelled": "travel",
}  # fmt: skip


def _stem(word: str) -> str:
    word = _IRREGULAR.get(word, word)
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word.removesuffix("e")


def content_words(text: str) -> set[str]:
    """Stems of the words that carry meaning: no function words, no endings."""
    text = text.replace("'s", "").replace("\u2019s", "")
    return {_stem(w) for w in normalise(text).split() if w not in _STOP}


def shared_words(question: str, sentence: str) -> int:
    """How many content words stand in both."""
    return len(content_words(question) & content_words(sentence))
