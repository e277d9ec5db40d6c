"""What the memory adds to a decoding step: no wait for the device, no allocation, few launches.

There is no GPU here. What a layer runs is noted operation by operation, traced with fake tensors,
compiled as one graph, and its launches are counted by the host functions of the Triton kernels.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import cmr
from cmr.integration.hooks.step import Step
from cmr.integration.reweave import attention as plug
from cmr.integration.reweave import recall as recalling
from cmr.integration.reweave.scratch import StepScratch
from cmr.kernels.attention import rotate
from cmr.kernels.dispatch import REGISTERED
from tests.integration.hooks.operations import Operations, tensors
from tests.integration.tiny import LAYERS, text

pytestmark = pytest.mark.usefixtures("in_place")

SETTINGS: dict[str, Any] = {"window": 32, "threshold": 0.0, "target_layers": LAYERS, "refresh": 4}
MOST_LAUNCHES = 3
STEPS = 24


@pytest.fixture
def in_place(monkeypatch) -> None:
    """Blocks are read where they are stored, as with the Triton kernels."""
    monkeypatch.setattr(recalling, "in_place", lambda device: True)


@pytest.fixture(params=[1, 4])
def parts(request, monkeypatch) -> int:
    """Into how many parts the local keys are divided: more than one as on a GPU."""
    monkeypatch.setattr(plug, "parts", lambda query, key: request.param)
    return request.param


class Steps:
    """Decodes token by token with a memory, and notes what each layer runs in the last step."""

    def __init__(self, model: nn.Module, rows: int, **settings: Any) -> None:
        self.memory = cmr.attach(model, **{**SETTINGS, **settings})
        self.memory.read(text(rows, 300))
        ids = text(rows, 12, seed=3)
        out = model(ids, use_cache=True)
        self.model, self.cache, self.steps = model, out.past_key_values, 0
        self.next = out.logits[:, -1:].argmax(-1)
        self.layers: dict[int, Operations] = {}
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def step(self) -> torch.Tensor:
        out = self.model(self.next, past_key_values=self.cache, use_cache=True)
        self.next = out.logits[:, -1:].argmax(-1)
        self.steps += 1
        return out.logits[:, -1]

    def watched(self, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
        """One step; what every layer runs from its query to its blended output is noted."""
        weave = plug.weave

        def noted(*args: Any, **named: Any) -> Any:
            self.calls.append((args, named))
            with Operations() as operations:
                result = weave(*args, **named)
            self.layers[len(self.layers)] = operations
            return result

        with monkeypatch.context() as patch:
            patch.setattr(plug, "weave", noted)
            logits = self.step()
        return logits


def decoding(model: nn.Module, rows: int = 2, steps: int = 2, **settings: Any) -> Steps:
    run = Steps(model, rows, **settings)
    for _ in range(steps):
        run.step()
    return run


def test_a_layer_runs_two_operations_and_nothing_else(llama, parts, monkeypatch) -> None:
    run = decoding(llama)
    run.watched(monkeypatch)
    first = "attention_with_lse" if parts == 1 else "attention_partials"
    assert len(run.layers) == len(LAYERS)
    for operations in run.layers.values():
        assert operations.ours == [first, "reweave_paged"]
        assert operations.computing == [] and operations.waiting == []
        assert operations.allocating == []
    assert run.memory.recalled[0], "nothing was read: the step proves nothing"


def test_dividing_the_keys_changes_nothing(llama, monkeypatch) -> None:
    logits = {}
    for count in (1, 4):
        monkeypatch.setattr(plug, "parts", lambda query, key, count=count: count)
        run = decoding(llama)
        logits[count] = run.step()
        run.memory.detach()
    torch.testing.assert_close(logits[1], logits[4], atol=1e-4, rtol=1e-4)


def test_the_step_is_one_graph(llama, parts, monkeypatch) -> None:
    run = decoding(llama)
    run.watched(monkeypatch)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    args, named = run.calls[-1]
    want = [x.clone() for x in plug.weave(*args, **named)]
    for tensor in (named["into"].out, named["into"].gate):
        tensor.fill_(float("nan"))
    torch._dynamo.reset()
    compiled = torch.compile(plug.weave, fullgraph=True, backend=keep)
    have = compiled(*args, **named)
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("cmr" in name for name in called) == 2, called
    for a, b in zip(have, want, strict=True):
        assert torch.equal(a, b)


def test_the_step_traces_without_data(llama, parts, monkeypatch) -> None:
    """Whatever asks for a value on the way raises with fake tensors."""
    run = decoding(llama)
    run.watched(monkeypatch)
    args, named = run.calls[0]
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args[:4])
        memory = replace(
            _mapped(args[4], mode.from_tensor), held=_mapped(args[4].held, mode.from_tensor)
        )
        named = {**named, "into": _mapped(named["into"], mode.from_tensor)}
        out, gate = plug.weave(*fake, memory, **named)
    assert out.shape == args[0].shape and gate.shape == args[0].shape[:3]


def test_launches_of_a_layer(llama, parts, monkeypatch) -> None:
    """The host functions, on tensors without data: what they launch, and that they allocate not."""
    pytest.importorskip("triton")
    from benchmarks.compiled.compiler import pretending, recording

    run = decoding(llama)
    run.watched(monkeypatch)
    for operations in run.layers.values():
        launches = 0
        for func, args in operations.calls:
            if func.namespace != "cmr":
                continue
            module, _, name = REGISTERED[func._opname].partition(":")
            host = getattr(importlib.import_module(f"cmr.kernels.gpu.{module}"), name)
            there = torch.utils._pytree.tree_map_only(torch.Tensor, _on_meta, args)
            with pretending("sm_90"), recording() as noted, Operations() as inside:
                host(*there)
            assert inside.computing == [] and inside.allocating == [], inside.calls
            launches += len(noted)
        assert 2 <= launches <= MOST_LAUNCHES


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
@pytest.mark.parametrize("positions", ["constant", "layout", "true"])
def test_a_copy_reads_the_same(llama, store, positions, monkeypatch) -> None:
    """In place or from a copy, with rows of different lengths and one that has no memory."""
    logits = {}
    for way in (True, False):
        monkeypatch.setattr(recalling, "in_place", lambda device, way=way: way)
        with cmr.attach(llama, **{**SETTINGS, "store": store, "positions": positions}) as memory:
            memory.read(text(2, 150), torch.tensor([[1] * 150, [1] * 90 + [0] * 60]))
            out = llama(text(3, 12, seed=3), use_cache=True)
            steps = [out.logits[:, -1]]
            for _ in range(6):
                ids = steps[-1].argmax(-1, keepdim=True)
                steps.append(llama(ids, past_key_values=out.past_key_values).logits[:, -1])
            assert memory.recalled[0] and memory.recalled[1] and not memory.recalled[2]
        logits[way] = torch.stack(steps)
    torch.testing.assert_close(logits[True], logits[False], atol=1e-4, rtol=1e-4)


def test_an_overwritten_block_is_not_read(llama) -> None:
    """Its slot holds another session's text by then."""
    run = decoding(llama, rows=1, refresh=1000, budget=32 * 12)
    core, stepper = run.memory._core, run.memory._stepper
    chosen = stepper.last.recall.choice.table.flatten().tolist()
    run.memory.read(text(1, 32 * 11, seed=9), sessions=["other"])
    taken = core.ring.session == core.table.find("other")
    assert any(slot >= 0 and bool(taken[slot]) for slot in chosen), "nothing was overwritten"
    for stores in (core.ring.keys, core.ring.values):
        for store in stores.values():
            store[taken] = float("nan")
    assert run.step().isfinite().all()


def test_an_embedding_that_scales_attention_scales_keys_that_are_not_rotated(llama) -> None:
    """YaRN: the factor that the model puts on query and key is on the query twice instead."""
    model = scaled(llama)
    with cmr.attach(model, **SETTINGS) as memory:
        stepper, adapter = memory._stepper, memory._core.adapter
        positions = torch.tensor([[7]])
        step = Step(None, [], torch.zeros(1, 1).long(), positions)
        cos, sin = adapter.rotary(0, positions)
        assert not torch.allclose(cos * cos + sin * sin, torch.ones(()), atol=0.05)
        query, key = torch.randn(2, 1, 4, 1, 16)
        turned = rotate(rotate(query, cos, sin), *stepper.reading.turn(step, 0, query.device))
        there = adapter.rotary(0, torch.tensor([[SETTINGS["window"]]]))
        front = adapter.rotary(0, torch.tensor([[0]]))
        want = (rotate(query, *there) * rotate(key, *front)).sum(-1)
        torch.testing.assert_close((turned * key).sum(-1), want, atol=1e-4, rtol=1e-4)


def scaled(model: nn.Module) -> nn.Module:
    """A model like `model` with YaRN's rotary embedding."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config._attn_implementation = "sdpa"
    return type(model)(config).eval()


def test_addresses_stay_from_step_to_step(llama, monkeypatch) -> None:
    """What a CUDA graph captures is where it was."""
    run = decoding(llama)
    run.watched(monkeypatch)
    first = [named["into"].out.data_ptr() for _, named in run.calls]
    run.calls.clear()
    run.watched(monkeypatch)
    assert first == [named["into"].out.data_ptr() for _, named in run.calls]
    assert len(set(first)) == len(LAYERS)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_search_while_decoding_waits_for_nothing(llama, monkeypatch, blocks) -> None:
    run = decoding(llama, refresh=4, steps=9, blocks=blocks)
    core = run.memory._core
    record = run.memory._stepper.last.record
    states = torch.randn(2, 4, core.adapter.hidden)
    before = record.search.query.settle(core.search_again(record.search.query))
    with Operations() as operations:
        record.search.query.add(states, None)
        found = core.search_again(record.search.query)
    assert operations.waiting == []
    assert found.table.data_ptr() == before.table.data_ptr()
    further = {"cover"} if blocks > 1 else set()
    assert set(operations.ours) == {"write_query", "block_maxima", "maxsim_select", *further}
    if blocks == 1:
        assert operations.allocating == []
        assert all("fill_" in name or "copy_" in name for name in operations.computing)


def test_with_gradients_nothing_is_written_over(llama) -> None:
    run = decoding(llama, rows=1)
    with torch.enable_grad():
        first = run.model(run.next, past_key_values=run.cache, use_cache=True).logits
        kept = first.detach().clone()
        run.model(run.next, past_key_values=run.cache, use_cache=True)
        assert torch.equal(first, kept)
        first.sum().backward()
    assert next(run.model.parameters()).grad is not None
    run.model.zero_grad()


def test_scratch_is_let_go_at_the_end(llama) -> None:
    run = decoding(llama)
    scratch: StepScratch = run.memory._stepper.scratch
    assert scratch._kept
    run.memory.detach()
    assert not scratch._kept


def _mapped(value: Any, change: Any) -> Any:
    """A dataclass with its tensors (and tuples of them) changed."""
    found = {
        name: torch.utils._pytree.tree_map_only(torch.Tensor, change, part)
        for name, part in vars(value).items()
        if tensors(part)
    }
    return replace(value, **found)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    size, stride = tensor.size(), tensor.stride()
    return torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
