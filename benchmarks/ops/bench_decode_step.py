"""Decode steps of an attached model: `pytest benchmarks/ops/bench_decode_step.py`.

`memory`: 4,000 tokens stored and read by every step; `paused`: the model alone, with the memory
attached and paused. A call is `STEPS` steps behind a fresh prompt, one search among them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.ops.measure import DEVICES, conditions, size
from benchmarks.shared import decoding

STEPS = 16
STORED, PROMPT = 4000, 256


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def loaded(request: pytest.FixtureRequest) -> tuple[str, Any]:
    if request.param == "tiny":
        return request.param, decoding.tiny_model()
    from cmr.demo.smollm2 import load_smollm2

    return request.param, load_smollm2()[0].eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by", ["memory", "paused"])
@torch.inference_mode()
def test_decode_step(benchmark, loaded: tuple[str, Any], device: str, by: str) -> None:
    name, model = loaded
    model.to(device)
    vocabulary = model.config.vocab_size
    prompt = decoding.some_text(PROMPT, vocabulary, seed=1)
    alone = decoding.begin(model, prompt).steps(STEPS)
    with decoding.remembering(model, decoding.some_text(STORED, vocabulary)) as memory:
        decoding.begin(model, prompt).steps(STEPS)
        share = decoding.gate(memory)
        assert share > 0, "nothing was read from memory: there is nothing to time"
        memory.pause()
        assert torch.equal(decoding.begin(model, prompt).steps(STEPS), alone), "paused, it differs"
        if by == "memory":
            memory.resume()
        if benchmark.enabled:
            benchmark.extra_info.update(conditions(device))
        benchmark.extra_info.update(
            by=by, model=name, steps=STEPS, stored=STORED, prompt=PROMPT,
            gate=round(share, 4), bytes=STEPS * size(*model.parameters()),
        )  # fmt: skip

        def call(run: decoding.Decoding) -> None:
            run.steps(STEPS)
            if device == "cuda":
                torch.cuda.synchronize()

        def fresh() -> tuple[tuple[decoding.Decoding], dict[str, Any]]:
            run = decoding.begin(model, prompt)
            if device == "cuda":
                torch.cuda.synchronize()
            return (run,), {}

        benchmark.pedantic(call, setup=fresh, rounds=10, warmup_rounds=2)
