"""One long stream of real text, and the places in it that are asked for later.

Essays, language reference topics, docstrings and sources of the standard library, shuffled by
document. Three kinds of places are asked for: `planted`, facts set into the prose; `named`,
sentences of the prose itself that hold a number or a name that is rare in the stream; `random`,
places drawn blindly from all of the text.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.texts.essays import essays
from benchmarks.texts.facts import KINDS, POOLS, slots, with_numbers

KINDS_OF_PLACES = ("planted", "named", "random")
PLACES = 400  # of each kind, in a stream of a million tokens
RANDOM_TOKENS = 24  # length of a place drawn blindly: about that of a sentence
RARE = 3  # times that a name may stand in the stream's prose
FOLDERS = ("", "asyncio", "email", "json", "logging", "unittest", "xml/etree")
SENTENCE = re.compile(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+)*[.!?](?=\s)")
_NUMBER = re.compile(r"\b\d{2,}\b")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")


@dataclass(frozen=True)
class Place:
    """What is asked for later: tokens [start, end) of the stream."""

    kind: str
    start: int
    end: int


@dataclass
class Text:
    """A document of the stream; `marks` are the characters [start, end) of planted facts."""

    name: str
    text: str
    prose: bool
    marks: list[tuple[int, int]] = field(default_factory=list)


def essay_texts() -> list[Text]:
    """The essays, by name."""
    return [Text(name, "\n\n".join(" ".join(p) for p in ps), True) for name, ps in essays()]


def documents(seed: int) -> list[Text]:
    """All documents, shuffled by the seed, without planted facts."""
    found = essay_texts()
    found += [Text(f"topic {name}", text, True) for name, text in sorted(topics.items())]
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for folder in FOLDERS for path in (library / folder).glob("*.py"))
    for number, path in enumerate(paths):
        source = path.read_text(encoding="utf-8", errors="replace")
        if number % 2:  # each module once, as code or as what it says of itself
            found.append(Text(path.name, source, False))
        else:
            found.append(Text(f"docstrings in {path.name}", _docstrings(source), True))
    found = [text for text in found if len(text.text) >= 1_000]
    random.Random(seed).shuffle(found)
    return found


def _docstrings(source: str) -> str:
    named = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, named)]
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))


def _facts(rng: random.Random) -> Iterator[str]:
    """Sentences of all kinds of facts in turn, filled at random, none twice."""
    seen: set[str] = set()
    while True:
        for kind in KINDS:
            parts = {slot: rng.choice(POOLS[slot]) for slot in slots(kind.sentence)}
            value = kind.value.format(**{s: rng.choice(POOLS[s]) for s in slots(kind.value)})
            sentence = kind.sentence.format(value=with_numbers(value, rng), **parts)
            if sentence not in seen:
                seen.add(sentence)
                yield sentence


def _plant(text: Text, facts: Iterator[str], rng: random.Random, every: int) -> None:
    """Puts a fact behind a sentence of the text about every `every` characters."""
    ends = [m.end() for m in SENTENCE.finditer(text.text)]
    out, last, due = [], 0, rng.randrange(every)
    length = 0
    for end in ends:
        if end < due:
            continue
        fact = next(facts)
        out += [text.text[last:end], " ", fact]
        length += end - last + 1
        text.marks.append((length, length + len(fact)))
        length += len(fact)
        last, due = end, end + rng.randrange(every // 2, every + every // 2)
    text.text = "".join([*out, text.text[last:]])


def _named(text: Text, rare: Counter[str]) -> list[tuple[int, int]]:
    """Sentences with a number or a rare name, planted ones left out."""
    found = []
    for match in SENTENCE.finditer(text.text):
        start, end = match.span()
        if not 40 <= end - start <= 400 or any(a < end and b > start for a, b in text.marks):
            continue
        names = _NAME.findall(match[0])
        if _NUMBER.search(match[0]) or any(rare[name] <= RARE for name in names):
            found.append((start, end))
    return found


@dataclass(frozen=True)
class Stream:
    """Token ids, the places in them in order, and which tokens are prose, `[tokens]` each."""

    ids: list[int]
    places: list[Place]
    prose: list[bool]


def make_stream(tokenizer: Any, tokens: int, seed: int = 0) -> Stream:
    """The first `tokens` tokens of the stream and the places in it.

    Args:
        tokenizer: a fast one: character offsets are needed.
        tokens: length; a shorter stream is the start of a longer one.
        seed: of the documents' order, the facts and the places.

    Raises:
        ValueError: when the texts are not that long.
    """
    rng = random.Random(f"retention {seed}")
    texts = documents(seed)
    prose = sum(len(text.text) for text in texts if text.prose)
    facts = _facts(rng)
    for text in texts:
        if text.prose:
            _plant(text, facts, rng, prose // PLACES)
    rare: Counter[str] = Counter()
    for text in texts:
        rare.update(_NAME.findall(text.text) if text.prose else ())
    ids: list[int] = []
    is_prose: list[bool] = []
    found: dict[str, list[Place]] = {kind: [] for kind in KINDS_OF_PLACES}
    for text in texts:
        encoded = tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [a for a, _ in encoded["offset_mapping"]]
        for kind, spans in (("planted", text.marks), ("named", _named(text, rare))):
            if text.prose:
                found[kind] += _places(kind, spans, starts, len(ids))
        ids += encoded["input_ids"]
        is_prose += [text.prose] * len(starts)
    if len(ids) < tokens:
        raise ValueError(f"at most {len(ids):,} tokens are to be had, got {tokens:,}")
    for _ in range(PLACES):
        start = rng.randrange(len(ids) - RANDOM_TOKENS)
        found["random"].append(Place("random", start, start + RANDOM_TOKENS))
    found["named"] = rng.sample(found["named"], min(PLACES, len(found["named"])))
    places = [p for kind in found.values() for p in kind if p.end <= tokens]
    places.sort(key=lambda p: (p.start, p.kind))
    return Stream(ids[:tokens], places, is_prose[:tokens])


def _places(
    kind: str, spans: list[tuple[int, int]], starts: list[int], offset: int
) -> Iterator[Place]:
    """Spans of characters as tokens of the stream."""
    for begin, stop in spans:
        first = max(0, bisect_right(starts, begin) - 1)
        yield Place(kind, offset + first, offset + max(first + 1, bisect_left(starts, stop)))
