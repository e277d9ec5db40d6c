"""`ContextBlender`: several recalled contexts as one memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cmr
from cmr.errors import ModelMismatchError
from tests.reconstruction.test_integrator import HIDDEN, of


def test_weights_are_the_mean_of_the_criteria() -> None:
    context = of(
        torch.randn(4, HIDDEN),
        relevance=torch.tensor([1.0, 0.5, 0.0, 0.5]),
        similarity=torch.tensor([0.2, 0.6, 1.0, 0.2]),
        timestamp=torch.tensor([1.0, 4.0, 4.0, 2.0]),
    )
    weights = {"relevance": 1.0, "similarity": 2.0, "recency": 1.0}
    found = cmr.ContextBlender(HIDDEN, weights).blend([context])
    places, recency = [0.0, 0.5, 1.0, 0.0], [2**-3, 1.0, 1.0, 2**-2]
    total = [
        0.25 * r + 0.5 * s + 0.25 * c
        for r, s, c in zip([1.0, 0.5, 0.0, 0.5], places, recency, strict=True)
    ]
    torch.testing.assert_close(found.weights, torch.tensor(total) / sum(total))
    assert torch.equal(found.states, context.states)


@pytest.mark.parametrize(
    ("criterion", "known"),
    [
        ("relevance", {"relevance": torch.tensor([0.2, 0.9])}),
        ("similarity", {"similarity": torch.tensor([0.2, 0.9])}),
        ("recency", {"timestamp": torch.tensor([2.0, 9.0])}),
    ],
)
def test_each_criterion_lets_the_better_one_count_more(criterion: str, known: dict) -> None:
    found = cmr.ContextBlender(HIDDEN, {criterion: 3}).blend([of(torch.eye(HIDDEN)[:2], **known)])
    assert found.weights[1] > found.weights[0]


def test_what_is_like_a_heavier_state_counts_less() -> None:
    """By the cosine with it; other layers, and copies that are read as one, are not compared."""
    a, b = torch.eye(HIDDEN)[:2]
    states = torch.stack([0.6 * a + 0.8 * b, a, -a, b, 2 * a])
    relevance = torch.tensor([0.5, 1.0, 0.0, 0.2, 0.1])
    context = of(states, relevance=relevance, layers=torch.tensor([3, 3, 3, 4, 3]))
    weights = {"relevance": 0.5, "diversity": 0.5}
    found = cmr.ContextBlender(HIDDEN, weights).blend([context])
    assert found.sources == ((0,), (1, 4), (2,), (3,))
    diversity = torch.tensor([1 - 0.6, 1.0, 1.0, 1.0, 1 - 0.6])
    total = 0.5 * relevance + 0.5 * diversity
    want = torch.stack([total[0], total[1] + total[4], total[2], total[3]]) / total.sum()
    torch.testing.assert_close(found.weights, want)
    alone = cmr.ContextBlender(HIDDEN, {"diversity": 1.0}).blend([of(states[:2])])
    torch.testing.assert_close(alone.weights, torch.tensor([1.0, 0.4]) / 1.4)  # the earlier first


def test_what_was_found_twice_is_read_once_and_counts_twice() -> None:
    states = torch.randn(5, HIDDEN)
    first, second = of(states[:3]), of(torch.stack([states[3], states[1] * 2, states[4]]))
    found = cmr.ContextBlender(HIDDEN).blend([first, second])
    assert len(found) == 5
    assert found.sources == ((0,), (1, 4), (2,), (3,), (5,))
    torch.testing.assert_close(found.weights, torch.tensor([1, 2, 1, 1, 1]) / 6.0)
    torch.testing.assert_close(found.states[1], states[1] * 1.5)
    assert torch.equal(found.states[[0, 2, 3, 4]], states[[0, 2, 3, 4]]), "bit for bit"
    assert found.passages.tolist() == [0, 0, 0, 1, 1]


def test_the_mean_of_duplicates_follows_their_weights() -> None:
    state = torch.randn(HIDDEN)
    context = of(torch.stack([state, state * 3]), relevance=torch.tensor([0.3, 0.1]))
    found = cmr.ContextBlender(HIDDEN, {"relevance": 1}).blend([context])
    torch.testing.assert_close(found.states[0], state * (0.75 + 3 * 0.25))
    even = of(context.states, relevance=torch.zeros(2))
    found = cmr.ContextBlender(HIDDEN, {"relevance": 1}).blend([even])
    torch.testing.assert_close(found.states[0], state * 2)


def test_states_of_different_layers_are_never_one() -> None:
    state = torch.randn(1, HIDDEN)
    contexts = [of(state), of(state, layers=torch.tensor([4]))]
    found = cmr.ContextBlender(HIDDEN).blend(contexts)
    assert len(found) == 2 and found.layers.tolist() == [3, 4]


def test_how_alike_states_have_to_be() -> None:
    states = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    assert len(cmr.ContextBlender(2, merge_similarity=0.81).blend([of(states)])) == 2
    assert len(cmr.ContextBlender(2, merge_similarity=0.79).blend([of(states)])) == 1


def test_the_heaviest_states_stay() -> None:
    context = of(torch.randn(6, HIDDEN), relevance=torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.7]))
    found = cmr.ContextBlender(HIDDEN, {"relevance": 1}, max_memory_tokens=3).blend([context])
    assert found.sources == ((1,), (3,), (5,))
    torch.testing.assert_close(found.weights, torch.tensor([0.9, 0.8, 0.7]) / 2.4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 8))
def test_weights_always_sum_to_one(sizes: list[int], most: int) -> None:
    contexts = [of(torch.randn(n, HIDDEN), similarity=torch.randn(n)) for n in sizes]
    found = cmr.ContextBlender(HIDDEN, max_memory_tokens=most).blend(contexts)
    assert len(found) == min(sum(sizes), most)
    if len(found):
        assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-5)
        assert (found.weights >= 0).all()
    hidden = torch.randn(1, 3, HIDDEN)
    mixed = cmr.ReconstructionIntegrator(HIDDEN)(hidden, found)
    assert torch.equal(mixed, hidden) == (len(found) == 0)


def test_kinds_of_contexts() -> None:
    blender = cmr.ContextBlender(HIDDEN)
    plain, ranked = of(torch.randn(2, HIDDEN)), of(torch.randn(2, HIDDEN), method="hierarchical")
    assert blender.blend([ranked, ranked]).method == "hierarchical"
    assert blender([ranked, plain]).method == "weighted_sum"


def test_mistakes_show_both_sides() -> None:
    blender, good = cmr.ContextBlender(HIDDEN), of(torch.randn(2, HIDDEN))
    with pytest.raises(ValueError, match="at least one Reconstruction expected, got none"):
        blender.blend([])
    with pytest.raises(TypeError, match="Reconstruction expected, got Tensor"):
        blender.blend([torch.randn(2, HIDDEN)])
    with pytest.raises(ModelMismatchError, match="hidden size 16 expected, got 8"):
        blender.blend([good, of(torch.randn(2, 8))])
    with pytest.raises(
        ModelMismatchError, match=r"dtype torch.float32.*expected, got torch.float16"
    ):
        blender.blend([good, of(torch.randn(2, HIDDEN).half())])
    with pytest.raises(cmr.ConfigError, match=r"criteria_weights key: .*got 'novelty'"):
        cmr.ContextBlender(HIDDEN, {"novelty": 1.0})
    with pytest.raises(cmr.ConfigError, match="merge_similarity: a number in"):
        cmr.ContextBlender(HIDDEN, merge_similarity=1.2)
    with pytest.raises(cmr.ConfigError, match=r"max_memory_tokens: .*got 0"):
        cmr.ContextBlender(HIDDEN, max_memory_tokens=0)
