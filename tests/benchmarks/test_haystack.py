"""The haystacks: spans, look-alikes and the four kinds of questions hold what they promise."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.baselines import dense
from benchmarks.baselines.lexical import Lexical
from benchmarks.baselines.passages import best_passages, found, passage_texts
from benchmarks.retrieval.__main__ import measure
from benchmarks.texts import stream
from benchmarks.texts.entities import DESCRIBED, POOLS
from benchmarks.texts.everyday import PLACES, TALK, WRAPPED
from benchmarks.texts.facts import KINDS
from benchmarks.texts.haystack import (
    ASKED_KINDS,
    BLOCK,
    Asked,
    Haystack,
    _weave,
    make_haystacks,
    right,
    straddles,
    with_wrapped,
)
from benchmarks.texts.haystack_facts import (
    JOINED,
    PARAPHRASES,
    PHRASES,
    TOLD,
)
from benchmarks.texts.words import content_words, shared_words

TOKENS = 5_000
TOLD_KINDS = {told.name for told in TOLD}


@pytest.fixture(scope="module")
def tokenizer(smollm2: tuple[Any, Any]) -> Any:
    return smollm2[1]


@pytest.fixture(scope="module", autouse=True)
def prose() -> Iterator[None]:
    """Sixteen made-up essays in place of the downloaded ones, no two sentences alike."""
    rng = random.Random(0)
    words = sorted(set(" ".join(" ".join(content_words(k.sentence)) for k in TOLD).split()))
    words += ["while", "because", "of", "with", "the", "and", "for", "some", "people", "who", "it"]

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(8, 24))).capitalize() + "."

    made = tuple(
        (f"essay {i}", tuple(tuple(sentence() for _ in range(6)) for _ in range(40)))
        for i in range(16)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "essays", lambda: made)
        yield


@pytest.fixture(scope="module")
def made(tokenizer: Any, prose: None) -> list[Haystack]:
    return make_haystacks(tokenizer, TOKENS)


def asked(made: list[Haystack], kind: str) -> list[tuple[Haystack, Asked]]:
    return [(h, q) for h in made for q in h.questions if q.kind == kind]


def test_every_question_is_asked_once_more_inside_everyday_talk(made: list[Haystack]) -> None:
    both = [with_wrapped(h) for h in made]
    kinds = Counter(q.kind for h in both for q in h.questions)
    assert kinds == dict.fromkeys([*ASKED_KINDS, *(k + WRAPPED for k in ASKED_KINDS)], 108)
    places = Counter()
    for h, bare in zip(both, made, strict=True):
        assert h.questions[: len(bare.questions)] == bare.questions
        for asked, plain in zip(h.questions[len(bare.questions) :], bare.questions, strict=True):
            assert asked.facts == plain.facts and asked.answers == plain.answers
            for place in PLACES:
                places[place] += asked.text in [t.around(plain.text) for t in TALK[0][place]]
    assert places == dict.fromkeys(PLACES, 144)


def test_wrapped_kinds_have_rows_and_a_mean_of_their_own(tokenizer: Any, prose: None) -> None:
    args = SimpleNamespace(haystacks=1, seed=0, wrapped=True)
    found, depths = measure(TOKENS, ["bm25"], None, tokenizer, args)
    by_kind = {row["kind"]: row["read@2"] for row in found}
    assert list(by_kind) == [
        *ASKED_KINDS, "mean", *(kind + WRAPPED for kind in ASKED_KINDS), "mean" + WRAPPED
    ]  # fmt: skip
    assert by_kind["mean" + WRAPPED] < by_kind["mean"]
    assert sum(row["questions"] for row in depths) == 36  # those of the bare questions


def test_each_kind_is_asked_108_times_and_nothing_twice(made: list[Haystack]) -> None:
    assert Counter(q.kind for h in made for q in h.questions) == dict.fromkeys(ASKED_KINDS, 108)
    for h in made:
        assert len({q.text for q in h.questions}) == len(h.questions)
    assert {q.wording.split("/")[0] for _, q in asked(made, "same words")} == {
        k.name for k in KINDS
    }
    assert {q.wording for _, q in asked(made, "two facts")} == set(JOINED)


def test_the_seed_decides(tokenizer: Any, made: list[Haystack]) -> None:
    assert make_haystacks(tokenizer, TOKENS) == made
    other = make_haystacks(tokenizer, TOKENS, seed=1)
    assert all(a.token_ids != b.token_ids for a, b in zip(made, other, strict=True))
    said, new = ({f.sentence for h in hs for f in h.facts} for hs in (made, other))
    assert len(said & new) < 0.05 * len(said)


def test_spans_hold_the_facts_and_the_tail_holds_none(tokenizer: Any, made: list[Haystack]) -> None:
    for h in made:
        assert len(h.token_ids) == TOKENS
        for fact in h.facts:
            text = tokenizer.decode(h.token_ids[fact.start : fact.end])
            assert text == " " + fact.sentence
            assert fact.end <= TOKENS - 2 * BLOCK
        spans = sorted((f.start, f.end) for f in h.facts)
        assert all(a[1] + 64 <= b[0] for a, b in itertools.pairwise(spans))


def test_background_is_not_shared(made: list[Haystack]) -> None:
    pieces = [{tuple(h.token_ids[i : i + 64]) for i in range(len(h.token_ids) - 64)} for h in made]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(pieces, 2))


def test_every_fact_has_look_alikes_and_no_entity_is_told_twice(made: list[Haystack]) -> None:
    for h in made:
        for count in Counter(f.kind for f in h.facts).values():
            assert count == 3
        singles = [q for q in h.questions if q.kind in ("same words", "straddling")]
        by_kind: dict[str, list[str]] = {}
        for q in singles:
            by_kind.setdefault(h.facts[q.facts[0]].kind, []).append(q.answers[0])
        assert all(len(set(values)) == len(values) for values in by_kind.values())


def test_an_answer_is_in_its_own_fact_only(made: list[Haystack]) -> None:
    for h, q in [*asked(made, "same words"), *asked(made, "straddling")]:
        fact = h.facts[q.facts[0]]
        assert right(fact.sentence, q)
        others = [f.sentence for f in h.facts if f.kind == fact.kind and f is not fact]
        assert not any(right(sentence, q) for sentence in others)


def test_paraphrases_share_at_most_one_content_word_a_third_none(made: list[Haystack]) -> None:
    counts = []
    for h, q in asked(made, "paraphrased"):
        sentence = h.facts[q.facts[0]].sentence
        counts.append(len(content_words(q.text) & content_words(sentence)))
        assert counts[-1] == q.shared <= 1, (q.text, sentence)
    assert counts.count(0) >= len(counts) / 3


def test_no_filling_of_a_paraphrase_shares_two_content_words() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for wording in PARAPHRASES[kind.name]:
            for _ in range(40):
                fill = {slot: rng.choice(pool) for slot, pool in POOLS.items()}
                value = kind.value.format(**{s: rng.choice(p) for s, p in POOLS.items()})
                fill.update(
                    {f"other_{s}": names[fill[s]] for s, names in DESCRIBED.items()
                     if fill[s] in names}
                )  # fmt: skip
                question = wording.format(**fill)
                sentence = kind.sentence.format(value=value, **fill)
                names = content_words(fill["last"] + " " + fill["town"])
                assert shared_words(question, sentence) <= 1, (question, sentence)
                if shared_words(question, sentence) and not names & content_words(question):
                    assert kind.name in ("password", "length", "year"), (question, sentence)


def test_content_words_leave_out_function_words_and_endings() -> None:
    assert content_words("What does Maria's dog do in the gardens?") == {"maria", "dog", "garden"}
    assert shared_words("Who played the harps?", "She plays a harp.") == 2
    assert shared_words("Where did they live?", "They grew up there.") == 0


def test_straddling_facts_lie_over_an_edge(made: list[Haystack]) -> None:
    for h, q in asked(made, "straddling"):
        fact = h.facts[q.facts[0]]
        assert fact.kind in TOLD_KINDS
        length = fact.end - fact.start
        assert 22 <= length <= 40
        sides = [
            (edge - fact.start, fact.end - edge)
            for edge in range(0, TOKENS, BLOCK)
            if fact.start < edge < fact.end
        ]
        assert len(sides) == 1 and 3 * min(sides[0]) >= length


def test_a_straddling_question_shares_words_with_both_sentences(made: list[Haystack]) -> None:
    for h, q in asked(made, "straddling"):
        first, second = h.facts[q.facts[0]].sentence.split(". ", 1)
        assert shared_words(q.text, first) and shared_words(q.text, second), q.text
        assert not right(first, q) and right(second, q)


def test_straddles_needs_a_third_on_both_sides() -> None:
    assert [s for s in range(64) if straddles(s, s + 24)] == [*range(16, 25), *range(48, 57)]


def test_two_facts_lie_apart_and_both_are_needed(made: list[Haystack]) -> None:
    for h, q in asked(made, "two facts"):
        a, b = (h.facts[i] for i in q.facts)
        assert q.fact_ids == (a.id, b.id)
        assert abs(a.start - b.start) >= TOKENS / 4
        assert right(f"{a.sentence} {b.sentence}", q)
        if q.wording in ("higher", "lower"):
            values = [_value(h, i) for i in q.facts]
            wanted = max(values, key=int) if q.wording == "higher" else min(values, key=int)
            assert q.answers == (wanted,)
        else:
            assert q.answers == tuple(_value(h, i) for i in q.facts)
            assert not right(a.sentence, q) and not right(b.sentence, q)


def _value(h: Haystack, index: int) -> str:
    return next(q.answers[0] for q in h.questions if q.facts == (index,))


def test_each_kind_of_fact_has_its_wordings() -> None:
    names = {k.name for k in KINDS}
    assert names == set(PARAPHRASES) == set(PHRASES)
    assert len(TOLD_KINDS) == 24 and not TOLD_KINDS & names


def test_a_date_counts_in_another_spelling() -> None:
    date = Asked("two facts", "", ("May 5", "402"), (0, 1), ("a", "b"), 0, "pair",
                 (("May 5", "5 May", "5th of May"), ("402",)))  # fmt: skip
    assert right("On the 5th of May, and 402.", date)
    assert not right("On the 5th of May.", date)


def test_weaving_gives_up_where_no_sentence_fits() -> None:
    fact = [7] * 24
    background, rng = list(range(1_000)), random.Random(0)
    # behind every multiple of 32 a fact starts at an edge: it cannot straddle one
    ends = list(range(96, 800, 32))
    assert _weave(background, ends, [(fact, True)], 1_000, rng) is None
    woven = _weave(background, [e + 20 for e in ends], [(fact, True)], 1_000, rng)
    assert woven is not None
    ids, ((start, end),) = woven
    assert ids[start:end] == fact and len(ids) == 1_000
    assert ids[:start] + ids[end:] == background[: 1_000 - 24]
    # no room behind it for the block after next: some systems could not show it whole
    assert _weave(background, [928 - 24], [(fact, False)], 1_000, rng) is None


def test_a_length_out_of_range_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="at least 4,000 tokens expected, got 3,999"):
        make_haystacks(tokenizer, 3_999)


def test_best_passages_do_not_overlap() -> None:
    scores = np.array([0.0, 5.0, 4.0, 3.0, 3.5, 5.0, -np.inf])
    assert best_passages(scores, 4) == [1, 5, 3]  # 2 and 4 overlap better ones, 0 overlaps 1
    assert best_passages(scores, 0) == []
    assert best_passages(np.zeros(0), 2) == []
    with pytest.raises(ValueError, match="none NaN"):
        best_passages(np.array([0.0, np.nan]), 1)


@pytest.mark.parametrize(
    ("start", "end", "passages", "hit"),
    [
        (64, 128, [2], True),
        (63, 128, [2], False),
        (64, 129, [2], False),
        (100, 140, [2, 4], True),  # half of it in each
        (100, 140, [2, 5], False),
        (100, 140, [], False),
    ],
)
def test_a_fact_is_found_when_all_of_it_is_shown(
    start: int, end: int, passages: list[int], hit: bool
) -> None:
    class Tokens:
        pass

    fact: Any = Tokens()
    fact.start, fact.end = start, end
    assert found(fact, passages) is hit


def test_the_lexical_baseline_finds_same_words(tokenizer: Any, made: list[Haystack]) -> None:
    pytest.importorskip("bm25s")
    h = made[0]
    texts = passage_texts(tokenizer, h.token_ids)
    assert len(texts) == 155
    index = Lexical(texts)
    hits = []
    for q in h.questions:
        scores = index.scores(q.text)
        assert scores.shape == (155,)
        if q.kind == "same words":
            hits.append(found(h.facts[q.facts[0]], best_passages(scores, 1)))
    assert sum(hits) >= 0.75 * len(hits)
    assert not index.scores("zzyzx qwrtp").any()


def test_an_embedding_does_not_depend_on_what_else_is_embedded(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    model = BertModel(config).eval()
    monkeypatch.setattr(tokenizer, "padding_side", "right")
    monkeypatch.setattr(dense, "_model", lambda: (tokenizer, model))
    monkeypatch.setattr(dense, "BATCH", 2)
    texts = ["A long text of many words that is padded by nobody.", "Short.", "And one more."]
    together = dense.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            mean = model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


def test_embeddings_are_kept_by_what_the_passages_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        embedded.append(texts)
        return np.eye(2, dtype=np.float32)[: len(texts)]

    monkeypatch.setenv("CMR_CACHE", str(tmp_path))
    monkeypatch.setattr(dense, "embed", embed)
    for texts in (["ab", "c"], ["ab", "c"], ["a", "bc"]):
        assert dense.Dense(texts).vectors.shape == (2, 2)
    assert embedded == [["ab", "c"], ["a", "bc"]]
    assert dense.Dense(["ab", "c"]).scores("?").tolist() == [1.0, 0.0]
