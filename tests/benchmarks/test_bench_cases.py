"""Each benchmark at a small size: both sides agree and are timed. No time is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.ops import (
    bench_attention,
    bench_decode_step,
    bench_maxsim,
    bench_ranges,
    bench_reweave,
    bench_ring_write,
    bench_score,
)
from benchmarks.shared import decoding

HEADS = {"heads": 4, "groups": 2, "width": 16}
CASES: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (bench_score.test_state_scores, {"tokens": 64, "hidden": 60}),
    (bench_score.test_attention_received, HEADS),
    (bench_score.test_surprise, {"vocabulary": 101}),
    (bench_ring_write.test_keys_and_values, {"tokens": 64, "groups": 2, "width": 16}),
    (bench_ring_write.test_index, {"tokens": 64, "hidden": 60}),
    (bench_maxsim.test_block_maxima, {"queries": 3, "stored": 320, "hidden": 60}),
    (bench_maxsim.test_select, {"stored": 3200}),
    (bench_attention.test_prefill, HEADS),
    (bench_attention.test_decode, {**HEADS, "seen": 70}),
    (bench_reweave.test_layer, {**HEADS, "tokens": 1}),
    (bench_reweave.test_residual, {"hidden": 60}),
]


class Fixture:
    """Stands for pytest-benchmark's fixture: calls once and times nothing."""

    enabled = False

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.calls = 0

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.calls += 1
        return call(*arguments)

    def pedantic(self, call: Callable[..., Any], setup: Any, **rounds: int) -> None:
        arguments, named = setup()
        self(call, *arguments, **named)


@pytest.mark.parametrize("by", ["cmr", "plain"])
@pytest.mark.parametrize(
    ("case", "sizes"), CASES, ids=[f"{c.__module__[21:]}-{c.__name__[5:]}" for c, _ in CASES]
)
def test_both_sides_agree_and_run(case: Callable[..., None], sizes: dict, by: str) -> None:
    fixture = Fixture()
    case(fixture, device="cpu", by=by, **sizes)
    assert fixture.calls == 1
    assert fixture.extra_info["bytes"] > 0 and fixture.extra_info["by"] == by


@pytest.mark.parametrize("by", ["memory", "paused"])
def test_the_decode_step(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_decode_step, "STORED", 300)
    monkeypatch.setattr(bench_decode_step, "PROMPT", 40)
    monkeypatch.setattr(bench_decode_step, "STEPS", 2)
    fixture = Fixture()
    model = decoding.tiny_model(dtype=torch.float32, layers=2)
    bench_decode_step.test_decode_step(fixture, loaded=("tiny", model), device="cpu", by=by)
    assert fixture.calls == 1
    assert 0 < fixture.extra_info["gate"] < 1


@pytest.mark.parametrize("by", ["never", "off"])
def test_the_ranges(by: str) -> None:
    fixture = Fixture()
    bench_ranges.test_ranges(fixture, by)
    assert fixture.calls == 1
