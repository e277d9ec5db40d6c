"""Long documents with planted facts: real essays, four facts each, look-alikes, four wordings.

Everything follows from the seed, the tokenizer and the length: the same call gives the same text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.texts.essays import essays
from benchmarks.texts.facts import KINDS, POOLS, Kind, slots, with_numbers
from cmr.evaluation.judging import contains
from cmr.evaluation.words import normalise

FACTS_A_DOCUMENT = 4
DOCUMENTS = 6
LOOK_ALIKES = 2
SHORTEST = 3_000  # tokens of a document
TAIL = 640  # tokens at the end that hold no fact, so that no window shows one by chance


@dataclass(frozen=True)
class Question:
    """A question; any of `answers` contained in the reply counts as right."""

    text: str
    answers: tuple[str, ...]
    match: str = "same words"


@dataclass(frozen=True)
class Fact:
    """A planted sentence; `start` and `end` are its tokens [start, end) in the document."""

    id: str
    sentence: str
    start: int
    end: int
    kind: str
    group: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Document:
    """A text, its token ids (no special tokens), the facts and the look-alikes planted in it."""

    id: str
    text: str
    token_ids: list[int]
    facts: tuple[Fact, ...]
    look_alikes: tuple[str, ...] = field(default=())


def grade(answer: str, question: Question) -> bool:
    """Whether one of the accepted answers stands in `answer` as whole words."""
    return any(contains(answer, accepted) for accepted in question.answers)


class _Drawer:
    """Draws values for slots, each pool value once a document unless a look-alike shares it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: dict[str, set[str]] = {}

    def take(self, pool: str) -> str:
        used = self.used.setdefault(pool, set())
        free = [v for v in POOLS[pool] if v not in used] or list(POOLS[pool])
        value = self.rng.choice(free)
        used.add(value)
        return value

    def value(self, template: str) -> tuple[str, tuple[str, ...]]:
        """The answer and, for a two-part one, its parts."""
        fill = {s: self.take(s) for s in slots(template)}
        text = with_numbers(template.format(**fill), self.rng)
        return text, tuple(text.split())


def _plant(kind: Kind, drawer: _Drawer) -> tuple[str, tuple[Question, ...], list[str]]:
    """Sentence, questions and look-alikes of one fact."""
    fill = {s: drawer.take(s) for s in slots(kind.sentence)}
    value, parts = drawer.value(kind.value)
    sentence = kind.sentence.format(value=value, **fill)
    answers = (value, *(a.format(*parts) for a in kind.accepted))
    questions = tuple(Question(q.format(**fill), answers) for q in kind.questions)
    others = []
    for i in range(LOOK_ALIKES):
        other = {s: drawer.take(s) for s in slots(kind.sentence)}
        if i == 0:
            other.update({s: fill[s] for s in kind.shared})
        wrong, _ = drawer.value(kind.value)
        while wrong == value:
            wrong, _ = drawer.value(kind.value)
        others.append(kind.sentence.format(value=wrong, **other))
    return sentence, questions, others


def _background(
    index: int, tokens: int, rng: random.Random, tokenizer: Any
) -> list[tuple[str, int]]:
    """Sentences with their paragraph number, at least `tokens` long, from essays of its own."""
    pool = list(essays())
    random.Random(7).shuffle(pool)
    own = pool[index::DOCUMENTS]
    rng.shuffle(own)
    sentences: list[tuple[str, int]] = []
    total, paragraph = 0, 0
    while total < tokens:
        for _, paragraphs in own:
            for p in paragraphs:
                paragraph += 1
                sentences += [(s, paragraph) for s in p]
                total += len(tokenizer(" ".join(p), add_special_tokens=False)["input_ids"]) + 1
                if total >= tokens:
                    return sentences
    return sentences


def _places(tokens: int, rng: random.Random) -> list[float]:
    """Depths (shares of the text) of the four facts: one a quarter, none in the tail."""
    last = 1 - TAIL / tokens
    depths = []
    for i in range(FACTS_A_DOCUMENT):
        low, high = i / FACTS_A_DOCUMENT + 0.02, (i + 1) / FACTS_A_DOCUMENT - 0.02
        depths.append(rng.uniform(low, min(high, last)))
    return depths


def _spread(depths: list[float], tokens: int, count: int, rng: random.Random) -> list[float]:
    """Depths for look-alikes, at least 160 tokens from every fact and from each other."""
    taken = list(depths)
    out: list[float] = []
    while len(out) < count:
        depth = rng.uniform(0.01, 0.97)
        if all(abs(depth - d) * tokens >= 160 for d in taken):
            taken.append(depth)
            out.append(depth)
    return out


def make_document(tokenizer: Any, tokens: int, index: int, seed: int = 0) -> Document:
    """One document of exactly `tokens` tokens; see `make_documents`."""
    rng = random.Random(f"{seed}/{tokens}/{index}")
    kinds = [KINDS[(index * FACTS_A_DOCUMENT + i) % len(KINDS)] for i in range(FACTS_A_DOCUMENT)]
    rng.shuffle(kinds)
    sentences = _background(index, tokens, rng, tokenizer)
    prose = f" {normalise(' '.join(s for s, _ in sentences))} "
    planted = []
    drawer = _Drawer(rng)
    for kind in kinds:
        while True:
            sentence, questions, others = _plant(kind, drawer)
            if f" {normalise(questions[0].answers[0])} " not in prose:
                break
        planted.append((kind, sentence, questions, others))
    depths = _places(tokens, rng)
    inserts = [(d, p[1]) for d, p in zip(depths, planted, strict=True)]
    others = [o for p in planted for o in p[3]]
    inserts += list(zip(_spread(depths, tokens, len(others), rng), others, strict=True))

    text = _weave(sentences, inserts, tokens, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"][:tokens]
    text = text[: offsets[-1][1]]
    facts = []
    for i, (kind, sentence, questions, _) in enumerate(planted):
        begin = text.index(sentence)
        inside = [t for t, (a, b) in enumerate(offsets) if b > begin and a < begin + len(sentence)]
        facts.append(
            Fact(f"s{seed}-{tokens}-d{index}-f{i}", sentence, inside[0], inside[-1] + 1,
                 kind.name, kind.group, questions)
        )  # fmt: skip
    return Document(
        f"s{seed}-{tokens}-d{index}", text, list(encoded["input_ids"][:tokens]),
        tuple(facts), tuple(o for o in others if o in text),
    )  # fmt: skip


def _weave(
    sentences: list[tuple[str, int]],
    inserts: list[tuple[float, str]],
    tokens: int,
    tokenizer: Any,
) -> str:
    """The background with each insert after the sentence that ends nearest to its depth."""
    lengths = [len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s, _ in sentences]
    waiting = sorted(inserts)
    out, position, last = [], 0, sentences[0][1]
    for (sentence, paragraph), length in zip(sentences, lengths, strict=True):
        out.append(("\n\n" if paragraph != last else " ") + sentence)
        last = paragraph
        position += length
        if waiting and position >= waiting[0][0] * tokens:
            _, fact = waiting.pop(0)
            out.append(" " + fact)
            position += len(tokenizer(fact, add_special_tokens=False)["input_ids"])
    return "".join(out).strip()


def make_documents(
    tokenizer: Any, tokens: int = 5_000, seed: int = 0, documents: int = DOCUMENTS
) -> list[Document]:
    """Six documents of `tokens` tokens with four facts each: 24 kinds, 96 questions.

    Each quarter of a document holds one fact, at a depth jittered by the seed; two look-alikes a
    fact (same sentence, other entities, one of them sharing the office, city, ... of the fact)
    stand elsewhere in the same document. Two facts of a document are numbers, two are names.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed).
        tokens: length of each document, at least 3,000.
        seed: other seeds give other entities, values, depths and orders.
        documents: how many, 1 to 6.

    Raises:
        ValueError: when `tokens` or `documents` is out of range or the tokenizer is a slow one.
    """
    if tokens < SHORTEST:
        raise ValueError(f"documents of at least 3,000 tokens expected, got {tokens}")
    if not 1 <= documents <= DOCUMENTS:
        raise ValueError(f"1 to {DOCUMENTS} documents expected, got {documents}")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"a fast tokenizer with offsets expected, got {type(tokenizer).__name__}")
    return [make_document(tokenizer, tokens, i, seed) for i in range(documents)]


def chosen(documents: list[Document], limit: int | None) -> dict[tuple[str, str], set[int]]:
    """Which wordings are asked of each fact: all, or the first `limit` spread over all facts."""
    order = [(w, d.id, f.id) for w in range(4) for d in documents for f in d.facts]
    out: dict[tuple[str, str], set[int]] = {}
    for wording, doc, fact in order[:limit]:
        out.setdefault((doc, fact), set()).add(wording)
    return out


def asked_about(
    documents: list[Document], asked: dict[tuple[str, str], set[int]]
) -> list[Document]:
    """The documents that `chosen` has a question about: the others need not be read."""
    names = {name for name, _ in asked}
    return [doc for doc in documents if doc.id in names]


def rank_of(fact: Fact, passages: Sequence[Any]) -> int | None:
    """The place (1 = first) of the first passage that overlaps the fact; None if none does."""
    for place, p in enumerate(passages, 1):
        if p.start < fact.end and p.end > fact.start:
            return place
    return None


def coverage(fact: Fact, passages: Sequence[Any]) -> float:
    """The share of the fact's tokens that stand in some recalled passage."""
    seen = {t for p in passages for t in range(max(p.start, fact.start), min(p.end, fact.end))}
    return len(seen) / (fact.end - fact.start)
