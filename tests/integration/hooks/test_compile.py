"""A compiled model with a memory says what it says uncompiled, and is compiled but a few times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch._dynamo.utils import counters

import cmr
from tests.integration.tiny import SHAPE, TOKENS, greedy, stepwise, text
from tests.kernels.helpers.compare import assert_close

TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
SETTINGS: dict[str, Any] = {
    "window": 32,
    "index_layer": 0,
    "memory_weight": 0.5,
    "threshold": 0.0,
    "block_size": 8,
    "sink_guard": 4,
}


def decoder(layers: int) -> nn.Module:
    """Of a layer or two: what is traced takes a second for each."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, **TOKENS)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs compiled so far."""
    return counters["stats"]["unique_graphs"]


def remembering(model: nn.Module, **settings: Any) -> cmr.Memory:
    memory = cmr.attach(model, **{**SETTINGS, **settings})
    memory.read(text(2, 96, seed=1))
    return memory


def test_memory_comes_and_goes_in_a_compiled_model() -> None:
    """No graph outlives what it was traced with: attached, paused, detached, another one."""
    model, ids = decoder(2), text(2, 12)
    plain = model(ids).logits
    with remembering(model):
        want = model(ids).logits
    other = {"target_layers": (0,), "index_layer": 1, "memory_weight": 0.8}
    with remembering(model, **other):
        want_other = model(ids).logits
    assert (want - plain).abs().max() > 0.1 and (want - want_other).abs().max() > 0.1

    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(ids).logits, plain)
    with remembering(model) as memory:
        assert_close("attached", compiled(ids).logits, want, **TOLERANCE)
        assert memory.recalled[0] and memory.recalled[1]
        memory.pause()
        assert torch.equal(compiled(ids).logits, plain)
        memory.resume()
        assert_close("resumed", compiled(ids).logits, want, **TOLERANCE)
    assert torch.equal(compiled(ids).logits, plain)
    with remembering(model, **other) as memory:
        assert_close("another one", compiled(ids).logits, want_other, **TOLERANCE)
        assert memory.recalled[0]
    assert torch.equal(compiled(ids).logits, plain)


def test_decoding_compiles_a_few_graphs_and_no_more() -> None:
    """A prompt, a step, a step of any length; text that leaves the window adds none."""
    model, ids = decoder(1), text(2, 52)
    with remembering(model, refresh=3) as memory:
        read = memory.stats()["written_blocks"]
        want = stepwise(model, ids, 12)
        left = memory.stats()["written_blocks"] - read
    assert left, "nothing left the window"
    model.compile(backend="eager")
    with remembering(model, refresh=3) as memory:
        assert_close("logits", stepwise(model, ids[:, :32], 12), want[:, :32], **TOLERANCE)
        before = graphs()
        assert before <= 5, "20 steps within the window"
        memory.clear()
        memory.read(text(2, 96, seed=1))
        written = memory.stats()["written_blocks"]
        assert_close("logits", stepwise(model, ids, 12), want, **TOLERANCE)
        assert graphs() == before, "the same again, and 20 steps beyond the window"
        assert memory.stats()["written_blocks"] - written == left


@pytest.mark.parametrize("how", ["forward", "decoder"])
def test_generate_runs_compiled_forwards(how: str) -> None:
    """Compiled before the memory is attached or behind it; the prompt overflows the window."""
    model, prompt = decoder(1), text(1, 48)
    with remembering(model):
        want = greedy(model, prompt, 6)
    before = graphs()

    def compile_it() -> None:
        if how == "forward":
            model.forward = torch.compile(model.forward, backend="aot_eager")
        else:
            model.model.compile(backend="eager")

    if how == "forward":
        compile_it()
    with remembering(model) as memory:
        if how != "forward":
            compile_it()
        assert torch.equal(greedy(model, prompt, 6), want)
        assert memory.stats()["recalls"]
    assert graphs() > before, "nothing was compiled"


def test_layers_compiled_one_by_one() -> None:
    """Hooks on a layer come and go without its neighbours' graphs taking notice."""
    model, ids = decoder(2), text(2, 12)
    settings = [{"index_layer": 1}, {"index_layer": 0}]
    want = []
    for setting in settings:
        with remembering(model, **setting):
            want.append(model(ids).logits)
    plain = model(ids).logits
    for layer in model.model.layers:
        layer.compile(backend="eager")
    assert torch.equal(model(ids).logits, plain)
    for setting, expected in zip(settings, want, strict=True):
        with remembering(model, **setting) as memory:
            assert_close(str(setting), model(ids).logits, expected, **TOLERANCE)
            assert memory.recalled[0]
    assert torch.equal(model(ids).logits, plain)
