"""Without limit: the local cache stays bounded, and what leaves it becomes memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import cmr
from cmr.kernels.attention import rotate, unrotate
from tests.integration.tiny import FAMILIES, SLIDING, greedy, padded, stepwise, text
from tests.kernels.helpers.compare import assert_close

WINDOW, SINKS, BLOCK = 64, 4, 32
TOLERANCE = {"atol": 5e-4, "rtol": 5e-4}


def watch(memory: cmr.Memory) -> list[list[int]]:
    """After every forward of the decoder, the tokens that each layer of its cache holds."""
    held: list[list[int]] = []

    def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        cache = None if output is None else output.past_key_values
        if cache is not None:
            held.append([layer.keys.shape[2] for layer in cache.layers])

    decoder = memory._core.adapter.decoder
    decoder.register_forward_hook(look, with_kwargs=True)
    return held


@pytest.fixture(autouse=True)
def no_hook_stays(tiny: Callable[[str], nn.Module]) -> Any:
    yield
    for name in FAMILIES + SLIDING:
        tiny(name).get_decoder()._forward_hooks.clear()


def stored(memory: cmr.Memory, session: str) -> tuple[list[int], list[int]]:
    """Token ids and positions that a session stored, in the order in which they were."""
    ring = memory._core.ring
    ids, places = [], []
    for entry in memory.entries(session):
        kept = ring.positions[entry.slot] >= 0
        ids += ring.token_ids[entry.slot][kept].tolist()
        places += ring.positions[entry.slot][kept].tolist()
    return ids, places


@pytest.mark.parametrize("name", FAMILIES + SLIDING)
def test_a_long_generation_is_bounded_and_remembered(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    model, ids = tiny(name), text(1, 20)
    with cmr.attach(model, window=WINDOW, threshold=0.0, memory_weight=0.8) as memory:
        held = watch(memory)
        out = model.generate(ids, max_new_tokens=210, do_sample=False)[0].tolist()
        tokens, places = stored(memory, "0")
        assert max(map(max, held)) <= SINKS + WINDOW
        assert min(held[-1]) > SINKS + WINDOW - BLOCK
        assert len(tokens) == 20 + 209 - held[-1][0]
        assert memory.recalled[0], "what left the window was never recalled"
    assert tokens == out[SINKS : SINKS + len(tokens)]
    assert places == list(range(len(tokens)))


def test_a_generation_may_go_on_behind_the_last_absolute_position(
    tiny: Callable[[str], nn.Module],
) -> None:
    model, ids = tiny("gpt2"), text(1, 20)
    with cmr.attach(model, window=WINDOW, memory_weight=0.0) as memory:
        out = model.generate(ids, max_new_tokens=model.config.n_positions, do_sample=False)
        tokens, _ = stored(memory, "0")
    assert out.shape[1] == model.config.n_positions + 20
    assert tokens == out[0, SINKS : SINKS + len(tokens)].tolist()


def by_hand(model: nn.Module, ids: torch.Tensor, adapter: Any) -> torch.Tensor:
    """Logits of `ids` token by token, with the window kept by hand (Xiao et al. 2023).

    Keys are kept un-rotated and rotated anew for each step, the sinks right before the window.
    """
    layers = range(adapter.depth)
    keys: list[torch.Tensor | None] = [None] * adapter.depth
    values: list[torch.Tensor | None] = [None] * adapter.depth
    logits, left = [], 0
    for at in range(ids.shape[1]):
        places = torch.arange(at - left) + left
        cache = DynamicCache()
        for layer in layers if at else ():
            seen = keys[layer]
            if adapter.has_rotary:
                seen = rotate(seen, *adapter.rotary(layer, places[None]))
            cache.update(seen, values[layer], layer)
        here = torch.tensor([[at]])
        out = model(ids[:, at : at + 1], position_ids=here, past_key_values=cache)
        logits.append(out.logits)
        for layer in layers:
            new = out.past_key_values.layers[layer].keys[:, :, -1:]
            if adapter.has_rotary:
                new = unrotate(new, *adapter.rotary(layer, here))
            value = out.past_key_values.layers[layer].values[:, :, -1:]
            keys[layer] = new if at == 0 else torch.cat([keys[layer], new], dim=2)
            values[layer] = value if at == 0 else torch.cat([values[layer], value], dim=2)
        if at + 1 - left > SINKS + WINDOW:
            left += BLOCK
            for kept in (keys, values):
                for layer in layers:
                    x = kept[layer]
                    kept[layer] = torch.cat([x[:, :, :SINKS], x[:, :, SINKS + BLOCK :]], dim=2)
    return torch.cat(logits, dim=1)


def test_the_window_with_its_sinks_is_that_kept_by_hand(model: nn.Module) -> None:
    ids = text(1, 180)
    with cmr.attach(model, window=WINDOW, memory_weight=0.0) as memory:
        have = stepwise(model, ids, 1)
        adapter = memory._core.adapter
        assert memory.tokens == 4 * BLOCK
    want = by_hand(model, ids, adapter)
    assert_close("logits", have, want, **TOLERANCE)


@pytest.mark.parametrize("store", ["kv", "states"])
def test_what_leaves_is_stored_as_the_model_made_it(store: str, model: nn.Module) -> None:
    """Un-rotated keys, values and states of the tokens before the window first moved."""
    ids, kept = text(2, 130), 64
    states = model(ids[:, : SINKS + kept], output_hidden_states=True).hidden_states
    with cmr.attach(model, window=WINDOW, memory_weight=0.0, store=store) as memory:
        stepwise(model, ids, 30)
        core = memory._core
        for row in range(2):
            slots = torch.tensor([[entry.slot for entry in memory.entries(str(row))[:2]]])
            mine = [x[row : row + 1, SINKS:] for x in states]
            assert torch.equal(core.ring.token_ids[slots].flatten(), ids[row, SINKS : SINKS + kept])
            unit = torch.nn.functional.normalize(mine[core.layout.index_layer], dim=-1)
            assert_close("index", core.ring.index[slots].flatten(1, 2), unit, **TOLERANCE)
            for layer in core.layout.targets:
                want = core.adapter.keys_values(layer, mine[layer])
                if store == "states":
                    want = mine[layer][:, None], None
                have = core.ring.gather(layer, slots)
                assert_close(f"keys of layer {layer}", have[0], want[0], **TOLERANCE)
                if store == "kv":
                    assert_close(f"values of layer {layer}", have[1], want[1], **TOLERANCE)


def test_padded_rows_keep_their_first_real_tokens_for_sinks(model: nn.Module) -> None:
    lengths = (60, 23, 57)
    texts = [text(n, seed=n) for n in lengths]
    batch = padded(texts, "left")
    del batch["position_ids"]
    with cmr.attach(model, window=WINDOW, memory_weight=0.0, target_layers=range(6)) as memory:
        out = model.generate(
            **batch, max_new_tokens=120, do_sample=False, return_dict_in_generate=True
        )
        layer, adapter = out.past_key_values.layers[0], memory._core.adapter
        embed = adapter.model.get_input_embeddings()
        for row, ids in enumerate(texts):
            padding = 60 - len(ids)
            real = out.sequences[row, padding:].tolist()
            tokens, places = stored(memory, str(row))
            assert tokens == real[SINKS : SINKS + len(tokens)]
            assert places == list(range(len(tokens)))
            left = layer.gone[row]
            assert len(tokens) == left > 0
            first = layer.keys.shape[2] - (179 - padding - left)  # of what the row holds
            sinks = slice(first, first + SINKS)
            states = embed(ids[None, :SINKS])
            if not adapter.has_rotary:
                states = states + adapter.decoder.wpe(torch.arange(SINKS))
            keys, values = adapter.keys_values(0, states)
            assert_close("sinks' values", layer.values[row, None, :, sinks], values, **TOLERANCE)
            if adapter.has_rotary:  # right before the first key of the window
                at = torch.arange(SINKS)[None] + left
                keys = rotate(keys, *adapter.rotary(0, at))
            assert_close("sinks' keys", layer.keys[row, None, :, sinks], keys, **TOLERANCE)


@pytest.mark.parametrize("lengths", [(180, 100, 70), (150, 150, 20)])
def test_right_padding_is_not_remembered(lengths: tuple[int, ...], llama: nn.Module) -> None:
    texts = [text(n, seed=n + row) for row, n in enumerate(lengths)]
    with cmr.attach(llama, window=WINDOW) as memory:
        llama(**padded(texts, "right"))
        for row, ids in enumerate(texts):
            tokens, places = stored(memory, str(row))
            assert tokens == ids[SINKS : SINKS + len(tokens)].tolist()
            assert places == list(range(len(tokens)))
        assert len(stored(memory, "1")[0]) > BLOCK


@pytest.mark.parametrize("tokens", [69, 180])
def test_a_prompt_longer_than_the_window_is_read_through_it(tokens: int, model: nn.Module) -> None:
    texts = [text(tokens, seed=1), text(tokens - 25, seed=2)]
    batch = padded(texts, "left")
    del batch["position_ids"]
    with cmr.attach(model, window=WINDOW, threshold=0.0, memory_weight=0.8) as memory:
        held = watch(memory)
        with memory.session("anna", "ben", create=True):
            out = model.generate(**batch, max_new_tokens=10, do_sample=False)
        assert max(map(max, held)) <= SINKS + WINDOW
        for row, name in enumerate(["anna", "ben"]):
            found, places = stored(memory, name)
            real = out[row, tokens - len(texts[row]) :].tolist()
            assert found == real[SINKS : SINKS + len(found)]
            assert places == list(range(len(found)))
        over = [len(ids) + 9 - SINKS - WINDOW for ids in texts]
        assert memory.tokens == sum(-(-max(0, n) // BLOCK) * BLOCK for n in over)
        assert memory.stats()["searches"] >= 1 or tokens == 69


def test_a_long_prompt_can_ask_for_what_left_the_window_meanwhile(llama: nn.Module) -> None:
    """The last piece of a prompt recalls what its first pieces stored."""
    ids = text(1, 300)
    with cmr.attach(llama, window=WINDOW, threshold=0.0, query_tokens=16) as memory:
        asked = torch.cat([ids, ids[:, 100:120]], dim=1)
        greedy(llama, asked, tokens=1)
        (row,) = memory.recalled
        assert any(p.start <= 100 - SINKS and p.end >= 120 - SINKS for p in row)
        assert memory.stats()["searches"] == 1


def test_a_prompt_within_the_window_is_one_forward(llama: nn.Module) -> None:
    with cmr.attach(llama, window=WINDOW) as memory:
        held = watch(memory)
        greedy(llama, text(1, WINDOW), tokens=1)
        assert len(held) == 1


def test_a_chat_goes_on_with_its_cache(model: nn.Module) -> None:
    """Several tokens on top of a cache, turn after turn, past the window and all remembered."""
    turns = [text(1, n, seed=n) for n in (30, 25, 40, 33)]
    with cmr.attach(model, window=WINDOW, threshold=0.0, memory_weight=0.8, refresh=4) as memory:
        held, cache, talk = watch(memory), None, text(1, 0)
        for turn in turns:
            talk = torch.cat([talk, turn], dim=1)
            out = model.generate(
                talk, past_key_values=cache, max_new_tokens=20, do_sample=False,
                return_dict_in_generate=True,
            )  # fmt: skip
            talk, cache = out.sequences, out.past_key_values
        assert cache.get_seq_length() == talk.shape[1] - 1
        assert max(map(max, held)) <= SINKS + WINDOW
        tokens, places = stored(memory, "0")
        assert tokens == talk[0, SINKS : SINKS + len(tokens)].tolist()
        assert places == list(range(len(tokens)))
        assert len(tokens) == talk.shape[1] - 1 - held[-1][0]
        assert memory.recalled[0]


def test_a_short_chat_is_the_models_own(model: nn.Module) -> None:
    def talk() -> torch.Tensor:
        first = model.generate(
            text(1, 20), max_new_tokens=8, do_sample=False, return_dict_in_generate=True
        )
        ids = torch.cat([first.sequences, text(1, 10, seed=3)], dim=1)
        return greedy(model, ids, past_key_values=first.past_key_values)

    want = talk()
    with cmr.attach(model, window=WINDOW) as memory:
        assert torch.equal(talk(), want)
        assert memory.tokens == 0


def test_a_rejected_guess_is_not_remembered(llama: nn.Module) -> None:
    """Assisted decoding takes tokens back out of the cache."""
    ids = text(1, 12).repeat(1, 3)
    with cmr.attach(llama, window=WINDOW, memory_weight=0.0) as memory:
        guessing = {"do_sample": False, "prompt_lookup_num_tokens": 4}
        out = llama.generate(ids, max_new_tokens=90, **guessing)[0].tolist()
        tokens, places = stored(memory, "0")
    assert tokens == out[SINKS : SINKS + len(tokens)]
    assert places == list(range(len(tokens)))
    assert len(tokens) == 2 * BLOCK


def test_beams_remember_one_line_of_each_input(llama: nn.Module) -> None:
    """Token ids follow their beam as the keys in the cache do."""
    ids = text(2, 20)
    with cmr.attach(llama, window=WINDOW, memory_weight=0.0, target_layers=range(6)) as memory:
        out = llama.generate(ids, max_new_tokens=100, do_sample=False, num_beams=3)
        assert memory.sessions == ["0", "1"]
        for row in range(2):
            tokens, places = stored(memory, str(row))
            assert places == list(range(len(tokens)))
            assert tokens[: 20 - SINKS] == ids[row, SINKS:].tolist()
            assert len(tokens) in (32, 64)
            slots = torch.tensor([[entry.slot for entry in memory.entries(str(row))]])
            states = llama.get_input_embeddings()(torch.tensor([tokens]))
            keys, _ = memory._core.adapter.keys_values(0, states)
            assert_close("keys", memory._core.ring.gather(0, slots)[0], keys, **TOLERANCE)
    assert out.shape == (2, 120)


@pytest.mark.parametrize("how", ["paused", "cleared", "detached"])
def test_a_cache_that_the_memory_lost_sight_of_goes_on_unstored(how: str, llama: nn.Module) -> None:
    ids = text(1, 200)
    memory = cmr.attach(llama, window=WINDOW, threshold=0.0, memory_weight=0.8)
    cache = llama(ids[:, :60], use_cache=True).past_key_values
    if how == "paused":
        memory.pause()
        llama(ids[:, 60:61], past_key_values=cache)
        memory.resume()
    elif how == "cleared":
        llama(ids[:, 60:90], past_key_values=cache)
        memory.clear()
    else:
        memory.detach()
        memory = cmr.attach(llama, window=WINDOW, threshold=0.0, memory_weight=0.8)
        memory.read(text(200, seed=5), sessions=["somebody"])
    before = memory.tokens
    for at in range(100, 180):
        out = llama(ids[:, at : at + 1], past_key_values=cache)
        assert cache.layers[0].keys.shape[2] <= SINKS + WINDOW
    assert out.logits.isfinite().all()
    assert memory.tokens == before
    assert memory.recalled == [[]]
    greedy(llama, ids, tokens=3)
    assert memory.tokens > before


def test_memory_while_reading_on_reaches_back(llama: nn.Module) -> None:
    """What left the window is recalled at the next refresh, not only by the next prompt."""
    with cmr.attach(llama, window=WINDOW, threshold=0.0, memory_weight=0.8, refresh=5) as memory:
        out = llama(text(1, 60), use_cache=True)
        assert memory.recalled == [[]]
        found = []
        for token in text(80, seed=4):
            out = llama(token.view(1, 1), past_key_values=out.past_key_values)
            found.append(bool(memory.recalled[0]))
        first = found.index(True)
        assert all(found[first:]) and memory.tokens > 0
        leaving = SINKS + WINDOW - 60 + 1  # this token makes a block leave, the next may recall it
        assert leaving <= first <= leaving + 2 * 5 + BLOCK
