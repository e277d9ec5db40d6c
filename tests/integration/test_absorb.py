"""What a cache still holds becomes memory as if the text had been read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

import cmr
from tests.integration.models.told import told as stored
from tests.integration.tiny import padded, text


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3-sliding"])
def test_absorbed_is_read(name: str, tiny: Callable[[str], nn.Module]) -> None:
    """The same ids, positions, index, keys and values, to the bit, the first tokens included."""
    model, ids = tiny(name), text(2, 70)
    settings: dict[str, Any] = {"window": 128, "left_context": 0, "store": "kv"}
    with cmr.attach(model, **settings) as memory:
        memory.read(ids)
        want = memory._core.ring.parts[0]
        want = {part: tensor.clone() for part, tensor in want.items()}
        places = memory._core.ring.positions.clone()
    with cmr.attach(model, **settings) as memory:
        assert memory.absorb(model(ids, use_cache=True).past_key_values) == 6
        have = memory._core.ring.parts[0]
        assert torch.equal(memory._core.ring.positions, places)
        assert have.keys() == want.keys() and len(have) > 4
        for part, tensor in want.items():
            assert torch.equal(have[part], tensor), part


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
def test_padding_is_not_stored(store: str, llama: nn.Module) -> None:
    texts = [text(40), text(70, seed=1)]
    for side in ("left", "right"):
        with cmr.attach(llama, window=128, store=store) as memory:
            memory.absorb(llama(**padded(texts, side), use_cache=True).past_key_values)
            assert [stored(memory, name) for name in "01"] == [t.tolist() for t in texts]


def test_the_end_of_a_long_text_follows_what_left(llama: nn.Module) -> None:
    """Of a plain cache the sinks stay out once something has left."""
    ids = text(1, 100)
    with cmr.attach(llama, window=64) as memory:
        out = llama(ids, use_cache=True)
        out = llama(text(1, 30, seed=1), past_key_values=out.past_key_values)
        assert stored(memory, "0") == ids[0, 4:68].tolist()
        memory.absorb(out.past_key_values)
        assert stored(memory, "0") == [*ids[0, 4:].tolist(), *text(1, 30, seed=1)[0].tolist()]


@pytest.mark.parametrize("padding", [0, 40])
def test_a_whole_text_is_stored_though_it_outgrew_its_window(
    padding: int, llama: nn.Module
) -> None:
    rows = [text(150 - padding), text(150, seed=1)]
    batch = padded(rows, "left")
    batch.pop("position_ids")
    with cmr.attach(llama, window=64, threshold=9.0) as memory:
        with memory._stepper.following() as caches:
            out = llama.generate(**batch, max_new_tokens=20, do_sample=False)
        for cache in caches:
            memory.absorb(cache)
        for row, name in enumerate("01"):
            answer = out[row, 150:-1].tolist()  # the last token never went through the model
            assert stored(memory, name) == [*rows[row].tolist(), *answer]


def test_beams_write_the_text_of_their_row(llama: nn.Module) -> None:
    ids = text(2, 30)
    with cmr.attach(llama, window=64) as memory:
        with memory._stepper.following() as caches:
            llama.generate(ids, max_new_tokens=10, num_beams=3, do_sample=False)
        assert sum(memory.absorb(cache) for cache in caches) == 4
        assert [stored(memory, name)[:30] for name in "01"] == ids.tolist()


def test_what_must_not_be_stored_is_not(llama: nn.Module) -> None:
    ids = text(1, 40)
    with cmr.attach(llama, window=64, keep=lambda tokens: tokens != ids[0, 7]) as memory:
        memory.absorb(llama(ids, use_cache=True).past_key_values)
        assert ids[0, 7] not in stored(memory, "0") and len(stored(memory, "0")) > 30


def test_an_absorbed_cache_goes_on_and_is_stored_no_further(llama: nn.Module) -> None:
    with cmr.attach(llama, window=64, threshold=9.0) as memory:
        cache = llama(text(1, 40), use_cache=True).past_key_values
        memory.absorb(cache)
        before = memory.tokens
        for seed in range(4):
            llama(text(1, 40, seed=seed), past_key_values=cache)
        assert memory.tokens == before == 40
        with pytest.raises(ValueError, match="absorbed already"):
            memory.absorb(cache)


def refused(memory: cmr.Memory, cache: object, error: type[Exception], match: str) -> None:
    before = memory.tokens
    with pytest.raises(error, match=match):
        memory.absorb(cache)  # type: ignore[arg-type]
    assert memory.tokens == before


def test_caches_that_cannot_be_absorbed(llama: nn.Module, tiny: Callable[[str], Any]) -> None:
    other, ids = tiny("gpt2"), text(1, 20)
    plain = llama(ids, use_cache=True).past_key_values
    with cmr.attach(llama, window=64) as memory, cmr.attach(other, window=64) as second:
        refused(memory, plain, TypeError, "begun|empty when it began")
        refused(memory, DynamicCache(), TypeError, "empty when it began")
        refused(memory, None, TypeError, "NoneType")
        refused(memory, other(ids, use_cache=True).past_key_values, ValueError, "another memory")
        cache = llama(ids, use_cache=True).past_key_values
        memory.pause()
        llama(ids, past_key_values=cache)
        memory.resume()
        refused(memory, cache, ValueError, "20 tokens are known.*has seen 40")
        cache = llama(ids, use_cache=True).past_key_values
        memory.forget("0")
        refused(memory, cache, ValueError, "ended")
        second.detach()
        with pytest.raises(cmr.AttachError, match="detached"):
            second.absorb(cache)
