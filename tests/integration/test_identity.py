"""What is stored belongs to the weights that it was computed with, and to no others."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning, ModelMismatchError
from cmr.integration.decoder import fingerprint
from cmr.memory.store import Saved
from tests.integration.tiny import READS_ALL, build, greedy, text

SETTINGS: dict[str, Any] = {"window": 64, "budget": 4096, **READS_ALL}


def load(model: nn.Module) -> None:
    model.load_state_dict({name: x * 1.5 for name, x in model.state_dict().items()})


def assign(model: nn.Module) -> None:
    other = {name: x * 1.5 for name, x in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def step(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()


def other_data(model: nn.Module) -> None:
    weight = model.get_decoder().layers[3].mlp.up_proj.weight
    weight.data = weight.data * 1.5


def in_data(model: nn.Module) -> None:
    """What PyTorch does not count: an average of weights, or an adapter that is merged."""
    for layer in model.get_decoder().layers:
        layer.self_attn.v_proj.weight.data.mul_(1.5)


def parameter(model: nn.Module) -> None:
    projection = model.get_decoder().layers[0].self_attn.q_proj
    projection.weight = nn.Parameter(projection.weight * 1.5)


def module(model: nn.Module) -> None:
    model.lm_head = nn.Linear(64, 200, bias=False)


def resize(model: nn.Module) -> None:
    model.resize_token_embeddings(220, mean_resizing=False)


WAYS = (load, assign, step, other_data, in_data, parameter, module, resize)


@pytest.mark.parametrize("change", WAYS, ids=lambda way: way.__name__)
def test_other_weights_are_refused_until_they_are_back(
    change: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    model, ids = build("llama"), text(1, 20)
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200), sessions=["anna"])
        memory.save(tmp_path / "m")
        with memory.session("anna"):
            want = model(ids).logits
            cache = model(ids, use_cache=True).past_key_values
        before, tokens = dict(model.state_dict()), memory.tokens
        before = {name: x.clone() for name, x in before.items()}
        change(model)
        plain = build("llama")
        if change is resize:
            resize(plain)
        plain.load_state_dict(model.state_dict())

        def asked(run: Callable[..., Any], *args: Any, **named: Any) -> Callable[[], Any]:
            def inside() -> Any:
                with memory.session("anna"):
                    return run(*args, **named)

            return inside

        refused: dict[str, Callable[[], Any]] = {
            "forward": asked(model, ids),
            "going on": asked(model, ids, past_key_values=cache),
            "generate": lambda: greedy(model, ids, 2),
            "a long prompt": lambda: greedy(model, text(1, 200), 2),
            "read": lambda: memory.read(text(64), sessions=["ben"]),
            "search": lambda: memory.session("anna").search([1, 2, 3]),
            "save": lambda: memory.save(tmp_path / "n"),
            "load": lambda: memory.load(tmp_path / "m"),
            "consolidate": memory.consolidate,
        }
        for what, run in refused.items():
            with pytest.raises(ModelMismatchError, match=r"put its weights back, or clear\(\)"):
                raise AssertionError((what, run()))
        assert memory.tokens == tokens and memory.sessions == ["anna"]
        assert not (tmp_path / "n").exists()
        # What does not need the model goes on, and the model alone is what it is now.
        assert len(memory.inspect("anna")) == 7 and memory.stats()["tokens"] == tokens
        memory.pause()
        assert torch.equal(model(ids).logits, plain(ids).logits)
        memory.resume()
        if change is not resize:
            model.load_state_dict(before)
            if change is module:
                model.lm_head.weight = model.lm_head.weight
            with memory.session("anna"):
                assert torch.equal(model(ids).logits, want) and memory.recalled[0]
            change(model)
        memory.clear()
        memory.read(text(200, seed=4), sessions=["anna"])
        with memory.session("anna"):
            assert not torch.equal(model(ids).logits, plain(ids).logits) and memory.recalled[0]
        memory.save(tmp_path / "o")
    here = fingerprint.of_model(memory._core.adapter)
    assert Saved.open(tmp_path / "o").header["model"] == here
    cmr.load(tmp_path / "o", model).detach()
    with pytest.raises(ModelMismatchError, match="saved by another model"):
        cmr.load(tmp_path / "m", model)


def test_new_token_ids_are_read_once_the_memory_is_empty() -> None:
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(64))
        resize(model)
        with pytest.raises(ModelMismatchError):
            memory.read(torch.full((40,), 210))
        memory.forget("0")
        memory.read(torch.full((40,), 210))
        assert memory.tokens == 40


def test_one_weight_of_many_is_found_at_the_latest_when_saving(tmp_path: Path) -> None:
    """Written to its `data`, which nobody counts, and none of those that a glance looks at."""
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(64))
        weight = model.get_decoder().layers[0].self_attn.v_proj.weight
        weight.data.mul_(1.5)
        with pytest.raises(ModelMismatchError):
            memory.save(tmp_path / "m")
        with pytest.raises(ModelMismatchError):
            model(text(1, 20))
        weight.data.div_(1.5)


def test_a_merged_adapter_is_another_model() -> None:
    peft = pytest.importorskip("peft")
    model = build("llama")
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, settings)
    with tuned.disable_adapter(), cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        model(text(1, 20))
    tuned.base_model.enable_adapter_layers()
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200))
        model(text(1, 20))
        tuned.merge_adapter()
        with pytest.raises(ModelMismatchError, match="other weights"):
            model(text(1, 20))


def test_a_text_does_not_go_on_under_other_weights() -> None:
    """With nothing stored either: what leaves would be half of one model and half of another."""
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        cache = model(text(1, 40), use_cache=True).past_key_values
        load(model)
        with pytest.warns(CMRWarning, match="changed in the middle of a text"):
            model(text(1, 60), past_key_values=cache)
        assert memory.tokens == 0
        model(text(1, 120))
        assert memory.tokens > 0


def test_a_training_goes_on_and_is_told_once(tmp_path: Path) -> None:
    model = build("llama").train()
    with cmr.attach(model, **SETTINGS) as memory, torch.enable_grad():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CMRWarning)
            for seed in range(4):
                optimizer.zero_grad()
                ids = text(1, 100, seed=seed)
                loss = model(ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                assert loss.isfinite()
        assert len([w for w in said if "trained on since" in str(w.message)]) == 1
        assert memory.tokens > 0
        with pytest.raises(ModelMismatchError):
            memory.save(tmp_path / "m")
        model.eval()
        with pytest.raises(ModelMismatchError):
            model(text(1, 20))
        memory.clear()
        model(text(1, 100))
        memory.save(tmp_path / "m")


def test_what_several_weights_stored_belongs_to_none_of_them() -> None:
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory, torch.enable_grad():
        memory.read(text(64))
        before = {name: x.clone() for name, x in model.state_dict().items()}
        load(model)
        with pytest.warns(CMRWarning, match="trained on since"):
            model.train()(text(1, 120))
        model.eval().load_state_dict(before)
        with pytest.raises(ModelMismatchError):
            model(text(1, 20))


def test_weights_are_hashed_only_where_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build("llama"), []
    own = fingerprint.of_model

    def counted(*args: Any) -> Any:
        calls.append(1)
        return own(*args)

    monkeypatch.setattr(fingerprint, "of_model", counted)
    with cmr.attach(model, **SETTINGS) as memory:
        for _ in range(3):
            step(model)  # nothing is stored: nothing has to be known
            model(text(1, 20))
        assert not calls
        for seed in range(3):
            memory.read(text(200, seed=seed), sessions=["anna"])
            with memory.session("anna"):
                greedy(model, text(1, 20), 40)
        assert len(calls) == 1
        step(model)
        for _ in range(2):
            with pytest.raises(ModelMismatchError):
                model(text(1, 20))


def test_weights_of_inference_mode() -> None:
    with torch.inference_mode():
        model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory, torch.inference_mode():
        memory.read(text(200))
        model(text(1, 20))
        model.get_decoder().layers[3].self_attn.q_proj.weight.mul_(1.5)
        with pytest.raises(ModelMismatchError):
            model(text(1, 20))


def test_a_glance_takes_little() -> None:
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(64))
        found = []
        for probe in (False, True):
            best = []
            for _ in range(20):
                began = time.perf_counter()
                for _ in range(20):
                    memory._core.identity.require(probe=probe)
                best.append((time.perf_counter() - began) / 20)
            found.append(min(best))
        assert found[0] < 1e-3 and found[1] < 5e-3, found


def test_samples_are_read_as_they_lie_in_memory() -> None:
    """Together by data type, and the same bytes as one by one."""
    whole = torch.arange(40.0)
    samples = [whole[::3], whole[:0], whole.to(torch.bfloat16), whole[5:6], whole.long()[::7]]
    samples.append(whole.to(torch.float8_e4m3fn)[::2])
    wanted = [x.contiguous().view(torch.uint8).numpy().tobytes() for x in samples]
    assert fingerprint.bytes_of(samples) == wanted
