"""The scorer: what each method looks at, on one scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cmr.config import SCORING_METHODS
from cmr.memory.relevance import RelevanceScorer
from tests.kernels.helpers.compare import assert_close

HIDDEN, VOCABULARY = 24, 50


def inputs(batch: int = 2, tokens: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Everything that any method may want, of random numbers."""
    make = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, tokens, HIDDEN, generator=make),
        "query": torch.randn(batch, 4, tokens, 8, generator=make),
        "key": torch.randn(batch, 2, tokens, 8, generator=make),
        "logits": torch.randn(batch, tokens, VOCABULARY, generator=make),
        "token_ids": torch.randint(0, VOCABULARY, (batch, tokens), generator=make),
        "gradients": torch.randn(batch, tokens, HIDDEN, generator=make),
    }


def padded(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """With rubbish on both sides of the tokens' dimension."""
    at = 2 if x.ndim == 4 else 1
    rubbish = x.select(at, 0).unsqueeze(at) * 7
    many = [rubbish] * left + [x] + [rubbish] * right
    return (
        torch.cat(many, dim=at) % VOCABULARY if not x.is_floating_point() else torch.cat(many, at)
    )


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_one_scale_for_every_method(method: str) -> None:
    scorer = RelevanceScorer(HIDDEN, method)
    mask = torch.ones(2, 40)
    mask[1, 25:] = 0
    above, high = [], []
    for seed in range(16):
        given_inputs = inputs(2, 40, seed)
        states = given_inputs.pop("hidden_states").requires_grad_()
        scores = scorer(states, mask, **given_inputs)
        above.append((scores[mask.bool()] > 0.5).float())
        high.append((scores[mask.bool()] > 0.9).float())
    assert scores.shape == (2, 40) and scores.dtype == torch.float32
    assert (scores[1, 25:] == 0).all()
    assert scores.min() >= 0 and scores.max() <= 1
    assert 0.45 < torch.cat(above).mean() < 0.55
    assert 0.06 < torch.cat(high).mean() < 0.14
    assert not scores.requires_grad


@pytest.mark.parametrize("form", ["states", "query", "weights"])
@settings(max_examples=10, deadline=None)
@given(left=st.integers(0, 5), right=st.integers(0, 5), tokens=st.integers(1, 9))
def test_padding_changes_no_score(form: str, left: int, right: int, tokens: int) -> None:
    given_inputs = inputs(1, tokens)
    if form != "query":
        del given_inputs["query"], given_inputs["key"]
    mask = torch.zeros(1, left + tokens + right)
    mask[:, left : left + tokens] = 1
    wide = {name: padded(x, left, right) for name, x in given_inputs.items()}
    if form == "weights":
        weights = torch.randn(1, 3, tokens, tokens).tril().abs()
        weights = weights / weights.sum(-1, keepdim=True)
        given_inputs["attention_weights"] = weights
        pad = (left, right, left, right)
        wide["attention_weights"] = functional.pad(weights, pad, value=0.3)
    for method in SCORING_METHODS:
        if form != "query" and method in ("variance_based", "gradient_based"):
            continue
        # Raw scores differ by rounding, so that equal quantiles would be too much to ask for.
        reference = RelevanceScorer(HIDDEN, method)
        for seed in range(5):
            reference(**inputs(1, 9, 50 + seed))
        want = reference(**given_inputs, learn=False)
        have = reference(attention_mask=mask, **wide, learn=False)
        assert (have[mask.bool()] - want[0]).abs().max() <= 0.05, method
        assert (have[~mask.bool()] == 0).all()


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_the_order_of_the_rows_changes_no_bit(method: str) -> None:
    given_inputs = inputs(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    one, other = RelevanceScorer(HIDDEN, method), RelevanceScorer(HIDDEN, method)
    want = one(**given_inputs)
    have = other(**{name: x[order] for name, x in given_inputs.items()})
    assert torch.equal(have, want[order])
    assert all(torch.equal(t, other.state()[name]) for name, t in one.state().items())


def test_two_scorers_that_saw_the_same_say_the_same() -> None:
    runs = []
    for _ in range(2):
        scorer = RelevanceScorer(HIDDEN)
        runs.append(torch.stack([scorer(**inputs(seed=seed)) for seed in range(6)]))
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("method", "given_names", "message"),
    [
        ("surprise", (), r"surprise needs logits= .* and token_ids="),
        ("surprise", ("logits",), "token_ids="),
        ("gradient_based", (), r"gradient_based needs gradients= .*, or a loss="),
        ("attention_based", ("query",), "query and key: both or neither"),
        ("hybrid", ("logits",), r"surprise needs logits= .* and token_ids="),
    ],
)
def test_a_missing_input_is_named_and_nothing_is_noted(
    method: str, given_names: tuple[str, ...], message: str
) -> None:
    scorer, all_inputs = RelevanceScorer(HIDDEN, method), inputs()
    with pytest.raises(ValueError, match=message):
        scorer(all_inputs["hidden_states"], **{name: all_inputs[name] for name in given_names})
    assert scorer.state() == {}


def test_what_does_not_fit_is_refused() -> None:
    scorer, states = RelevanceScorer(HIDDEN), inputs()["hidden_states"]
    with pytest.raises(ValueError, match="hidden size 24 expected, got 12"):
        scorer(states[..., :12])
    with pytest.raises(ValueError, match=r"hidden_states \[B, T, H\] expected, got \[12, 24\]"):
        scorer(states[0])
    with pytest.raises(TypeError, match="hidden_states: a tensor expected, got list"):
        scorer([1.0])
    with pytest.raises(ValueError, match=r"attention_mask \[2, 12\] expected .* got \[2, 11\]"):
        scorer(states, torch.ones(2, 11))
    with pytest.raises(ValueError, match=r"key \[2, heads, 12, D\] expected .*9, 8\]"):
        scorer(states, query=torch.rand(2, 4, 12, 8), key=torch.rand(2, 4, 9, 8))
    with pytest.raises(ValueError, match=r"attention_weights \[2, heads, 12, 12\] expected"):
        scorer(states, attention_weights=torch.rand(2, 4, 12, 13))
    with pytest.raises(ValueError, match=r"gradients \[2, 12, 24\] expected .* got \[2, 12, 1\]"):
        RelevanceScorer(HIDDEN, "gradient_based")(states, gradients=torch.rand(2, 12, 1))
    with pytest.raises(ValueError, match=r"scoring_method: one of surprise, .* got 'magic'"):
        RelevanceScorer(HIDDEN, "magic")
    with pytest.raises(ValueError, match=r"weights: of .* got \['luck'\]"):
        RelevanceScorer(HIDDEN, weights={"luck": 1.0})
    with pytest.raises(ValueError, match="weights"):
        RelevanceScorer(HIDDEN, weights={"surprise": 0.0})
    with pytest.raises(ValueError, match="hidden_size: 1 or more expected, got 0"):
        RelevanceScorer(0)


# -- what each method looks at ---------------------------------------------------------------------


def raw_attention(states: torch.Tensor, **given_inputs: torch.Tensor) -> torch.Tensor:
    """Scores before calibration, sorted."""
    scorer = RelevanceScorer(HIDDEN, "attention_based")
    scorer(states, **given_inputs)
    (sample,) = (t for name, t in scorer.state().items() if name.endswith("sample"))
    return sample.sort().values


def test_no_position_is_favoured() -> None:
    """By states that are all alike, nor by attention that fades as 1 / distance."""
    alike = torch.ones(2, 64, HIDDEN)
    alike[..., 0] = -1
    assert_close("alike", raw_attention(alike), torch.ones(1, 128))
    steps = torch.arange(64)
    behind = (steps[:, None] - steps).clamp(min=1)
    weights = (1 / behind) * (steps[:, None] > steps) + torch.eye(64)  # whatever it gives itself
    weights = (weights / weights.sum(-1, keepdim=True))[None, None].expand(2, 3, -1, -1)
    assert_close("fading", raw_attention(alike, attention_weights=weights), torch.ones(1, 128))


def test_a_token_that_later_ones_look_at_scores_highest() -> None:
    given_inputs = inputs(1, 30)
    given_inputs["query"] += 2.0
    given_inputs["key"][:, :, 11] = 5.0
    scores = RelevanceScorer(HIDDEN, "attention_based")(**given_inputs)
    assert scores.argmax() == 11


def test_a_state_that_later_ones_resemble_scores_highest_on_states_alone() -> None:
    states = torch.randn(1, 30, HIDDEN)
    states[:, 12:] = 0.5 * states[:, 12:] + 2 * states[:, 8:9]
    states[:, 12:] = states[:, 12:].roll(1, 0) + torch.randn(1, 18, HIDDEN)
    scores = RelevanceScorer(HIDDEN, "attention_based")(states)
    assert scores[:, :12].argmax() == 8


def test_weights_and_their_queries_and_keys_say_the_same() -> None:
    given_inputs = inputs(2, 20)
    query, key = given_inputs["query"], given_inputs["key"].repeat_interleave(2, dim=1)
    logits = query @ key.mT * query.shape[-1] ** -0.5
    hidden = torch.ones(20, 20, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    states = given_inputs["hidden_states"]
    by_weights = RelevanceScorer(HIDDEN, "attention_based")
    by_query = RelevanceScorer(HIDDEN, "attention_based")
    by_weights(states, attention_weights=weights)
    by_query(states, query=query, key=given_inputs["key"])
    for name, tensor in by_query.state().items():
        assert_close(name, by_weights.state()[name].float(), tensor.float())


def test_surprise_is_the_own_loss_and_the_first_token_is_predicted_by_the_text_before() -> None:
    given_inputs = inputs(2, 20)
    logits, ids = given_inputs["logits"], given_inputs["token_ids"]
    scorer = RelevanceScorer(HIDDEN, "surprise")
    before = torch.zeros(2, VOCABULARY)
    before[torch.arange(2), ids[:, 0]] = 9.0
    scores = scorer(given_inputs["hidden_states"], logits=logits, token_ids=ids,
                    previous_logits=before)  # fmt: skip
    assert (scores[:, 0] < 0.1).all()
    losses = functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    assert torch.equal(scores[:, 1:].flatten().argsort(), losses.flatten().argsort())


def test_gradient_times_state_from_a_loss_and_from_gradients() -> None:
    states = torch.randn(2, 15, HIDDEN, requires_grad=True)
    loss = (states.tanh() * torch.randn(2, 15, HIDDEN)).sum()
    (gradients,) = torch.autograd.grad(loss, states, retain_graph=True)
    one = RelevanceScorer(HIDDEN, "gradient_based")(states, loss=loss)
    other = RelevanceScorer(HIDDEN, "gradient_based")(states.detach(), gradients=gradients)
    assert torch.equal(one, other)
    product = (gradients * states).sum(-1).abs().detach()
    assert torch.equal(one.flatten().argsort(), product.flatten().argsort())
    loss.backward()  # the graph is still there
    with pytest.raises(ValueError, match="requires_grad=True"):
        RelevanceScorer(HIDDEN, "gradient_based")(states.detach(), loss=loss)
    other_loss = torch.ones(1, requires_grad=True).sum()
    with pytest.raises(ValueError, match="one that depends on hidden_states"):
        RelevanceScorer(HIDDEN, "gradient_based")(states, loss=other_loss)


def test_variance_finds_the_state_that_varies_most() -> None:
    states = torch.randn(1, 10, HIDDEN)
    states[:, 4] *= 3
    states[:, 6] += 50  # far from 0, and no more varied for it
    scores = RelevanceScorer(HIDDEN, "variance_based")(states)
    assert scores.argmax() == 4 and scores[0, 6] < 0.95


def test_hybrid_takes_surprise_in_where_its_logits_are_given() -> None:
    given_inputs = inputs(1, 30)
    states = given_inputs["hidden_states"]
    asked = {name: given_inputs[name] for name in ("logits", "token_ids")}
    without, with_it = RelevanceScorer(HIDDEN), RelevanceScorer(HIDDEN)
    assert not torch.equal(without(states), with_it(states, **asked))
    parts = {"attention_based", "variance_based"}
    assert parts < set(without.get_scoring_stats()["layers"][0])
    assert {*parts, "surprise"} < set(with_it.get_scoring_stats()["layers"][0])


@pytest.mark.parametrize("part", ["attention_based", "variance_based", "surprise"])
def test_hybrid_with_all_weight_on_one_part_is_that_part(part: str) -> None:
    given_inputs = inputs(2, 30)
    hybrid = RelevanceScorer(HIDDEN, weights={part: 2.0})
    assert torch.equal(hybrid(**given_inputs), RelevanceScorer(HIDDEN, part)(**given_inputs))


# -- learning --------------------------------------------------------------------------------------


def test_layers_do_not_share_a_scale() -> None:
    scorer, states = RelevanceScorer(HIDDEN, "variance_based"), torch.randn(1, 200, HIDDEN)
    scorer(states, layer_idx=3)
    far = scorer(states * 10, layer_idx=7)
    assert far.mean() == pytest.approx(0.5, abs=0.01)
    assert scorer(states * 10, layer_idx=3, learn=False).min() == 1.0
    stats = scorer.get_scoring_stats()
    assert stats["method"] == "variance_based"
    assert (stats["calls"], stats["tokens"]) == (2, 400)
    assert stats["layers"][7]["variance_based"]["held"] == 200
    small, large = (stats["layers"][n]["variance_based"]["p50"] for n in (3, 7))
    assert large == pytest.approx(100 * small, rel=1e-4)


def test_scores_without_learning_leave_the_scale_alone() -> None:
    scorer = RelevanceScorer(HIDDEN)
    assert (scorer(**inputs(), learn=False) == 0.5).all()
    scorer(**inputs())
    before = {name: tensor.clone() for name, tensor in scorer.state().items()}
    scorer(**inputs(seed=1), learn=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.state().items())


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_a_saved_scale_goes_on(method: str) -> None:
    scorer, again = (RelevanceScorer(HIDDEN, method, sample_size=50) for _ in range(2))
    for seed in range(5):
        scorer(**inputs(seed=seed), layer_idx=seed % 2)
    again.load_state(scorer.state())
    for seed in range(5, 9):
        new: dict[str, Any] = {**inputs(seed=seed), "layer_idx": seed % 2}
        assert torch.equal(scorer(**new), again(**new))


def test_a_scale_that_cannot_be_is_refused_and_the_old_one_stays() -> None:
    scorer = RelevanceScorer(HIDDEN)
    scorer(**inputs())
    good = scorer.state()
    first = next(name for name in good if name.endswith("/sample"))
    for name, tensor, message in (
        ("x/surprise/sample", torch.zeros(1, 1), "expected, got 'x/surprise/sample'"),
        (first, torch.zeros(7, 1), "kinds of scores expected, got 7"),
        (first.replace("sample", "seen"), torch.tensor([0]), "at least the"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer.load_state({**good, name: tensor})
        assert all(torch.equal(t, good[key]) for key, t in scorer.state().items())


# -- positions -------------------------------------------------------------------------------------


def test_top_k_takes_the_first_of_equals_and_never_a_masked_one() -> None:
    scorer = RelevanceScorer(HIDDEN)
    scores = torch.tensor([[0.2, 0.9, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]])
    assert scorer.get_top_k_positions(scores, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]])
    assert scorer.get_top_k_positions(scores, 3, mask).tolist() == [[2, 0, -1], [1, 2, 3]]
    assert scorer.get_top_k_positions(scores, 0).shape == (2, 0)
    with pytest.raises(ValueError, match=r"k: 0\.\.4 expected, got 5"):
        scorer.get_top_k_positions(scores, 5)
    with pytest.raises(ValueError, match=r"attention_mask \[2, 4\] expected"):
        scorer.get_top_k_positions(scores, 1, mask[:, :3])
    with pytest.raises(ValueError, match=r"scores \[B, T\] expected, got \[4\]"):
        scorer.get_top_k_positions(scores[0], 1)
