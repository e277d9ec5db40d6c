"""Haystacks: real text of 5,000 to 1,000,000 tokens, planted facts, four kinds of questions.

- "same words": a fact told in one sentence, asked for in its own words;
- "paraphrased": the same facts, at most one content word of the sentence in the question;
- "straddling": a fact told in two sentences with an edge of a block of 32 tokens inside, at least
  a third of it on either side;
- "two facts": two facts of one sentence are needed, a quarter of the haystack or more apart.

Each length has 108 questions of each kind, of the same kinds of facts, so that lengths compare.
Facts come in threes of a kind: each has look-alikes in its own haystack, and no two tell different
things about the same entity. Everything follows from the seed, the tokenizer and the length; the
text beyond the essays is that of the Python installation (see `texts.stream`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.texts.background import background_ids
from benchmarks.texts.everyday import WRAPPED, wrapped
from benchmarks.texts.fact_drawer import FactDrawer, MadeFact
from benchmarks.texts.facts import KINDS, Kind
from benchmarks.texts.haystack_facts import JOINED, PARAPHRASES, PHRASES, TOLD, Told
from benchmarks.texts.words import shared_words
from cmr.evaluation.words import normalise

ASKED_KINDS = ("same words", "paraphrased", "straddling", "two facts")
BLOCK = 32
THREES = 36  # kinds of facts a length, 12 of the 24 twice; three facts each: 108 questions
EACH = 3
GAP = 64  # tokens of background between two facts, at least
APART = 0.25  # of the haystack, between the two facts of one question
SHORTEST = 4_000


@dataclass(frozen=True)
class Planted:
    """A fact: its sentence, or two, is tokens [start, end) of the haystack."""

    id: str
    sentence: str
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Asked:
    """A question about a haystack.

    Attributes:
        kind: one of `ASKED_KINDS`, with WRAPPED behind it for questions inside everyday talk.
        text: the question.
        answers: the parts of the answer; all are needed (see `right`).
        facts: indices into the haystack's facts that are needed: one, or two for "two facts".
        fact_ids: their ids.
        shared: content words that stand in the question and in the needed facts.
        wording: which wording it is, "kind of fact/number" or, for two facts, how they are joined.
        accepted: for each part of the answer the spellings that count, the part itself first.
    """

    kind: str
    text: str
    answers: tuple[str, ...]
    facts: tuple[int, ...]
    fact_ids: tuple[str, ...]
    shared: int
    wording: str
    accepted: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Haystack:
    """Token ids (the text is what they decode to), planted facts and questions."""

    id: str
    token_ids: list[int]
    facts: tuple[Planted, ...]
    questions: tuple[Asked, ...]


def with_wrapped(haystack: Haystack, seed: int = 0) -> Haystack:
    """The haystack with each question once more, inside everyday talk; kinds end in WRAPPED.

    Args:
        haystack: with bare questions.
        seed: of the talk, see `everyday.talk`.
    """
    more = [
        replace(asked, kind=asked.kind + WRAPPED, text=wrapped(asked.text, number, seed))
        for number, asked in enumerate(haystack.questions)
    ]
    return replace(haystack, questions=(*haystack.questions, *more))


def right(reply: str, asked: Asked) -> bool:
    """Whether each part of the answer stands in `reply` as whole words, in an accepted spelling."""
    said = f" {normalise(reply)} "
    return all(any(f" {normalise(a)} " in said for a in part) for part in asked.accepted)


def straddles(start: int, end: int) -> bool:
    """Whether an edge between blocks leaves a third of the tokens [start, end) on both sides."""
    edge = (start // BLOCK + 1) * BLOCK
    return 3 * (edge - start) >= end - start and 3 * (end - edge) >= end - start


def _weave(
    background: list[int],
    ends: list[int],
    facts: list[tuple[list[int], bool]],
    tokens: int,
    rng: random.Random,
) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Exactly `tokens` tokens with the facts in order, and their spans; None when it fails.

    Each fact stands behind a sentence, one in each of as many equal parts of the sentences; those
    marked True move on to the next sentence that lets them straddle an edge. The last 64 tokens
    hold none, so that every passage system can show every fact.
    """
    limit = tokens - tokens % BLOCK - 2 * BLOCK
    last_end = limit - sum(len(f) for f, _ in facts) - GAP
    ends = [e for e in ends if GAP <= e <= last_end]
    out: list[int] = []
    spans = []
    taken = 0
    for i, (fact, straddling) in enumerate(facts):
        low, high = i * len(ends) // len(facts), (i + 1) * len(ends) // len(facts)
        for end in ends[rng.randrange(low, max(low + 1, high)) :]:
            start = len(out) + end - taken
            if end - taken >= GAP and (not straddling or straddles(start, start + len(fact))):
                break
        else:
            return None
        out += background[taken:end] + fact
        spans.append((start, len(out)))
        taken = end
    if len(out) > limit:
        return None
    return out + background[taken : taken + tokens - len(out)], spans


def _single(made: MadeFact, index: int, fact: Planted) -> Iterator[Asked]:
    """The questions about one fact."""
    kind, number = made.kind, made.number
    wordings: dict[str, tuple[str, ...]]
    if isinstance(kind, Told):
        wordings = {"straddling": kind.questions}
    else:
        wordings = {"same words": kind.questions, "paraphrased": PARAPHRASES[kind.name]}
    for asked, texts in wordings.items():
        which = number % len(texts)
        text = texts[which].format(**made.fill)
        yield Asked(
            asked, text, (made.value,), (index,), (fact.id,), shared_words(text, fact.sentence),
            f"{kind.name}/{which}", (made.accepted,),
        )  # fmt: skip


def _joined(
    how: str, pair: tuple[int, int], made: list[MadeFact], facts: list[Planted], rng: random.Random
) -> Asked:
    """A question that needs both facts."""
    two = [made[i] for i in pair]
    words: dict[str, str] = {}
    for letter, fact in zip("ab", two, strict=True):
        phrase, many, entity = PHRASES[fact.kind.name]
        words[letter] = phrase.format(**fact.fill)
        words["e" + letter] = entity.format(**fact.fill)
        words["q" + letter] = rng.choice(fact.kind.questions).format(**fact.fill)
        words["many"] = many
    words["qb"] = words["qb"][0].lower() + words["qb"][1:]
    text = JOINED[how].format(**words)
    if how in ("higher", "lower"):
        two = [(max if how == "higher" else min)(two, key=lambda m: int(m.value))]
    return Asked(
        "two facts", text, tuple(m.value for m in two), pair, tuple(facts[i].id for i in pair),
        shared_words(text, " ".join(facts[i].sentence for i in pair)), how,
        tuple(m.accepted for m in two),
    )  # fmt: skip


def _comparable(a: MadeFact, b: MadeFact, how: str) -> bool:
    if how in ("higher", "lower"):
        return a.kind.name == b.kind.name and a.value.isdigit()
    return how != "of one kind" or a.kind.name == b.kind.name


def _pairs(
    made: list[MadeFact], facts: list[Planted], tokens: int, hows: Iterable[str], rng: random.Random
) -> Iterator[Asked]:
    """Questions about two facts, joined as `hows` says, over facts asked for equally often."""
    single = [i for i, m in enumerate(made) if not isinstance(m.kind, Told)]
    free = [
        (a, b)
        for a in single
        for b in single
        if a < b and abs(facts[a].start - facts[b].start) >= APART * tokens
        and made[a].value not in made[b].sentence and made[b].value not in made[a].sentence
    ]  # fmt: skip
    rng.shuffle(free)
    asked: Counter[int] = Counter()
    for how in hows:
        fit = [p for p in free if _comparable(made[p[0]], made[p[1]], how)]
        if not fit:  # no two of a kind lie far enough apart
            how, fit = "pair", free
        pair = min(fit, key=lambda p: asked[p[0]] + asked[p[1]])
        free.remove(pair)
        asked.update(pair)
        yield _joined(how, rng.choice((pair, pair[::-1])), made, facts, rng)


def _haystack(
    tokenizer: Any,
    name: str,
    background: tuple[list[int], list[int]],
    tokens: int,
    threes: list[list[Kind | Told]],
    first: int,
) -> Haystack:
    """One haystack; `first` is the number of its first three of facts over all of its length."""
    rng = random.Random(f"haystack {name}")
    drawer = FactDrawer(rng)
    made: list[MadeFact] = []
    encoded: list[tuple[list[int], bool]] = []
    for kinds in threes:
        for i, kind in enumerate(kinds):
            for j in range(EACH):
                fact = drawer.make(kind, first + i + j)
                ids = tokenizer(" " + fact.sentence, add_special_tokens=False)["input_ids"]
                made.append(fact)
                encoded.append((list(ids), isinstance(kind, Told)))
    woven = None
    while woven is None:
        order = rng.sample(range(len(made)), len(made))
        woven = _weave(*background, [encoded[i] for i in order], tokens, rng)
    token_ids, spans = woven
    made = [made[i] for i in order]
    facts = [
        Planted(f"{name}-f{i}", m.sentence, start, end, m.kind.name)
        for i, (m, (start, end)) in enumerate(zip(made, spans, strict=True))
    ]
    questions = [q for i, m in enumerate(made) for q in _single(m, i, facts[i])]
    many = EACH * len(threes[0])
    hows = [list(JOINED)[(EACH * first + i) % len(JOINED)] for i in range(many)]
    questions += _pairs(made, facts, tokens, hows, rng)
    questions.sort(key=lambda q: ASKED_KINDS.index(q.kind))
    return Haystack(name, token_ids, tuple(facts), tuple(questions))


def _deck(kinds: tuple[Any, ...], rng: random.Random) -> list[Any]:
    """`THREES` kinds: all, then as many again as are missing, none twice within a half."""
    return rng.sample(kinds, len(kinds)) + rng.sample(kinds, THREES - len(kinds))


def make_haystacks(tokenizer: Any, tokens: int, seed: int = 0) -> list[Haystack]:
    """The haystacks of a length: together 108 questions of each of four kinds.

    12 below 20,000 tokens, 4 below 60,000, 2 below 500,000, then one. Their background is essays
    as long as these last, then all prose, then sources too; no two share any.

    Args:
        tokenizer: gives the ids; the ids of a fact are those of its sentence after a blank.
        tokens: length of each haystack, at least 4,000.
        seed: other seeds give other facts, entities, places and questions.

    Raises:
        ValueError: when `tokens` is too small or more than there is text for.
    """
    if tokens < SHORTEST:
        raise ValueError(f"haystacks of at least {SHORTEST:,} tokens expected, got {tokens:,}")
    many = 12 if tokens < 20_000 else 4 if tokens < 60_000 else 2 if tokens < 500_000 else 1
    rng = random.Random(f"haystacks {seed} {tokens}")
    decks: list[list[Kind | Told]] = [_deck(KINDS, rng), _deck(TOLD, rng)]
    ids, ends = background_ids(tokenizer, many * tokens, seed)
    made = []
    for i in range(many):
        begin = min((e for e in ends if e >= i * tokens), default=0) if i else 0
        stop = begin + tokens
        background = ids[begin:stop], [e - begin for e in ends if begin < e <= stop]
        share = slice(i * THREES // many, (i + 1) * THREES // many)
        threes = [deck[share] for deck in decks]
        name = f"s{seed}-{tokens}-h{i}"
        made.append(_haystack(tokenizer, name, background, tokens, threes, share.start))
    return made
