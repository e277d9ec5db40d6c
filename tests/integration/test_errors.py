"""A mistake names what was wrong and what to do, and nothing stored is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import cmr
from cmr.errors import (
    AttachError,
    CMRError,
    ConfigError,
    UnknownSessionError,
    UnsupportedModelError,
)
from tests.integration.tiny import LAYERS, VOCABULARY, greedy, text

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}


def bert() -> nn.Module:
    config = transformers.BertConfig(**SMALL, num_attention_heads=2, intermediate_size=32)
    return transformers.BertModel(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def headless() -> nn.Module:
    config = transformers.LlamaConfig(**SMALL, num_attention_heads=2, intermediate_size=32)
    return transformers.LlamaModel(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, "BertModel .*AutoModelForCausalLM"),
        (t5, "T5ForConditionalGeneration is not a decoder .*AutoModelForCausalLM"),
        (headless, "LlamaModel is not a decoder with a language-model head; .*ForCausalLM"),
        (lambda: nn.Linear(2, 2), "a transformers decoder expected .*got Linear"),
        (lambda: "a/name", "a transformers decoder expected .*got str"),
        (lambda: None, "a transformers decoder expected .*got NoneType"),
    ],
    ids=["bert", "t5", "no head", "no transformer", "a name", "nothing"],
)
def test_what_is_not_a_decoder(make: Callable[[], Any], message: str) -> None:
    model = make()
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        cmr.attach(model)
    assert isinstance(caught.value, CMRError) and isinstance(caught.value, TypeError)
    assert not hasattr(model, "_cmr_memory")


def test_an_unknown_family() -> None:
    config = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=2)
    model = transformers.BloomForCausalLM(config)
    before = set(vars(model))
    with pytest.raises(UnsupportedModelError, match=r"family 'bloom' is not covered.*gpt2.*llama"):
        cmr.attach(model)
    assert set(vars(model)) == before


def test_an_attention_implementation_that_is_not_covered(llama: nn.Module) -> None:
    before = llama.config._attn_implementation
    try:
        llama.set_attn_implementation("flex_attention")
        with pytest.raises(UnsupportedModelError, match=r"'flex_attention'.*'sdpa'"):
            cmr.attach(llama)
    finally:
        llama.set_attn_implementation(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_layers": [2, 9]}, r"target_layers holds 9, .* 0\.\.6"),
        ({"target_layers": [6]}, r"names no block .*0\.\.5"),
        ({"target_layers": [-1]}, "target_layers: .*got"),
        ({"index_layer": 6}, r"index_layer must be 0\.\.5 .*got 6"),
        ({"target_layers": [2, 3], "layers": [3, 5]}, r"layers: .*\[2, 3\].*\[5\]"),
        ({"window": 2048}, "window: at most this model's 1024 positions expected, got 2048"),
        ({"eviction_strategy": "fifo"}, r"eviction_strategy: .*'oldest'.* expected, got 'fifo'"),
        ({"budget": "1 KB"}, r"budget: room for a block, [\d,]+ bytes here.* got '1 KB'"),
        ({"working_budget": "many"}, "working_budget: .* a size such as '512MiB'.* got 'many'"),
        ({"max_total_entries": 100}, r"max_total_entries: at least \d+ expected.*got 100"),
        (
            {"method": "weighted_sum", "long_term_budget": 64},
            "long_term_store: 'kv' expected with method='weighted_sum'.*got 'tokens'",
        ),
        ({"strategy": "multi_critera"}, "strategy: .*did you mean 'multi_criteria'"),
        ({"device": "cpu"}, "device: None expected, .* got 'cpu'"),
        ({"windw": 64}, "windw: did you mean 'window'"),
        ({"memory_weight": 1.5}, r"memory_weight: a number in \[0, 1\] expected, got 1.5"),
        ({"config": [("window", 64)]}, "config: a CMRConfig or a dictionary expected"),
        ({"method": "weighted_sum", "store": "kv"}, "'weighted_sum'.*'states' expected, got 'kv'"),
    ],
)
def test_a_bad_setting(settings: dict[str, Any], message: str, llama: nn.Module) -> None:
    before = set(vars(llama)), llama.config._attn_implementation
    with pytest.raises(ConfigError, match=message) as caught:
        cmr.attach(llama, **settings)
    assert isinstance(caught.value, ValueError)
    assert (set(vars(llama)), llama.config._attn_implementation) == before
    cmr.attach(llama, window=64).detach()


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    """A memory with something in it, all of it still there after the mistake."""
    with cmr.attach(llama, window=64, threshold=0.0, target_layers=LAYERS) as memory:
        memory.read(text(2, 100), sessions=["anna", "ben"])
        before = memory.tokens, memory.sessions, [e.token_ids for e in memory.entries()]
        yield memory
        assert (memory.tokens, memory.sessions) == before[:2]
        assert [e.token_ids for e in memory.entries()] == before[2]


def test_attaching_twice(memory: cmr.Memory, llama: nn.Module) -> None:
    with pytest.raises(AttachError, match=r"has a memory attached already.*detach\(\)"):
        cmr.attach(llama)
    with memory.session("anna"):
        greedy(llama, text(1, 20), tokens=2)
        assert memory.recalled[0]


def test_using_a_memory_after_detach(memory: cmr.Memory, llama: nn.Module) -> None:
    ids = text(1, 20)
    memory.pause()
    want = greedy(llama, ids)
    memory.detach()
    assert torch.equal(greedy(llama, ids), want)
    message = r"was detached; attach a new one with cmr.attach\(model\)"
    for use in (
        lambda: memory.read(ids),
        lambda: memory.session("anna").__enter__(),
        memory.pause,
        memory.resume,
        memory.__enter__,
    ):
        with pytest.raises(AttachError, match=message):
            use()
    assert memory.recalled == []


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.rand(1, 9), TypeError, "integer tensor of token ids, got torch.float32"),
        (torch.ones(1, 9, dtype=torch.bool), TypeError, "integer tensor .*got torch.bool"),
        ([[3, 4]], TypeError, "integer tensor of token ids, got list"),
        ("a text", TypeError, "integer tensor of token ids, got str"),
        (text(2, 3, 4), ValueError, r"\[tokens\] or \[batch, tokens\], got \(2, 3, 4\)"),
        (torch.tensor(3), ValueError, r"\[tokens\] or \[batch, tokens\], got \(\)"),
        (text(0), ValueError, "row 0 of the text is empty"),
        (text(1, 0), ValueError, "row 0 of the text is empty"),
        (text(0, 5), ValueError, "empty"),
        (text(5) + VOCABULARY, ValueError, r"0\.\.199 .*another model's tokenizer"),
        (text(5) - VOCABULARY, ValueError, r"0\.\.199 .*another model's tokenizer"),
    ],
    ids=["float", "bool", "list", "str", "3-D", "0-D", "empty", "empty row", "no rows", "foreign",
         "negative"],
)  # fmt: skip
def test_a_text_that_cannot_be_read(
    ids: Any, error: type[Exception], message: str, memory: cmr.Memory
) -> None:
    with pytest.raises(error, match=message):
        memory.read(ids, sessions=["carl"])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 9), ValueError, r"shape of input_ids \(2, 10\), got \(2, 9\)"),
        (torch.ones(10), ValueError, r"shape of input_ids \(2, 10\), got"),
        ([[1] * 10] * 2, TypeError, "attention_mask.* tensor.*got list"),
        (torch.tensor([[1] * 10, [0] * 10]), ValueError, "row 1 of the text is empty"),
    ],
    ids=["wrong shape", "one row", "list", "all padding"],
)
def test_a_mask_that_does_not_fit(
    mask: Any, error: type[Exception], message: str, memory: cmr.Memory
) -> None:
    with pytest.raises(error, match=message):
        memory.read(text(2, 10), mask, sessions=["carl", "dora"])


@pytest.mark.parametrize(
    ("sessions", "error", "message"),
    [
        (["carl"], ValueError, "2 names expected, one a row, got 1"),
        (["carl", "carl"], ValueError, "name of its own for each row"),
        ("carl", TypeError, "a list of names, one a row, expected, got 'carl'"),
        (["carl", ""], TypeError, "non-empty string, got ''"),
        (["carl", 3], TypeError, "non-empty string, got 3"),
    ],
)
def test_session_names_that_do_not_fit(
    sessions: Any, error: type[Exception], message: str, memory: cmr.Memory
) -> None:
    with pytest.raises(error, match=message):
        memory.read(text(2, 10), sessions=sessions)


def test_a_session_that_does_not_exist(memory: cmr.Memory, llama: nn.Module) -> None:
    message = "no session named 'carl' among 2.*create=True"
    for use in (
        lambda: memory.session("carl").__enter__(),
        lambda: memory.session("anna", "carl").__enter__(),
        lambda: memory.entries("carl"),
        lambda: memory.clear("carl"),
    ):
        with pytest.raises(UnknownSessionError, match=message) as caught:
            use()
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("no session")
        assert "anna" not in str(caught.value), "users are not told each other's names"
    with pytest.raises(ValueError, match="at least one name"):
        memory.session().__enter__()
    with memory.session("anna"):
        llama(text(1, 20))
        assert memory.recalled[0]


def test_session_names_that_do_not_fit_a_batch(memory: cmr.Memory, llama: nn.Module) -> None:
    with (
        memory.session("anna", "ben"),
        pytest.raises(ValueError, match="2 session names for a batch of 3 rows"),
    ):
        llama(text(3, 20))
    with (
        memory.session("anna"),
        pytest.raises(ValueError, match="2 rows cannot be read into one session at once"),
    ):
        memory.read(text(2, 20))


def test_names_that_do_not_fit_create_no_session(memory: cmr.Memory) -> None:
    with pytest.raises(TypeError, match="non-empty string"):
        memory.session("carl", "", create=True).__enter__()
