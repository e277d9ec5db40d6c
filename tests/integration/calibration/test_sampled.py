"""A search without a calibration is weighed by what the model itself makes of random tokens."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cmr
from cmr.integration.calibration import sampled
from cmr.integration.calibration.sampled import ROWS, Metric, sample
from cmr.integration.decoder import adapter as decoder
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.search import query
from cmr.kernels.search.query import weigh
from tests.integration.tiny import text

SETTINGS: dict[str, Any] = {"window": 64, "left_context": 16, "budget": 2048, "threshold": 0.0}


def cone(tokens: int, hidden: int = 32, seed: int = 0) -> torch.Tensor:
    """States in a narrow cone, in which two directions vary most."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.ones(hidden)
    spread[:2] = 8.0
    return 20.0 + spread * torch.randn(tokens, hidden, generator=generator)


def hooks_of(model: nn.Module) -> list[list[int]]:
    return [[*m._forward_pre_hooks, *m._forward_hooks] for m in model.modules()]


def sampling(memory: cmr.Memory) -> bool:
    return memory._core.sampled


# -- the metric ------------------------------------------------------------------------------------


def test_weighing_what_asks_ranks_as_whitening_both_does() -> None:
    metric = Metric.of(cone(400))
    assert metric is not None
    asks, stored = cone(3, seed=1), F.normalize(cone(50, seed=2), dim=-1)
    white = (F.normalize(asks, dim=-1) - metric.mean) @ metric.projection
    want = white @ ((stored - metric.mean) @ metric.projection).t()
    found = weigh(asks, metric) @ stored.t()

    def standard(scores: torch.Tensor) -> torch.Tensor:
        return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)

    assert torch.allclose(standard(found), standard(want), atol=1e-3)
    plain = F.normalize(asks, dim=-1) @ stored.t()
    assert not torch.allclose(standard(plain), standard(want), atol=0.1)


def test_directions_that_rule_weigh_least_and_the_smallest_are_left_out() -> None:
    states = cone(4000)
    states[:, -4:] = 20.0  # vary by what the norm leaves of the others
    metric = Metric.of(states)
    assert metric is not None
    weights = (metric.projection @ metric.projection.t()).diagonal()
    assert weights[:2].max() < 0.5 * weights[2:-4].min()
    assert metric.projection.shape[1] <= 28 and weights[-4:].max() < 0.2 * weights[2:-4].min()


@pytest.mark.parametrize("tokens", [20, 200])
def test_fewer_tokens_than_directions_or_more(tokens: int) -> None:
    metric = Metric.of(cone(tokens, hidden=60))
    assert metric is not None
    white = (F.normalize(cone(tokens, hidden=60), dim=-1) - metric.mean) @ metric.projection
    covariance = white.t() @ white / tokens
    assert white.shape[1] < min(tokens, 60)
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-3)
    assert covariance.diagonal().min() > 0.1 and covariance.diagonal().max() < 1.0


def test_zeros_stay_zeros_and_the_dtype_stays() -> None:
    metric = Metric.of(cone(200))
    assert metric is not None
    asks = cone(6).view(2, 3, 32)
    asks[0, 1] = 0
    found = weigh(asks, metric)
    assert not found[0, 1].any() and torch.allclose(found[1].norm(dim=-1), torch.ones(3))
    assert weigh(asks.bfloat16(), metric).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0])
def test_nothing_weighs_by_states_that_say_nothing(bad: float) -> None:
    states = torch.full((40, 8), bad)
    assert Metric.of(states) is None
    others = cone(200, hidden=8)
    found, want = Metric.of(torch.cat([states, others])), Metric.of(others)
    assert found is not None and want is not None
    assert torch.equal(found.mean, want.mean) is not (bad == 1.0)


def test_a_model_without_finite_states_is_searched_unweighed(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Metric, "of", classmethod(lambda cls, states: None))
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(1, 300))
        llama(input_ids=text(1, 24))
        assert memory.recalled[0] and memory._core.metric is None
    assert "searched unweighed" in caplog.text


# -- in a memory -----------------------------------------------------------------------------------


def test_the_first_search_samples_and_leaves_no_trace(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []

    def counted(*given: Any) -> Metric | None:
        samples.append(sample(*given))
        return samples[-1]

    monkeypatch.setattr("cmr.integration.core.sample", counted)
    ids, asks = text(1, 300), text(1, 24)
    want = model(input_ids=asks).logits
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(ids)
        assert not sampling(memory) and memory.stats()["searched_by"] == "sampled"
        before, stored = hooks_of(model), memory.tokens
        index = memory._core.ring.index.clone()
        for _ in range(2):
            model(input_ids=asks, use_cache=False)
        assert len(samples) == 1 and samples[0] is not None
        assert memory.tokens == stored and torch.equal(memory._core.ring.index, index)
        assert hooks_of(model) == before
    # What is stored is what is stored without it.
    with cmr.attach(model, calibration="none", **SETTINGS) as memory:
        memory.read(ids)
        assert memory.stats()["searched_by"] == "none"
        assert torch.equal(memory._core.ring.index, index)
        model(input_ids=asks, use_cache=False)
        assert not sampling(memory)
    assert len(samples) == 1
    assert torch.equal(model(input_ids=asks).logits, want)


def test_nothing_that_was_read_is_in_the_metric(llama: nn.Module) -> None:
    found = []
    for seed in (1, 2):
        with cmr.attach(llama, **SETTINGS) as memory:
            memory.read(text(1, 300, seed=seed))
            llama(input_ids=text(1, 24))
            found.append(memory._core.metric)
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(found[0].projection, found[1].projection)


def test_a_text_that_goes_on_is_weighed_too(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the answer so far asks: each token once, new ones beside those of before."""
    weighed: list[int] = []
    specified = query.weighed

    def noted(states: torch.Tensor, *metric: torch.Tensor) -> torch.Tensor:
        weighed.append(states.shape[-2])
        return specified(states, *metric)

    monkeypatch.setattr(query, "weighed", noted)
    with cmr.attach(llama, **SETTINGS, refresh=4, query_tokens=8) as memory:
        memory.read(text(1, 300))
        llama.generate(text(1, 12), max_new_tokens=13, do_sample=False, pad_token_id=0)
    assert weighed[0] == 8 and len(weighed) >= 3 and max(weighed[1:]) <= 8


@pytest.mark.parametrize(
    "settings",
    [{"similarity_threshold": -1.0}, {"strategy": "contextual_relevance"}, {"calibration": "none"}],
    ids=lambda settings: next(iter(settings)),
)
def test_who_asks_for_cosines_gets_them(llama: nn.Module, settings: dict[str, Any]) -> None:
    with cmr.attach(llama, **SETTINGS, **settings) as memory:
        memory.read(text(1, 300))
        llama(input_ids=text(1, 24))
        assert not sampling(memory) and memory.recalled[0]


def test_reading_with_recall_is_weighed(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(1, 300), recall=True)
        assert sampling(memory)


def test_training_goes_on_as_it_was(llama: nn.Module) -> None:
    llama.train()
    try:
        metric = sample(ModelAdapter(llama), 2)
        assert metric is not None and all(module.training for module in llama.modules())
    finally:
        llama.eval()
    again = sample(ModelAdapter(llama), 2)
    assert again is not None and torch.equal(metric.projection, again.projection)


def test_an_interrupt_in_the_sample_leaves_the_next_search_to_take_it(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(1, 300))
        before = hooks_of(llama)

        def interrupted(states: torch.Tensor) -> Metric:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(sampled.Metric, "of", staticmethod(interrupted))
            with pytest.raises(KeyboardInterrupt):
                llama(input_ids=text(1, 24))
        assert hooks_of(llama) == before and not sampling(memory)
        llama(input_ids=text(1, 24))
        assert sampling(memory) and memory.recalled[0]


def test_few_positions_are_enough(tiny: Any) -> None:
    gpt2 = tiny("gpt2")
    adapter = ModelAdapter(gpt2)
    adapter.max_positions = 16
    seen = []
    handle = adapter.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    try:
        assert sample(adapter, 2) is not None
    finally:
        handle.remove()
    assert seen == [(ROWS, 16)]


# -- saved and loaded ------------------------------------------------------------------------------


def test_what_was_indexed_elsewhere_is_searched_where_it_was_indexed(
    llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever layer is the usual one now, and though a calibration has come meanwhile."""
    asks = text(1, 300)[:, 100:124]
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "INDEX_SHARE", 0.7)
        with cmr.attach(llama, **SETTINGS) as memory:
            memory.read(text(1, 300))
            llama(input_ids=asks)
            layer, want = memory.stats()["index_layer"], memory.recalled
            memory.save(tmp_path / "mem")
    with cmr.attach(llama) as memory:
        assert memory.stats()["index_layer"] != layer
    with cmr.load(tmp_path / "mem", llama) as memory:
        assert memory.stats()["index_layer"] == layer
        assert memory.stats()["searched_by"] == "sampled"
        llama(input_ids=asks)
        assert memory.recalled == want
        memory.save(tmp_path / "again")
    with cmr.load(tmp_path / "again", llama, calibration="none") as memory:
        assert memory.stats()["searched_by"] == "none" and memory.tokens == 300


# -- on the small model ----------------------------------------------------------------------------


@pytest.mark.slow
def test_it_finds_nearly_what_the_calibrated_model_finds(smollm2: Any) -> None:
    from benchmarks.retrieval.remembered import Remembered, share_found
    from benchmarks.texts.haystack import make_haystacks

    model, tokenizer = smollm2
    haystack = make_haystacks(tokenizer, 5_000, 1)[0]
    found: dict[str, float] = {}
    for calibration in ("auto", "sampled"):
        settings = {"calibration": calibration, "target_layers": [8]}
        kept = Remembered(model, tokenizer, haystack, settings)
        ranked = kept.ranker("default", 2)
        found[kept.memory.stats()["searched_by"]] = statistics.fmean(
            share_found(asked, haystack, [p.read for p in ranked(number)[0]])
            for number, asked in enumerate(haystack.questions)
        )
        kept.memory.detach()
    assert found["measured"] > 0.8, found
    assert found["sampled"] >= 0.9 * found["measured"], found
