"""What a model with a memory must equal, exactly or up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import cmr
from cmr.integration.reweave.recomputer import Recomputer
from tests.integration.tiny import (
    FAMILIES,
    LAYERS,
    READS_ALL,
    SLIDING,
    greedy,
    padded,
    stepwise,
    text,
)
from tests.kernels.helpers.compare import assert_close

TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
ROTARY = tuple(name for name in FAMILIES if name != "gpt2")


def outputs(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that a user can ask of a decoder with these ids."""
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {
        "forward": model(ids).logits,
        "without cache": model(ids, use_cache=False).logits,
        "left padding": model(ids, attention_mask=mask).logits,
        "step by step": stepwise(model, ids, 30),
        "in pieces": stepwise(model, ids[:, :12], 1),
        "greedy": greedy(model, ids, attention_mask=mask),
        "beams": greedy(model, ids, num_beams=2),
    }


def memory_off(how: str, model: nn.Module, stored: torch.Tensor) -> cmr.Memory:
    """A memory that must not be felt: paused, of weight 0, or empty."""
    memory = cmr.attach(model, window=64, memory_weight=0.0 if how == "weight 0" else 0.5)
    if how != "empty":
        memory.read(stored)
    if how == "paused":
        memory.pause()
    return memory


@pytest.mark.parametrize("how", ["paused", "weight 0", "empty"])
@pytest.mark.parametrize("name", FAMILIES + SLIDING)
def test_a_memory_that_is_off_changes_no_bit(
    name: str, how: str, tiny: Callable[[str], nn.Module]
) -> None:
    model, ids = tiny(name), text(2, 40)
    want = outputs(model, ids)
    with memory_off(how, model, text(2, 200, seed=1)):
        have = outputs(model, ids)
    for kind in want:
        assert torch.equal(have[kind], want[kind]), f"{kind} differs"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_memory_that_is_read_changes_the_logits(
    name: str, implementation: str, tiny: Callable[[str], nn.Module]
) -> None:
    """The tests above would pass if memory were never read."""
    model, ids = tiny(name), text(2, 40)
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        want = model(ids).logits
        with cmr.attach(model, **READS_ALL, window=64) as memory:
            memory.read(text(2, 96, seed=1))
            assert (model(ids).logits - want).abs().max() > 0.1
            assert {layer: gate.shape for layer, gate in memory._stepper.last.gates.items()} == {
                layer: (2, 4, 40) for layer in LAYERS
            }
        assert model.config._attn_implementation == implementation
    finally:
        model.set_attn_implementation(before)


def all_in_memory(
    model: nn.Module, whole: torch.Tensor, stored: int, **settings: object
) -> cmr.Memory:
    """A memory of the first `stored` tokens, read in one piece, that every layer reads in full."""
    settings = {"window": 128, "left_context": 0, "positions": "true", **READS_ALL, **settings}
    memory = cmr.attach(model, **settings)
    memory.read(whole[:, :stored])
    assert memory.stats()["blocks"] == len(whole) * -(-stored // 32)
    return memory


@pytest.mark.parametrize("store", ["kv", "states"])
@pytest.mark.parametrize("stored", [64, 96, 110])
def test_all_in_memory_at_true_positions_is_full_attention(
    stored: int, store: str, model: nn.Module
) -> None:
    whole = text(1, stored + 24)
    want = model(whole).logits[:, stored:]
    places = torch.arange(stored, stored + 24)[None]
    with all_in_memory(model, whole, stored, store=store):
        have = model(whole[:, stored:], position_ids=places).logits
    assert_close("logits", have, want, **TOLERANCE)


def test_all_in_memory_step_by_step_is_full_attention(model: nn.Module) -> None:
    whole = text(2, 112)
    want = model(whole).logits[:, 96:]
    with all_in_memory(model, whole, 96, refresh=3) as memory:
        logits, cache = [], None
        for start, stop in ((96, 97), (97, 103), (103, 104), (104, 105), (105, 106), (106, 107),
                            (107, 108), (108, 112)):  # fmt: skip
            places = torch.arange(start, stop)[None].expand(2, -1)
            out = model(whole[:, start:stop], position_ids=places, past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits)
        assert memory.stats()["searches"] == 4  # three forwards of several tokens, and one refresh
    assert_close("logits", torch.cat(logits, dim=1), want, **TOLERANCE)


@pytest.mark.parametrize("name", ROTARY)
def test_memory_laid_out_before_the_window_is_full_attention(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    """Only distances count, so the window may begin at position 0."""
    model, whole = tiny(name), text(1, 120)
    want = model(whole).logits[:, 96:]
    with all_in_memory(model, whole, 96, positions="layout"):
        have = stepwise(model, whole[:, 96:], 10)
    assert_close("logits", have, want, **TOLERANCE)


@pytest.mark.parametrize("weight", [0.1, 0.88])
def test_the_weight_is_a_bias_on_the_logits_of_memory(weight: float, model: nn.Module) -> None:
    whole, new = text(1, 120), 24
    bias = torch.full((1, 1, 120, 120), -torch.inf).triu(1)
    bias[..., 96:, :96] = torch.tensor(weight).logit()
    want = model(whole, attention_mask=bias).logits[:, 96:]
    with all_in_memory(model, whole, 96, memory_weight=weight):
        places = torch.arange(96, 96 + new)[None]
        have = model(whole[:, 96:], position_ids=places).logits
    assert_close("logits", have, want, **TOLERANCE)


@pytest.mark.parametrize("padding", [0, 6])
def test_the_first_tokens_do_not_read_memory(padding: int, model: nn.Module) -> None:
    """Nor is the first token of a text read: where it stands, it drains attention."""
    whole = text(1, 120)
    hidden = torch.full((1, 1, 120, 120), -torch.inf).triu(1)
    hidden[..., 96:101, :96] = -torch.inf
    hidden[..., 96:, 0] = -torch.inf
    want = model(whole, attention_mask=hidden).logits[:, 96:]
    with all_in_memory(model, whole, 96, sink_guard=5):
        new = padded([whole[0, 96:], text(24 + padding)], "left")
        places = new["position_ids"][:1] + 96
        have = model(
            new["input_ids"][:1], attention_mask=new["attention_mask"][:1], position_ids=places
        ).logits[:, padding:]
    assert_close("logits", have, want, **TOLERANCE)


@pytest.mark.parametrize("name", ROTARY)
def test_constant_positions_are_one_window_away(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    """A token at position `window` that sees keys of position 0 sees them one window away."""
    model, whole, window = tiny(name), text(1, 97), 128
    with all_in_memory(model, whole, 96, positions="constant") as memory:
        ring = memory._core.ring
        cache = DynamicCache()
        for layer in LAYERS:
            keys, values = ring.gather(layer, torch.tensor([[0, 1, 2]]))
            cache.update(keys, values, layer)
        near = model(whole[:, 96:], position_ids=torch.tensor([[5]])).logits
        far = model(whole[:, 96:], position_ids=torch.tensor([[700]])).logits
    want = model(whole[:, 96:], position_ids=torch.tensor([[window]]), past_key_values=cache).logits
    assert_close("logits at position 5", near, want, **TOLERANCE)
    assert_close("logits at position 700", far, want, **TOLERANCE)


LENGTHS = (70, 133, 32)
QUESTIONS = (21, 14, 30)
NAMES = ("anna", "ben", "carl")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_rows_one_by_one(side: str, model: nn.Module) -> None:
    texts = [text(n, seed=n) for n in LENGTHS]
    questions = [text(n, seed=100 + n) for n in QUESTIONS]
    read = padded(texts, side)
    asked = padded(questions, side)
    settings = {"window": 64, "memory_weight": 0.8, "threshold": 0.0, "refresh": 3}
    with cmr.attach(model, **settings) as memory:
        memory.read(read["input_ids"], read["attention_mask"], sessions=NAMES)
        with memory.session(*NAMES):
            have = model(**asked).logits
            passages = memory.recalled
            if side == "left":
                del asked["position_ids"]
                added = greedy(model, asked.pop("input_ids"), **asked)
                later = memory.recalled
    for row, (name, ids) in enumerate(zip(NAMES, questions, strict=True)):
        with cmr.attach(model, **settings) as memory:
            memory.read(texts[row], sessions=[name])
            with memory.session(name):
                want = model(ids[None]).logits
                alone = memory.recalled[0]
                assert [p.token_ids for p in passages[row]] == [p.token_ids for p in alone]
                if side == "left":
                    assert torch.equal(added[row], greedy(model, ids[None])[0])
                    scores = [[p.score for p in of] for of in (later[row], memory.recalled[0])]
                    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
        mine = slice(-len(ids), None) if side == "left" else slice(len(ids))
        assert_close(f"row {row}", have[row, mine], want[0], **TOLERANCE)
    assert any(passages), "no row read anything"


def stored(memory: cmr.Memory, session: str) -> dict[str, torch.Tensor]:
    """All that a session stored, in the order of its text, padding removed."""
    ring = memory._core.ring
    slots = torch.tensor([entry.slot for entry in memory.entries(session)])
    held = ring.positions[slots] >= 0
    found = {
        "token_ids": ring.token_ids[slots][held],
        "positions": ring.positions[slots][held],
        "index": ring.index[slots][held],
    }
    for name, store in (("keys", ring.keys), ("values", ring.values)):
        for layer, tensor in store.items():
            found[f"{name} of layer {layer}"] = tensor[slots].transpose(1, 2)[held]
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_reading_a_batch_stores_what_reading_its_rows_stores(side: str, model: nn.Module) -> None:
    texts = [text(n, seed=n) for n in LENGTHS]
    with cmr.attach(model, window=64) as memory:
        rows = padded(texts, side)
        report = memory.read(rows["input_ids"], rows["attention_mask"], sessions=NAMES)
        assert report.tokens == memory.tokens == sum(LENGTHS)
        have = [stored(memory, name) for name in NAMES]
    for row, ids in enumerate(texts):
        with cmr.attach(model, window=64) as memory:
            memory.read(ids)
            want = stored(memory, "0")
        assert torch.equal(have[row]["token_ids"], ids)
        assert torch.equal(have[row]["positions"], torch.arange(len(ids)))
        for name in want:
            assert_close(f"{name}, row {row}", have[row][name], want[name], **TOLERANCE)


@pytest.mark.parametrize("store", ["kv", "states"])
def test_reading_in_chunks_stores_what_reading_at_once_stores(store: str, model: nn.Module) -> None:
    ids = text(192)
    with cmr.attach(model, window=256, left_context=0, store=store) as memory:
        memory.read(ids)
        want = stored(memory, "0")
    with cmr.attach(model, window=256, left_context=128, store=store) as memory:
        memory.read(ids)
        have = stored(memory, "0")
    assert len(want) > 3
    for name in want:
        assert_close(name, have[name], want[name], **TOLERANCE)


@pytest.mark.parametrize(("window", "left_context"), [(16, 0), (48, 16), (100, 50), (64, 500)])
def test_chunks_of_any_size_store_every_token_once(
    window: int, left_context: int, llama: nn.Module
) -> None:
    ids = text(333)
    with cmr.attach(llama, window=window, left_context=left_context) as memory:
        memory.read(ids)
        found = stored(memory, "0")
    assert torch.equal(found["token_ids"], ids)
    assert torch.equal(found["positions"], torch.arange(333))


@pytest.mark.parametrize("begin", [1, None])
@pytest.mark.parametrize("context", [0, 19])
def test_recomputed_keys_are_those_of_a_text_of_its_own(
    context: int, begin: int | None, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its beginning-of-text token a passage sees nothing but its context and itself."""
    monkeypatch.setattr(model.config, "bos_token_id", begin)
    ids = text(40)
    ids[0] = 1
    with cmr.attach(
        model, window=64, left_context=0, block_size=1, store="kv", target_layers=LAYERS
    ) as memory:
        memory.read(ids)
        core = memory._core
        first = (0 if begin is None else 1) + context
        passage = torch.arange(first, 40)[None]
        with memory._stepper.alone():
            found = Recomputer(core.adapter, LAYERS, context).recompute(core.ring, passage)
        for layer in LAYERS:
            keys, values = core.ring.gather(layer, passage)
            assert_close(f"keys of layer {layer}", found[layer][0], keys, **TOLERANCE)
            assert_close(f"values of layer {layer}", found[layer][1], values, **TOLERANCE)
