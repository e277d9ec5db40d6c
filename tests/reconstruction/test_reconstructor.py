"""`LayeredStateReconstructor`: entries and states in, few states out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import cmr
from cmr.config import RECONSTRUCTION_METHODS
from tests.integration.tiny import build, text

HIDDEN = 64


def entry(state: torch.Tensor, position: int, **known: Any) -> cmr.MemoryEntry:
    of = {"layer_idx": 3, "sequence_id": 0, "relevance_score": 0.5, "timestamp": 1.0, **known}
    return cmr.MemoryEntry(hidden_state=state, position_idx=position, **of)


def blocks(count: int, tokens: int = 8, **known: Any) -> list[cmr.MemoryEntry]:
    """Blocks of one text, side by side."""
    return [entry(torch.randn(tokens, HIDDEN), tokens * i, **known) for i in range(count)]


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return build("llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", RECONSTRUCTION_METHODS[:3])
def test_no_more_states_than_allowed(method: str, dtype: torch.dtype) -> None:
    states, query = torch.randn(50, HIDDEN).to(dtype), torch.randn(2, 6, HIDDEN).to(dtype)
    for most, ratio, read in ((20, 0.6, 20), (128, 0.6, 30), (None, None, 50), (None, 0.5, 25)):
        reconstructor = cmr.LayeredStateReconstructor(HIDDEN, method, most, ratio)
        found = reconstructor.reconstruct(states, query)
        assert found.states.shape == (read, HIDDEN) and found.states.dtype == dtype
        assert len(found) == read and found.nbytes == read * HIDDEN * dtype.itemsize
        assert float(found.weights.sum()) == pytest.approx(1.0)
        assert found.similarity.abs().max() <= 1.01
    assert torch.equal(reconstructor.reconstruct(states[:1], query).states, states[:1])


def test_the_defaults_are_those_of_the_specification() -> None:
    found = cmr.LayeredStateReconstructor(HIDDEN)
    assert found.method == "hierarchical"
    assert (found.limits.max_memory_tokens, found.limits.compression_ratio) == (128, 0.6)
    assert len(found.reconstruct(torch.randn(100, HIDDEN), torch.randn(4, HIDDEN))) == 60
    assert len(found.reconstruct(torch.randn(300, HIDDEN), torch.randn(4, HIDDEN))) == 128


def test_states_come_as_they_are_and_say_where_from() -> None:
    entries = [*blocks(2), entry(torch.randn(HIDDEN), 100, relevance_score=0.9, timestamp=7.0)]
    asks = entries[2].hidden_state[None]
    found = cmr.LayeredStateReconstructor(HIDDEN, "attention", 5, None).reconstruct(entries, asks)
    assert found.sources[0] == (2,) and found.passages.tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(found.states[0], entries[2].hidden_state)
    assert float(found.similarity[0]) == pytest.approx(1.0)
    assert (float(found.relevance[0]), float(found.timestamp[0])) == (pytest.approx(0.9), 7.0)
    together = torch.cat([e.hidden_state for e in entries[:2]])
    for state in found.states[1:]:
        assert (together == state).all(-1).any()
    assert found.layers.tolist() == [3] * 5


def test_entries_that_follow_each_other_are_one_passage() -> None:
    first, second = blocks(2), blocks(2, sequence_id=1)
    shuffled = [second[1], first[0], second[0], first[1]]
    query = second[0].hidden_state[4:5]
    everything = cmr.LayeredStateReconstructor(HIDDEN, "hierarchical", None, None)
    found = everything.reconstruct(shuffled, query)
    assert found.passages.tolist() == [0] * 16 + [1] * 16
    assert [s[0] for s in found.sources] == [2] * 8 + [0] * 8 + [1] * 8 + [3] * 8
    some = cmr.LayeredStateReconstructor(HIDDEN, "hierarchical", 20, None)
    found = some.reconstruct(shuffled, query)
    best = torch.cat([second[0].hidden_state, second[1].hidden_state])
    assert torch.equal(found.states[:16], best), "the best passage stays whole"
    assert found.sources[16:] == ((1,), (1,), (3,), (3,))


def test_a_sum_weighs_by_how_well_its_states_match() -> None:
    states = torch.randn(4, HIDDEN)
    query = states[1:2]
    found = cmr.LayeredStateReconstructor(HIDDEN, "weighted_sum", 1, None).reconstruct(
        states, query
    )
    cosine = torch.nn.functional.cosine_similarity(states, query)
    z = (cosine - cosine.mean()) / cosine.std(correction=0)
    expected = torch.softmax(z, 0) @ states
    torch.testing.assert_close(found.states[0], expected, rtol=1e-4, atol=1e-5)
    assert found.sources == ((0, 1, 2, 3),)


def test_states_of_other_layers_are_left_out() -> None:
    entries = [*blocks(1), *blocks(1, layer_idx=5)]
    query = torch.randn(3, HIDDEN)
    everything = cmr.LayeredStateReconstructor(HIDDEN, "attention", None, None)
    assert len(everything.reconstruct(entries, query)) == 16
    found = everything.reconstruct(entries, query, layer_idx=5)
    assert torch.equal(found.states, entries[1].hidden_state)
    assert found.sources == ((1,),) * 8 and found.layers.tolist() == [5] * 8
    assert len(everything.reconstruct(entries, query, layer_idx=4)) == 0


def test_tokens_that_do_not_ask_are_not_looked_at() -> None:
    states, query = torch.randn(40, HIDDEN), torch.randn(1, 4, HIDDEN)
    reconstructor = cmr.LayeredStateReconstructor(HIDDEN, "attention", 8, None)
    mask = torch.tensor([[1, 0, 1, 0]])
    other = query.masked_fill(mask[..., None] == 0, torch.nan)
    found = reconstructor.reconstruct(states, query, attention_mask=mask)
    assert found.states.equal(reconstructor.reconstruct(states, query[:, ::2]).states)
    assert not other.isfinite().all()
    assert not found.states.equal(reconstructor.reconstruct(states, query).states)


def test_nothing_recalled_gives_nothing_to_read() -> None:
    reconstructor = cmr.LayeredStateReconstructor(HIDDEN)
    for nothing in ([], torch.zeros(0, HIDDEN)):
        found = reconstructor.reconstruct(nothing, torch.randn(3, HIDDEN))
        assert len(found) == 0 and found.states.shape == (0, HIDDEN) and found.sources == ()


def test_recomputed_states_are_those_of_the_model(llama: torch.nn.Module) -> None:
    ids = text(24, seed=3).tolist()
    entries = [
        entry(torch.zeros(8, HIDDEN), 8 * i, token_ids=tuple(ids[8 * i : 8 * i + 8]))
        for i in (0, 1, 2)
    ]
    reconstructor = cmr.LayeredStateReconstructor(HIDDEN, "recompute", None, None, model=llama)
    query = torch.randn(2, HIDDEN)
    found = reconstructor.reconstruct(entries, query)
    with torch.no_grad():
        out = llama(torch.tensor([[1, *ids]]), output_hidden_states=True)
    torch.testing.assert_close(found.states, out.hidden_states[3][0, 1:], rtol=1e-5, atol=1e-5)
    apart = reconstructor.reconstruct([entries[2], entries[0]], query)
    assert not torch.allclose(apart.states[:8], found.states[16:], atol=1e-3)
    reconstructor = cmr.LayeredStateReconstructor(HIDDEN, "recompute", 5, None, model=llama)
    assert len(reconstructor.reconstruct(entries, query)) == 5


def test_a_memory_of_the_model_rests_while_states_are_recomputed(llama: torch.nn.Module) -> None:
    entries = [entry(torch.zeros(8, HIDDEN), 0, token_ids=tuple(text(8, seed=3).tolist()))]
    reconstructor = cmr.LayeredStateReconstructor(HIDDEN, "recompute", None, None, model=llama)
    plain = reconstructor.reconstruct(entries, torch.randn(2, HIDDEN)).states
    with torch.no_grad(), cmr.attach(llama, window=64, threshold=0.0, sink_guard=0) as memory:
        memory.read(text(200))
        before = memory.stats()["recalls"]
        assert torch.equal(reconstructor.reconstruct(entries, torch.randn(2, HIDDEN)).states, plain)
        assert memory.stats()["recalls"] == before
        assert memory.stats()["active"]
        llama(text(1, 8, seed=3))
        assert memory.stats()["recalls"] == before + 1


def test_mistakes_show_both_sides(llama: torch.nn.Module) -> None:
    good = cmr.LayeredStateReconstructor(HIDDEN)
    states, query = torch.randn(4, HIDDEN), torch.randn(2, HIDDEN)
    with pytest.raises(cmr.errors.ModelMismatchError, match="hidden size 64 expected, got 32"):
        good.reconstruct(torch.randn(4, 32), query)
    with pytest.raises(
        cmr.errors.ModelMismatchError, match=r"query_states: hidden size 64.*got 65"
    ):
        good.reconstruct(states, torch.randn(2, 65))
    with pytest.raises(
        ValueError, match=r"memories: \[tokens, hidden\] expected, got \[1, 4, 64\]"
    ):
        good.reconstruct(states[None], query)
    with pytest.raises(TypeError, match=r"a tensor of floats expected, got torch.int64"):
        good.reconstruct(states, query.long())
    with pytest.raises(TypeError, match="MemoryEntry expected, got str"):
        good.reconstruct(["a"], query)
    with pytest.raises(cmr.errors.ModelMismatchError, match="device cpu expected, got meta"):
        good.reconstruct(states.to("meta"), query)
    mixed = [*blocks(1), entry(torch.randn(HIDDEN).half(), 9)]
    with pytest.raises(
        cmr.errors.ModelMismatchError, match=r"float32.*expected, got torch.float16"
    ):
        good.reconstruct(mixed, query)
    with pytest.raises(ValueError, match=r"attention_mask: \[2\] expected, got \[3\]"):
        good.reconstruct(states, query, attention_mask=torch.ones(3))
    with pytest.raises(cmr.ConfigError, match=r"hidden_size: .*got 0"):
        cmr.LayeredStateReconstructor(0)
    with pytest.raises(cmr.ConfigError, match="did you mean 'recompute'"):
        good.method = "recomputed"
    assert good.method == "hierarchical"
    with pytest.raises(cmr.ConfigError, match=r"'recompute': a model .*expected.*got None"):
        good.method = "recompute"
    again = cmr.LayeredStateReconstructor(HIDDEN, "recompute", model=llama)
    with pytest.raises(cmr.ConfigError, match=r"entries with the ids.*got 0 ids for 8 states"):
        again.reconstruct(blocks(1), query)
    with pytest.raises(cmr.ConfigError, match=r"entries with the ids.*got a tensor"):
        again.reconstruct(states, query)
    assert math.isfinite(float(good.reconstruct(states, query).states.sum()))
