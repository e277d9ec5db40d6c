"""Texts pass through a model class: recalled, run and remembered."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr import CMRTransformer, FullCMRModel, IntegratedCMRModel
from tests.integration.models.told import told
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import build, greedy, padded, text

ALWAYS: dict[str, Any] = {"window": 64, "memory_weight": 0.8, "threshold": 0.0, "sink_guard": 0}
KINDS = [
    (CMRTransformer, "llama"),
    (IntegratedCMRModel, "gpt2"),
    (FullCMRModel, "mistral"),
    (FullCMRModel, "gemma2"),
]
Made = Callable[..., Any]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_without_memory_it_is_the_decoder_to_the_bit(
    kind: type[Any], name: str, tiny: Callable[[str], nn.Module], made: Made
) -> None:
    decoder = tiny(name)
    ids = text(2, 30)
    before = hooks(decoder), attributes(decoder)
    want, answer = decoder(ids).logits, greedy(decoder, ids)
    model = made(kind, decoder, ALWAYS)
    model.enable_memory()
    model(text(2, 50, seed=1))
    assert not torch.equal(model(ids).logits, want)

    def same(**how: Any) -> None:
        assert torch.equal(model(ids, **how).logits, want)
        assert torch.equal(greedy(model, ids, **how), answer)

    held = model.memory.tokens
    same(use_memory=False)
    model.disable_memory()
    same()
    model.cleanup_hooks()
    same()
    assert (hooks(decoder), attributes(decoder)) == before
    assert torch.equal(decoder(ids).logits, want) and model.memory.tokens == held > 0
    model.enable_memory()
    assert not torch.equal(model(ids).logits, want)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_the_second_text_reads_the_first(
    kind: type[Any], name: str, tiny: Callable[[str], nn.Module], made: Made
) -> None:
    decoder = tiny(name)
    first, second = text(2, 40), text(2, 30, seed=1)
    model = made(kind, decoder, ALWAYS)
    model.register_memory_hooks()
    want = decoder_alone(model, first)
    out = model(first)
    assert model.memory.recalled == [[], []] and torch.equal(out.logits, want)
    model(second)
    for row in range(2):
        (passage,) = model.memory.recalled[row]
        assert list(passage.token_ids) == first[row].tolist()
        assert passage.session == str(row) and passage.gate > 0
    assert told(model.memory, "1") == [*first[1].tolist(), *second[1].tolist()]


def decoder_alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_memory=False).logits


def test_generated_text_is_remembered(llama: nn.Module, made: Made) -> None:
    model, prompt = made(FullCMRModel, llama, ALWAYS), text(1, 100)
    out = model.generate(prompt, max_new_tokens=9, do_sample=False, sessions="anna")
    assert told(model.memory, "anna") == out[0, :-1].tolist()
    assert torch.equal(out[:, :100], prompt)
    model(text(1, 20, seed=1), sessions="anna")
    assert set(model.memory.recalled[0][0].token_ids) <= set(out[0].tolist())
    assert model.performance.stats()["generations"] == 1


def test_whose_memory(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, ALWAYS), text(2, 30)
    plain = decoder_alone(model, ids)
    model(ids, sessions=["anna", "ben"])
    number = model.memory._core.table.require("anna")
    assert model.current_sequence_id == number
    with model.session("ben"):
        model(ids[:1])
    assert {passage.session for passage in model.memory.recalled[0]} == {"ben"}
    assert torch.equal(model(ids[:1]).logits, model(ids[:1], use_memory=False).logits)
    out = model(ids, sessions=["new", "anna"])
    assert torch.equal(out.logits[0], plain[0]) and not torch.equal(out.logits[1], plain[1])


def test_padded_rows(llama: nn.Module, made: Made) -> None:
    rows = [text(20), text(33, seed=1)]
    model = made(IntegratedCMRModel, llama, ALWAYS)
    model(**padded(rows, "left"))
    assert [told(model.memory, name) for name in "01"] == [row.tolist() for row in rows]
    entries = model.memory_buffer.retrieve_by_sequence(0)
    layers = sorted({entry.layer_idx for entry in entries})
    first = [entry for entry in entries if entry.layer_idx == layers[0]]
    assert [entry.token_ids[0] for entry in first] == rows[0].tolist()
    assert [entry.position_idx for entry in first] == list(range(20))
    assert model.performance.stats()["tokens"] == 53


def test_a_cache_of_the_users_is_left_alone(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, ALWAYS), text(1, 40)
    assert model(ids, use_memory=True).past_key_values is None and model.memory.tokens == 40
    model.clear_memory()
    out = model(ids, use_cache=True)
    assert model.memory.tokens == 0
    again = model(ids[:, :5], past_key_values=out.past_key_values)
    assert again.past_key_values.get_seq_length() == 45 and model.memory.tokens == 0
    model.memory.absorb(again.past_key_values)
    assert told(model.memory, "0") == [*ids[0].tolist(), *ids[0, :5].tolist()]


def test_what_cannot_be_stored_from_is_refused(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, ALWAYS), text(1, 10)
    for how in ({"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(cmr.ConfigError, match="dynamic cache"):
            model.generate(ids, max_new_tokens=2, **how)
        assert greedy(model, ids, tokens=2, use_memory=False, **how).shape == (1, 2)
    with pytest.raises(cmr.ConfigError, match="memory is off"):
        model(ids, use_memory=False, sessions="anna")
    with pytest.raises(cmr.ConfigError, match="memory is off"):
        model(ids, use_memory=False, task_type="code")
    bare = made(CMRTransformer, build("llama"), ALWAYS)
    with pytest.raises(cmr.AttachError, match="register"):
        bare(ids, use_memory=True)


def test_bad_input_changes_nothing(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, ALWAYS), text(1, 10)
    bad: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((ids.float(),), TypeError, "integer tensor.*float32"),
        (([1, 2],), TypeError, "integer tensor.*list"),
        ((ids[0],), ValueError, r"\[batch, tokens\].*\(10,\)"),
        ((ids[:, :0],), ValueError, "a token at least"),
        ((ids + 200,), ValueError, "0..199 for this model"),
        ((ids, torch.ones(1, 9)), ValueError, r"shape of input_ids \(1, 10\), got \(1, 9\)"),
        ((ids, [1]), TypeError, "attention_mask"),
        ((ids, ids * 0), ValueError, "in every row"),
        ((None,), ValueError, "neither"),
    ]
    for given, error, match in bad:
        with pytest.raises(error, match=match):
            model(*given)
        assert not model.memory.sessions and not len(model.memory_buffer)
    for given, error, match in bad[:-1]:
        with pytest.raises(error, match=match):
            model.generate(*given)


def test_an_error_inside_leaves_nothing_half(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, llama, ALWAYS), text(1, 10)

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = llama.model.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(ids)
    handle.remove()
    assert model.memory.tokens == len(model.memory_buffer) == 0
    assert model.performance.stats()["forwards"] == 0
    model(ids)
    assert told(model.memory, "0") == ids[0].tolist()


def test_outputs(decoder: nn.Module, made: Made) -> None:
    ids = text(2, 20)
    want = decoder(ids, output_hidden_states=True, labels=ids)
    model = made(FullCMRModel, decoder, ALWAYS)
    out = model(ids, output_hidden_states=True, labels=ids)
    assert torch.equal(out.loss, want.loss) and out["logits"] is out.logits
    assert all(
        torch.equal(a, b) for a, b in zip(out.hidden_states, want.hidden_states, strict=True)
    )
    assert out.last_hidden_state.shape == (2, 20, 256)
    states = want.hidden_states[-1]
    assert torch.allclose(cosines(out.last_hidden_state), cosines(states), atol=1e-5)
    assert torch.allclose(out.last_hidden_state.norm(dim=-1), states.norm(dim=-1), rtol=1e-5)
    # Another text: of two blocks that are the same, neither stands out.
    assert "retrieval_stats" not in out and "loss" not in model(text(2, 20, seed=1))
    assert out.memory_stats["tokens"] == 40 and out.memory_stats["sessions"] == 2
    info = model(ids, return_memory_info=True)
    assert {"memory_stats", "performance_stats", "retrieval_stats"} <= set(info.keys())
    assert info.performance_stats["forwards"] == 3 and info.performance_stats["recalls"] == 2
    recalled = info.retrieval_stats["recalled"]
    assert [passage["session"] for row in recalled for passage in row] == ["0", "1"]


def cosines(states: torch.Tensor) -> torch.Tensor:
    flat = nn.functional.normalize(states.flatten(0, 1), dim=-1)
    return flat @ flat.T


def test_own_width_and_narrower(llama: nn.Module, made: Made) -> None:
    ids = text(1, 12)
    states = llama(ids, output_hidden_states=True).hidden_states[-1]
    own = made(FullCMRModel, llama, ALWAYS, output_hidden_size=None)
    assert torch.equal(own(ids).last_hidden_state, states)
    own.cleanup_hooks()
    narrow = made(FullCMRModel, llama, ALWAYS, output_hidden_size=32)
    found = narrow(ids).last_hidden_state
    assert found.shape == (1, 12, 32)
    again = made(FullCMRModel, build("llama"), ALWAYS, output_hidden_size=32)
    assert torch.equal(again(ids).last_hidden_state, found)
    for bad in (0, 1.5, True, "256"):
        with pytest.raises(cmr.ConfigError, match="output_hidden_size"):
            FullCMRModel(build("llama"), output_hidden_size=bad)


def test_the_quick_start(made: Made) -> None:
    """As the specification has it."""
    described = SimpleNamespace(vocab_size=500, num_hidden_layers=5)
    model = made(CMRTransformer, described, {"target_layers": [2, 4], "buffer_size": 3})
    ids = torch.randint(0, 500, (1, 16))
    assert model.layer_hooks == {} and model.memory_enabled
    assert model(ids).memory_stats["total_captured_states"] == 0
    model.register_memory_hooks()
    model.enable_memory()
    assert sorted(model.layer_hooks) == [2, 4]
    for _ in range(3):
        stats = model(ids)["memory_stats"]
    assert stats["total_captured_states"] == 6 and stats["layers_with_memory"] == [2, 4]
    assert model.memory.tokens <= 3
    assert isinstance(model.memory_buffer, cmr.LayeredMemoryBuffer)
    assert isinstance(model.scorer, cmr.RelevanceScorer) and model.current_sequence_id == 0
    model.cleanup_hooks()
    assert model.layer_hooks == {} and not hooks(model.model)


def test_moving_before_and_after(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, build("llama"), ALWAYS), text(1, 20)
    assert model.to("cpu") is model and model.memory.attached
    model.to(torch.float64)
    assert model(ids).logits.dtype == model.dtype == torch.float64
    model(ids)
    assert model.memory.recalled[0] and model.memory_buffer.retrieve_recent(1)
    with pytest.raises(cmr.AttachError, match=r"float64.*float32.*clear"):
        model.float()
    assert model(ids).logits.dtype == torch.float64
    model.clear_memory()
    assert model.float()(ids).logits.dtype == torch.float32


def test_training_goes_through(llama: nn.Module, made: Made) -> None:
    model, ids = made(FullCMRModel, build("llama"), ALWAYS), text(1, 20)
    model(ids)
    model.train()
    with torch.enable_grad():
        loss = model(ids, labels=ids).loss
        assert model.memory.recalled[0]
        loss.backward()
    gradient = model.model.model.layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None and bool(gradient.abs().sum() > 0)
    assert model.memory.tokens == 40
