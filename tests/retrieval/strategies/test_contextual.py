"""Several heads: what each compares, and what becomes of passages that a head cannot judge."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmr.errors import ConfigError, ModelMismatchError
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.retrieval import Calibration
from cmr.retrieval.ask import visible
from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever
from cmr.retrieval.entries.context import RetrievalContext
from cmr.retrieval.strategies.contextual import (
    HEAD_WEIGHT,
    Contextual,
    ContextualRelevanceScorer,
    _maxima,
)
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.semantic import Semantic
from tests.kernels.helpers.compare import assert_close
from tests.retrieval.stored import BLOCK, GROUPS, HEADS, HIDDEN, LAYER, question, store_of, write

MODEL = Calibration("tiny", "-", 1, heads=((LAYER, 3),))


def lines_of(maxima: torch.Tensor, power: int) -> torch.Tensor:
    """Passages of one session's consecutive blocks, of `[tokens, blocks]` maxima, by the book."""
    z = (maxima - maxima.mean(-1, keepdim=True)) / maxima.std(-1, correction=0, keepdim=True)
    pair = torch.cat([torch.maximum(z[:, :-1], z[:, 1:]), z[:, -1:]], -1)
    weights = pair.amax(-1).clamp(min=0) ** power
    return (weights[:, None] * pair).sum(0) / weights.sum()


def test_slices_are_centred_standardised_and_averaged() -> None:
    store, heads = store_of(20), 4
    write(store, [0] * 12, torch.randn(12, BLOCK, HIDDEN) + 3.0)
    ask = question([0], tokens=5, located=True)
    stored = store.index[:12].double()
    centre = stored.mean((0, 1))
    query = F.normalize(ask.states[0].double(), dim=-1) - centre
    total = torch.zeros(5, 12, dtype=torch.float64)
    for part, of in zip(query.chunk(heads, -1), (stored - centre).chunk(heads, -1), strict=True):
        cosines = F.normalize(part, dim=-1) @ F.normalize(of, dim=-1).flatten(0, 1).T
        maxima = cosines.view(5, 12, BLOCK).amax(-1)
        total += (maxima - maxima.mean(-1, keepdim=True)) / maxima.std(
            -1, correction=0, keepdim=True
        )
    have = ContextualRelevanceScorer(HIDDEN, heads).score(ask, store).passages[0]
    assert_close("line", have, lines_of(total, 1).float(), 1e-4, 1e-4)


def test_one_large_feature_does_not_rule() -> None:
    """All tokens share one large feature; the asked one differs in the others."""
    store, states = store_of(20), 0.3 * torch.randn(20, BLOCK, HIDDEN)
    states[..., 0] = 20.0 + torch.randn(20, BLOCK)
    write(store, [0] * 20, states)
    asked = states[[11]].clone()
    asked[..., 0] = 5.0
    found = ContextualRelevanceScorer(HIDDEN).score(question([0], BLOCK, states=asked), store)
    assert int(found.passages[0].argmax()) in (10, 11)


def test_a_width_that_is_no_multiple_of_the_heads_is_taken() -> None:
    store = store_of(20)
    write(store, [0] * 12)
    found = ContextualRelevanceScorer(HIDDEN, 5).score(question([0]), store)
    assert found.passages.isfinite().all()


def test_the_models_heads_add_what_they_say() -> None:
    """With the head's own keys in order and states that say nothing, the head decides."""
    store = store_of(20)
    keys = torch.randn(20, GROUPS, BLOCK, 8)
    write(store, [0] * 20, torch.ones(20, BLOCK, HIDDEN), keys=keys)
    noise = torch.randn(1, HEADS, 4, 8)
    ask = question([0], 4, heads={LAYER: noise.clone()})
    common = 5 * torch.randn(8)
    ask.heads[LAYER][0, 3] = keys[6, 1] - keys[6, 1].mean(0) + common
    known, maxima = _maxima(ask, store, ask.heads[LAYER][:, 3], store.keys[LAYER][:, 1])
    assert known.all() and maxima.shape == (1, 4, 20)
    centred = F.normalize(keys[6, 1] - keys[6, 1].mean(0), dim=-1)
    want = torch.einsum("qd,ntd->qnt", centred, keys[:, 1]).amax(-1)
    assert_close("maxima", maxima[0], want, 1e-5, 1e-4)


def test_the_line_is_the_semantic_one_and_a_share_of_each_head() -> None:
    store = store_of(20)
    write(store, [0] * 20)
    ask = question([0], located=True)
    maxima = _maxima(ask, store, ask.heads[LAYER][:, 3], store.keys[LAYER][:, 1])[1][0]
    want = Semantic(MODEL).score(ask, store).passages[0] + HEAD_WEIGHT * lines_of(maxima, 1)
    have = Contextual(MODEL).score(ask, store)
    assert_close("line", have.passages[0], want, 1e-4, 1e-4)
    assert torch.equal(have.certainty, Semantic(MODEL).score(ask, store).certainty)


def test_a_passage_without_keys_is_found_by_its_states() -> None:
    store = store_of(6, working=10)
    write(store, [0] * 5)
    write(store, [0] * 5)  # the first ones sink, and their keys are elsewhere
    ask = question([0], BLOCK)
    sunk = visible(ask, store)[0].nonzero()[:, 0]
    sunk = sunk[sunk >= 6]
    assert len(sunk) >= 3
    semantic = Semantic(MODEL).score(ask, store).passages[0]
    have = Contextual(MODEL).score(ask, store).passages[0]
    assert_close("line", have[sunk], semantic[sunk] * (1 + HEAD_WEIGHT), 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("calibration", "heads"),
    [(None, True), (MODEL, False), (Calibration("tiny", "-", 1, heads=((7, 0),)), True)],
)
def test_without_heads_slices_take_their_place(calibration, heads: bool) -> None:
    store = store_of(20)
    write(store, [0] * 20)
    ask = question([0]) if heads else question([0], heads={})
    have = Contextual(calibration).score(ask, store).passages
    assert have.isfinite().all()
    assert not torch.equal(have, Semantic(calibration).score(ask, store).passages)


def test_hidden_states_in_the_place_of_keys_are_no_heads() -> None:
    store = store_of(20)
    write(store, [0] * 20)
    ask = question([0], heads={LAYER: torch.randn(1, HEADS, 3, 5)})
    want = Contextual().score(ask, store).passages
    assert_close("line", Contextual(MODEL).score(ask, store).passages, want, 1e-6, 1e-6)


def test_a_bad_number_or_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads: an integer in 1\.\.16 expected, got 17"):
        ContextualRelevanceScorer(16, 17)
    with pytest.raises(ConfigError, match="hidden_size: an integer of at least 1"):
        ContextualRelevanceScorer(0)
    with pytest.raises(ModelMismatchError, match="width 12 expected, got 16"):
        ContextualRelevanceScorer(12).score(question([0]), store_of(4))


def test_it_scores_entries_of_a_buffer() -> None:
    buffer = LayeredMemoryBuffer(50, 500)
    states = torch.randn(30, HIDDEN)
    for i, state in enumerate(states):
        buffer.store_state(state, 3, i % 2, i, 0.5)
    retriever = AdvancedMemoryRetriever(HIDDEN, buffer, {"context_heads": 4})
    assert isinstance(retriever.contextual_scorer, ContextualRelevanceScorer)
    assert retriever.contextual_scorer.heads == 4
    asked = states[[10]] + 0.05 * torch.randn(1, HIDDEN)
    for strategy in ("contextual_relevance", "hierarchical", "hybrid_ensemble", "task_specific"):
        found = retriever.retrieve_memories(RetrievalContext(0, 3, asked), strategy)
        assert torch.equal(found[0].hidden_state, states[10]), strategy
        assert {entry.sequence_id for entry in found} == {0}
    assert isinstance(retriever.memory_hierarchy, Hierarchical)
