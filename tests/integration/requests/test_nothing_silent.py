"""What cannot be remembered or read is said once, or raises, with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StaticCache

import cmr
from cmr.errors import AttachError, CMRWarning
from tests.integration.tiny import build, greedy, padded, text

SETTINGS: dict[str, Any] = {"window": 64, "block_size": 8, "threshold": 0.0}


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(200))
        yield memory


def said(run: Callable[[], Any]) -> list[str]:
    """Our warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in seen if issubclass(w.category, CMRWarning)]


def test_rows_without_memory_beside_one_that_has_it(memory: cmr.Memory, llama: nn.Module) -> None:
    batch = text(3, 20)
    (first,) = said(lambda: greedy(llama, batch, 2))
    assert "row 0" in first and "row 1" in first and "session('0')" in first
    assert said(lambda: llama(batch)) == []  # once
    with memory.session("0"):
        assert said(lambda: llama(batch)) == []
        assert all(memory.recalled)


def test_rows_that_are_named_may_be_new(memory: cmr.Memory, llama: nn.Module) -> None:
    both = memory.session("0", "new", create=True)
    assert said(lambda: both.forward(text(2, 20))) == []
    assert said(lambda: llama(text(1, 20))) == []


def test_rows_that_all_have_memory_or_none(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        assert said(lambda: llama(text(2, 20))) == []
        memory.read(**{n: x for n, x in padded([text(90), text(80)], "left").items()
                       if n != "position_ids"})  # fmt: skip
        assert said(lambda: llama(text(2, 20))) == []


def test_a_text_without_a_cache(memory: cmr.Memory, llama: nn.Module) -> None:
    (first,) = said(lambda: llama(text(1, 20), use_cache=False))
    assert "use_cache=False" in first and "memory.read" in first
    assert memory.recalled[0]
    assert said(lambda: llama(text(1, 20), use_cache=False)) == []


def test_a_cache_that_cannot_be_followed(memory: cmr.Memory, llama: nn.Module) -> None:
    options = {"cache_implementation": "static"}
    (first,) = said(lambda: greedy(llama, text(1, 20), 2, **options))
    assert "StaticCache" in first and "cache_implementation" in first
    assert said(lambda: greedy(llama, text(1, 20), 2, **options)) == []
    cache = StaticCache(config=llama.config, max_cache_len=64)
    llama(text(1, 20), past_key_values=cache)
    assert memory.recalled[0]


def test_nothing_is_said_of_a_memory_that_rests(memory: cmr.Memory, llama: nn.Module) -> None:
    with memory.paused():
        assert said(lambda: llama(text(3, 20), use_cache=False)) == []
    memory.pause()
    assert said(lambda: llama(text(3, 20), use_cache=False)) == []


def test_another_attention_implementation_is_an_error_and_stays() -> None:
    model = build("llama")
    ids = text(1, 20)
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        want = model(ids).logits
        model.set_attn_implementation("eager")
        for run in (lambda: model(ids), lambda: greedy(model, ids, 2)):
            with pytest.raises(AttachError, match=r"'eager'.*detach.*'sdpa'"):
                run()
        with memory.paused():
            assert torch.isfinite(model(ids).logits).all()
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(ids).logits, want)
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"  # what the user set is left
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        model(ids)
        assert memory.recalled[0]
    assert model.config._attn_implementation == "eager"
