"""Retrieval of entries: what is found, whose it is, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import RetrievalConfig
from cmr.errors import ConfigError, ModelMismatchError
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.entry import MemoryEntry
from cmr.retrieval.ask import Ask, Scored, Searched
from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever
from cmr.retrieval.entries.context import RetrievalContext
from cmr.retrieval.strategies.criteria import MultiCriteriaRanker
from cmr.retrieval.strategies.semantic import SemanticMemoryMatcher
from tests.kernels.helpers.compare import assert_close

HIDDEN, LAYER = 8, 4
SPEC = {
    "similarity_threshold": 0.7,
    "context_heads": 8,
    "max_clusters": 32,
    "cache_size": 1000,
    "criteria_weights": {"relevance": 0.4, "similarity": 0.3, "recency": 0.2, "diversity": 0.1},
}


class Everything:
    """A strategy that wants all blocks alike, whoever owns them."""

    def score(self, ask: Ask, store: Searched) -> Scored:
        return Scored(torch.full((len(ask.sessions), store.high_water), 1e9))


def made(**config: Any) -> tuple[LayeredMemoryBuffer, AdvancedMemoryRetriever]:
    """20 entries of sequence 1 in LAYER, and others of sequence 2 and of another layer."""
    buffer = LayeredMemoryBuffer(100, 1000)
    for i in range(20):
        for layer, sequence in ((LAYER, 1), (LAYER, 2), (LAYER + 1, 1)):
            buffer.store_state(torch.randn(HIDDEN), layer, sequence, i, float(torch.rand(())))
    return buffer, AdvancedMemoryRetriever(HIDDEN, buffer, config)


def context(states: torch.Tensor | None = None, **changed: Any) -> RetrievalContext:
    states = torch.randn(3, HIDDEN) if states is None else states
    return replace(RetrievalContext(1, LAYER, states), **changed)


def held(buffer: LayeredMemoryBuffer) -> list[MemoryEntry]:
    return [e for e in buffer.retrieve_by_layer(LAYER) if e.sequence_id == 1]


def cosine(entry: MemoryEntry, states: torch.Tensor) -> float:
    return float(F.cosine_similarity(states, entry.hidden_state, dim=-1).max())


def names(entries: list[MemoryEntry]) -> list[float]:
    return [entry.timestamp for entry in entries]


def test_semantic_similarity_finds_the_most_alike() -> None:
    buffer, retriever = made()
    states = torch.randn(3, HIDDEN)
    have = retriever.retrieve_memories(context(states), "semantic_similarity")
    want = sorted(held(buffer), key=lambda entry: -cosine(entry, states))[:10]
    assert names(have) == names(want)
    assert names(retriever.retrieve_memories(context(states), "maxsim")) == names(want)


def test_multi_criteria_ranks_by_what_is_stored() -> None:
    weights = {"relevance": 0.3, "similarity": 0.3, "recency": 0.3, "diversity": 0.1}
    buffer, retriever = made(criteria_weights=weights)
    states = torch.randn(3, HIDDEN)
    have = retriever.retrieve_memories(context(states), "multi_criteria")
    entries = held(buffer)
    found = MultiCriteriaRanker(weights).rank(
        torch.tensor([[cosine(entry, states) for entry in entries]]),
        torch.tensor([entry.relevance_score for entry in entries]),
        torch.tensor([int(entry.timestamp) for entry in entries]),
        torch.ones(1, len(entries), dtype=torch.bool),
        k=10,
        profiles=F.normalize(torch.stack([e.hidden_state for e in entries]), dim=-1).t()[None],
    )
    assert names(have) == names([entries[i] for i in found.slots[0].tolist()])


@pytest.mark.parametrize(
    ("criterion", "by"),
    [("relevance", lambda e: -e.relevance_score), ("recency", lambda e: -e.timestamp)],
)
def test_a_criterion_alone_orders_the_entries(criterion: str, by) -> None:
    buffer, retriever = made(strategy="multi_criteria", criteria_weights={criterion: 3})
    have = retriever.retrieve_memories(context(retrieval_budget=20))
    assert names(have) == names(sorted(held(buffer), key=by))


def test_nothing_below_the_threshold_is_found() -> None:
    buffer, retriever = made(similarity_threshold=0.5)
    retriever.register("everything", lambda parts: Everything())
    for _ in range(5):
        states = torch.randn(3, HIDDEN)
        above = [entry for entry in held(buffer) if cosine(entry, states) >= 0.5]
        assert 0 < len(above) < 20
        for strategy in retriever.strategies:
            have = retriever.retrieve_memories(context(states, retrieval_budget=20), strategy)
            assert sorted(names(have)) == names(above), strategy


def test_tokens_that_do_not_ask_count_for_nothing() -> None:
    _, retriever = made()
    states = torch.randn(2, 3, HIDDEN)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    have = retriever.retrieve_memories(context(states, attention_mask=mask), "multi_criteria")
    want = retriever.retrieve_memories(context(states[mask.bool()]), "multi_criteria")
    assert names(have) == names(want)
    nobody = context(states, attention_mask=torch.zeros(2, 3))
    assert retriever.retrieve_memories(nobody, "multi_criteria") == []


def test_the_text_itself_is_left_out() -> None:
    _, retriever = made()
    retriever.register("everything", lambda parts: Everything())
    for strategy in retriever.strategies:
        have = retriever.retrieve_memories(
            context(sequence_position=5, retrieval_budget=20), strategy
        )
        assert sorted(entry.position_idx for entry in have) == [0, 1, 2, 3, 4]


def test_the_spec_s_settings_are_taken() -> None:
    _, retriever = made(**SPEC)
    assert retriever.config.max_clusters == 32 and retriever.config.context_heads == 8
    assert retriever.semantic_matcher.similarity_threshold == 0.7
    assert retriever.retrieval_cache.size == 1000
    assert retriever.multi_criteria_ranker.weights == pytest.approx(SPEC["criteria_weights"])
    same = AdvancedMemoryRetriever(HIDDEN, retriever.memory_buffer, RetrievalConfig(**SPEC))
    assert same.config == retriever.config
    named = AdvancedMemoryRetriever(
        HIDDEN, retriever.memory_buffer, {"retrieval_strategy": "multi_criteria"}
    )
    assert named.config.strategy == "multi_criteria"


def test_nothing_is_found_of_nothing() -> None:
    buffer, retriever = made()
    for strategy in retriever.strategies:
        for nothing in (
            context(retrieval_budget=0),
            context(current_sequence_id=3),
            context(current_layer_idx=9),
            context(torch.empty(0, HIDDEN)),
        ):
            assert retriever.retrieve_memories(nothing, strategy) == []
        empty = AdvancedMemoryRetriever(HIDDEN, LayeredMemoryBuffer())
        assert empty.retrieve_memories(context(), strategy) == []
    buffer.clear_all()
    assert retriever.retrieve_memories(context()) == []


@pytest.mark.parametrize(
    ("changed", "strategy", "error", "says"),
    [
        ({}, "multi_criterai", ConfigError, "did you mean 'multi_criteria'"),
        ({}, "best", ConfigError, "strategy: one of 'maxsim'"),
        ({}, 7, ConfigError, "got 7"),
        ({"retrieval_budget": -1}, None, ConfigError, "retrieval_budget: an integer of at least 0"),
        ({"current_sequence_id": -1}, None, ConfigError, "current_sequence_id"),
        ({"current_layer_idx": 1.5}, None, ConfigError, "current_layer_idx"),
        ({"sequence_position": -2}, None, ConfigError, "sequence_position"),
        ({"task_type": 3}, None, ConfigError, "task_type: a name or None expected, got 3"),
        (
            {"current_hidden_states": torch.zeros(3, HIDDEN + 1)}, None,
            ModelMismatchError, f"hidden size {HIDDEN} expected, got {HIDDEN + 1}",
        ),
        ({"current_hidden_states": torch.zeros(HIDDEN)}, None, ValueError, r"\[tokens, hidden\]"),
        ({"current_hidden_states": torch.zeros(2, HIDDEN).long()}, None, TypeError, "floats"),
        ({"current_hidden_states": [0.0] * HIDDEN}, None, TypeError, "got list"),
        (
            {"current_hidden_states": torch.full((1, HIDDEN), torch.nan)}, None,
            ValueError, "finite values expected",
        ),
        ({"attention_mask": torch.ones(4)}, None, ValueError, r"\[3\] expected, got \[4\]"),
        ({"attention_mask": [1, 1, 1]}, None, TypeError, "attention_mask: a tensor expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_counted(
    changed: dict[str, Any], strategy: Any, error: type[Exception], says: str
) -> None:
    buffer, retriever = made(cache_size=5)
    before = retriever.get_retrieval_stats(), buffer.get_buffer_stats()
    with pytest.raises(error, match=says):
        retriever.retrieve_memories(context(**changed), strategy)
    assert (retriever.get_retrieval_stats(), buffer.get_buffer_stats()) == before


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"similarity_treshold": 0.7}, "did you mean 'similarity_threshold'"),
        ({"similarity_threshold": 1.7}, "similarity_threshold"),
        ({"criteria_weights": {"relevance": -1}}, "criteria_weights"),
        ({"cache_size": -1}, "cache_size"),
        ({"budget": 64}, "unknown setting budget"),
        ({"window": 64}, "fields of RetrievalConfig"),
        (7, "a dict expected, got int"),
    ],
)
def test_bad_settings_are_refused(config: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AdvancedMemoryRetriever(HIDDEN, LayeredMemoryBuffer(), config)


def test_other_things_than_a_buffer_or_a_context_are_refused() -> None:
    with pytest.raises(TypeError, match="a LayeredMemoryBuffer expected, got dict"):
        AdvancedMemoryRetriever(HIDDEN, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a RetrievalContext expected, got Tensor"):
        made()[1].retrieve_memories(torch.zeros(1))  # type: ignore[arg-type]
    buffer = LayeredMemoryBuffer()
    buffer.store_state(torch.zeros(HIDDEN + 1), LAYER, 1)
    with pytest.raises(ModelMismatchError, match=f"layer {LAYER}: hidden size {HIDDEN} expected"):
        AdvancedMemoryRetriever(HIDDEN, buffer).retrieve_memories(context())


def test_what_is_found_counts_as_used() -> None:
    """A cached answer too; and what is given are copies of what is stored now."""
    buffer, retriever = made(cache_size=5)
    question = context(retrieval_budget=4)
    for times in (1, 2, 3):
        have = retriever.retrieve_memories(question)
        used = [entry for entry in held(buffer) if entry.access_count >= times]
        assert set(names(have)) <= set(names(used))
        have[0].hidden_state.zero_()
    assert retriever.get_retrieval_stats()["cache"]["hits"] == 2
    assert retriever.retrieve_memories(question)[0].hidden_state.any()


def test_an_answer_is_of_its_own_question_and_of_the_buffer_as_it_is() -> None:
    buffer, retriever = made(cache_size=50)
    plain = AdvancedMemoryRetriever(HIDDEN, buffer)
    states = torch.randn(3, HIDDEN)
    questions = [
        context(states),
        context(states, retrieval_budget=3),
        context(states, current_layer_idx=LAYER + 1),
        context(states, current_sequence_id=2),
        context(states, sequence_position=4),
        context(states, attention_mask=torch.tensor([1, 0, 0])),
    ]
    first = [names(retriever.retrieve_memories(question)) for question in questions]
    assert len({tuple(found) for found in first}) == len(questions)
    for layer in (LAYER, LAYER, LAYER + 1, LAYER + 1):
        again = [names(retriever.retrieve_memories(question)) for question in questions]
        assert again == [names(plain.retrieve_memories(question)) for question in questions]
        buffer.store_state(states, layer, 1, 3)
        buffer.clear_sequence(7)  # nobody: nothing changes
    assert retriever.get_retrieval_stats()["cache"]["hits"] == len(questions)
    last = [names(retriever.retrieve_memories(question)) for question in questions]
    assert last == [names(plain.retrieve_memories(question)) for question in questions]
    assert all(found != before for found, before in zip(last[:3], first[:3], strict=True))


def test_statistics_are_true() -> None:
    buffer, retriever = made(cache_size=5)
    question = context(retrieval_budget=4)
    for strategy in ("multi_criteria", "multi_criteria", "semantic_similarity"):
        retriever.retrieve_memories(question, strategy)
    retriever.retrieve_memories(context(retrieval_budget=0))
    stats = retriever.get_retrieval_stats()
    assert stats["by_strategy"] == {"multi_criteria": 2, "maxsim": 2}
    assert {name: stats[name] for name in ("retrievals", "hits", "retrieved", "hit_rate")} == {
        "retrievals": 4, "hits": 3, "retrieved": 12, "hit_rate": 0.75,
    }  # fmt: skip
    assert stats["seconds"] > 0
    assert stats["cache"]["hits"] == 1 and stats["cache"]["entries"] == 2
    buffer.clear_sequence(2)
    cache = retriever.get_retrieval_stats()["cache"]
    assert cache["entries"] == 0 and cache["invalidations"] == 2
    retriever.retrieve_memories(question)
    assert retriever.clear_cache() == 1


def test_another_strategy_under_a_name_is_asked_anew() -> None:
    _, retriever = made(cache_size=5)
    question = context(retrieval_budget=20)
    retriever.register("mine", lambda parts: retriever.semantic_matcher)
    first = retriever.retrieve_memories(question, "mine")
    retriever.register("mine", lambda parts: Everything())
    assert names(first) != names(retriever.retrieve_memories(question, "mine"))


def test_scores_of_another_shape_are_refused() -> None:
    class Wrong:
        def score(self, ask: Ask, store: Searched) -> Scored:
            return Scored(torch.zeros(1, 1))

    _, retriever = made()
    retriever.register("wrong", lambda parts: Wrong())
    with pytest.raises(ValueError, match=r"scores: \[1, 40\] expected of Wrong, got \[1, 1\]"):
        retriever.retrieve_memories(context(), "wrong")


def test_a_given_scorer_is_the_contextual_strategy() -> None:
    buffer, _ = made()
    retriever = AdvancedMemoryRetriever(HIDDEN, buffer, scorer=Everything())
    assert isinstance(retriever.strategy("contextual_relevance"), Everything)
    have = retriever.retrieve_memories(context(retrieval_budget=30), "contextual_relevance")
    assert {(entry.sequence_id, entry.layer_idx) for entry in have} == {(1, LAYER)}
    assert len(have) == 20


STEPS = st.one_of(
    st.tuples(st.just("store"), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("clear"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("ask"), st.integers(0, 2), st.integers(0, 4)),
    st.tuples(st.just("ask"), st.integers(0, 1), st.just(3)),
)


@settings(max_examples=35, deadline=None)
@given(steps=st.lists(STEPS, min_size=4, max_size=25), size=st.integers(0, 4))
def test_no_strategy_and_no_cache_gives_away_another_sequence(
    steps: list[tuple[str, int, int]], size: int
) -> None:
    """Whatever was stored, evicted, put into 8 bits and cleared; and no answer is a stale one."""
    torch.manual_seed(0)
    buffer = LayeredMemoryBuffer(6, 9, recent=2, working=2, reduce_long_term=True)
    config = {"cache_size": size, "similarity_threshold": -0.2}
    retriever = AdvancedMemoryRetriever(HIDDEN, buffer, config)
    plain = AdvancedMemoryRetriever(HIDDEN, buffer, {**config, "cache_size": 0})
    for each in (retriever, plain):
        each.register("everything", lambda parts: Everything())
    secret, position = torch.randn(3, HIDDEN), 0
    for what, sequence, of in steps:
        layer = LAYER + sequence % 2
        if what == "store":
            states = secret[sequence] + 0.1 * torch.randn(of, HIDDEN)
            buffer.store_state(states, layer, sequence, position)
            buffer.store_state(states, LAYER, sequence, position)
            position += of
        elif what == "clear":
            buffer.clear_sequence(sequence)
        else:
            asked = RetrievalContext(sequence, layer, secret, retrieval_budget=of)
            for strategy in retriever.strategies:
                have = retriever.retrieve_memories(asked, strategy)
                assert len(have) <= of
                for entry in have:
                    assert (entry.sequence_id, entry.layer_idx) == (sequence, layer)
                    assert cosine(entry, secret) >= -0.2 - 1e-6
                assert names(have) == names(plain.retrieve_memories(asked, strategy))


# -- the matcher alone ----------------------------------------------------------------------------


def test_the_matcher_takes_the_best_token() -> None:
    query, entries = torch.randn(2, 4, HIDDEN), torch.randn(6, HIDDEN)
    query[1, 0] = 3 * entries[2]
    entries[5] = 0
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    have = SemanticMemoryMatcher(HIDDEN)(query, entries, mask)
    cosines = F.cosine_similarity(query[:, :, None], entries, dim=-1)
    cosines[1, [1, 3]] = -torch.inf
    assert_close("similarities", have, cosines.amax(1), 1e-5, 1e-5)
    assert have[1].argmax() == 2 and have[1, 2] == pytest.approx(1.0)
    batched = SemanticMemoryMatcher(HIDDEN)(query, entries.expand(2, -1, -1), mask)
    assert_close("a batch of entries", batched, have, 1e-6, 1e-6)
    floor = SemanticMemoryMatcher(HIDDEN, 0.3)(query, entries, mask)
    assert torch.equal(floor > -torch.inf, have >= 0.3)
    nobody = SemanticMemoryMatcher(HIDDEN)(query, entries, torch.zeros_like(mask))
    assert (nobody == -torch.inf).all()


@pytest.mark.parametrize(
    ("query", "entries", "says"),
    [
        (torch.zeros(2, 3, 7), torch.zeros(4, HIDDEN), "query: hidden size 8 expected, got 7"),
        (torch.zeros(2, 3, 8), torch.zeros(4, 9), "entries: hidden size 8 expected, got 9"),
        (torch.zeros(3, 8), torch.zeros(4, 8), r"query: \[batch, tokens, hidden\] expected"),
        (torch.zeros(2, 3, 8), torch.zeros(3, 4, 8), "a batch of 2 expected, got 3"),
    ],
)
def test_the_matcher_refuses_what_does_not_fit(
    query: torch.Tensor, entries: torch.Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        SemanticMemoryMatcher(HIDDEN)(query, entries)
