"""Adapters switched since the text was read: refused when loading, warned of while live."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning, ModelMismatchError
from cmr.integration.decoder import fingerprint
from cmr.integration.decoder.adapter_watch import AdapterWatch
from tests.integration.tiny import build, text

peft = pytest.importorskip("peft")

SETTINGS: dict[str, Any] = {"window": 64, "block_size": 16, "threshold": 0.0, "budget": 1024}
Tune = Callable[..., None]


def lora(*modules: str, **settings: Any) -> Any:
    modules = modules or ("q_proj", "k_proj", "v_proj", "up_proj")
    return peft.LoraConfig(r=4, target_modules=[*modules], init_lora_weights=False, **settings)


def tuned(*names: str, seed: int = 1) -> nn.Module:
    """The tiny decoder with adapters, the last of them active."""
    model = build("llama")
    torch.manual_seed(seed)
    for name in names:
        model.add_adapter(lora(), name)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is warned of inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CMRWarning)
        yield


def saved(model: nn.Module, path: Path, *sessions: str) -> None:
    with cmr.attach(model, **SETTINGS) as memory:
        for name in sessions or ("anna",):
            memory.read(text(200), sessions=[name])
        memory.save(path)


def test_what_was_read_with_an_adapter_loads_with_it_only(tmp_path: Path) -> None:
    model = tuned("a", "b")
    model.set_adapter("a")
    saved(model, tmp_path / "m")
    cmr.load(tmp_path / "m", model).detach()
    cmr.load(tmp_path / "m", peft_of(model)).detach()
    model.set_adapter("b")
    with pytest.raises(
        ModelMismatchError,
        match=r"'anna' was read with adapters \['a'\].*\['b'\] in effect: switch",
    ):
        cmr.load(tmp_path / "m", model)
    model.disable_adapters()
    with pytest.raises(
        ModelMismatchError, match=r"\['a'\], and the model has no adapter in effect"
    ):
        cmr.load(tmp_path / "m", model)
    with pytest.raises(
        ModelMismatchError, match=r"\['a'\], and the model has no adapter in effect"
    ):
        cmr.load(tmp_path / "m", build("llama"))
    other = tuned("a", seed=2)
    with pytest.raises(ModelMismatchError, match=r"adapters \['a'\] of other weights"):
        cmr.load(tmp_path / "m", other)
    assert not hasattr(model, "_cmr_memory") and not hasattr(other, "_cmr_memory")
    model.enable_adapters()
    model.set_adapter("a")
    with cmr.load(tmp_path / "m", model) as memory, quiet(), memory.session("anna"):
        model(text(1, 20))
        assert memory.recalled[0]


def peft_of(model: nn.Module) -> Any:
    """The same decoder, its adapters put in by the other way that there is: wrapped."""
    wrapped = peft.get_peft_model(build("llama"), lora(task_type="CAUSAL_LM"), adapter_name="a")
    there = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in wrapped.get_base_model().named_parameters():
            weight.copy_(there[name])
    return wrapped


def test_with_its_adapters_off_a_model_is_the_plain_one(tmp_path: Path) -> None:
    """Also for a folder that a model without any has saved."""
    saved(build("llama"), tmp_path / "plain")
    sessions = cmr.memory.store.Saved.open(tmp_path / "plain").header["sessions"]
    assert [entry["adapters"] for entry in sessions] == [{}] * len(sessions)
    model = tuned("a")
    with pytest.raises(ModelMismatchError, match=r"no adapter, and .* adapters \['a'\] in effect"):
        cmr.load(tmp_path / "plain", model)
    model.disable_adapters()
    cmr.load(tmp_path / "plain", model).detach()
    saved(model, tmp_path / "off")
    cmr.load(tmp_path / "off", build("llama")).detach()


def test_sessions_of_different_adapters_are_loaded_in_turn(tmp_path: Path) -> None:
    model = tuned("a", "b")
    with cmr.attach(model, **SETTINGS) as memory, quiet():
        for session, adapter in (("anna", "a"), ("ben", "b")):
            model.set_adapter(adapter)
            memory.read(text(200), sessions=[session])
        memory.fork("anna", "again")
        memory.save(tmp_path / "m")
    with pytest.raises(ModelMismatchError, match=r"'anna' was read with adapters \['a'\]"):
        cmr.load(tmp_path / "m", model)
    with cmr.load(tmp_path / "m", model, sessions=["ben"]) as memory:
        with pytest.raises(ModelMismatchError, match="'again' was read"):
            memory.load(tmp_path / "m", sessions=["again"])
        model.set_adapter("a")
        memory.load(tmp_path / "m", sessions=["anna", "again"])
        memory.save(tmp_path / "n")
    model.set_adapter("b")
    cmr.load(tmp_path / "n", model, sessions=["ben"]).detach()


def test_merged_adapters_are_in_effect() -> None:
    model = peft.get_peft_model(build("llama"), lora(), adapter_name="a")
    model.add_adapter("b", lora())
    here = fingerprint.adapters(model)
    assert list(here) == ["a"] and len(here["a"]) == 64
    model.merge_adapter(["b"])  # from here on it is "b" that counts, though "a" is called active
    assert fingerprint.adapters(model) == fingerprint.adapters(model, ["b"]) != here
    model.unmerge_adapter()
    assert fingerprint.adapters(model) == here
    assert fingerprint.adapters(model, ["a", "gone"]) == {**here, "gone": ""}
    for layer in model.get_base_model().modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("a", 0.5)
    assert fingerprint.adapters(model, ["a"]) != here, "it is weaker now"


def test_layers_trained_whole_are_an_adapters_own() -> None:
    plain, model = build("llama"), build("llama")
    one = peft.get_peft_model(model, lora(modules_to_save=["lm_head"]), adapter_name="a")
    of = {
        name: fingerprint.of_model(cmr.attach(m, **SETTINGS)._core.adapter)
        for name, m in (("plain", plain), ("tuned", model))
    }
    assert of["plain"] == of["tuned"]
    here = fingerprint.adapters(one)
    with torch.no_grad():
        one.get_base_model().lm_head.modules_to_save["a"].weight.mul_(2)
    assert fingerprint.adapters(one) != here


@pytest.mark.parametrize("way", ["set_adapter", "disable", "delete", "add", "unload"])
def test_a_switch_since_reading_is_warned_of_once(way: str) -> None:
    model = build("llama") if way == "add" else tuned("a", "b")
    names = "no adapter" if way == "add" else r"adapters \['b'\]"
    with cmr.attach(model, **SETTINGS) as memory:
        with quiet():
            memory.read(text(200), sessions=["anna"])
            with memory.session("anna"):
                model(text(1, 20))
        if way == "set_adapter":
            model.set_adapter("a")
        elif way == "disable":
            model.disable_adapters()
        elif way == "delete":
            model.delete_adapter("b")
        elif way == "add":
            model.add_adapter(lora(), "c")
        else:
            bare = peft.tuners.tuners_utils.BaseTunerLayer
            for path, layer in [*model.named_modules()]:
                if isinstance(layer, bare):
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, layer.get_base_layer())
        with memory.session("anna"):
            with pytest.warns(CMRWarning, match=rf"'anna' was read with {names} .*Switch back"):
                model(text(1, 20))
            with quiet():
                model(text(1, 20))
                memory.read(text(200, seed=4), sessions=["ben"])
        with quiet(), memory.session("ben"):
            model(text(1, 20))


def test_reading_on_under_another_adapter_is_warned_of() -> None:
    model = tuned("a")
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200), sessions=["anna"])
        model.disable_adapters()
        with pytest.warns(CMRWarning, match="'anna' was read with"):
            memory.read(text(64, seed=3), sessions=["anna"])
        with quiet():
            memory.forget("anna")
            memory.read(text(200), sessions=["anna"])


def test_what_was_run_again_is_run_again_under_another_adapter() -> None:
    """Passages of which tokens are kept are run by the model as it is."""
    model, plain = tuned("a"), build("llama")
    question, outs = text(1, 20), []
    for decoder, switch in ((plain, False), (model, True)):
        with cmr.attach(decoder, **SETTINGS, store="tokens") as memory:
            if switch:
                model.disable_adapters()
            memory.read(text(200), sessions=["anna"])
            with memory.session("anna"), torch.no_grad():
                if switch:
                    model.enable_adapters()
                    with pytest.warns(CMRWarning):
                        model(question)
                    model.disable_adapters()
                outs.append(decoder(question).logits)
                assert memory.recalled[0]
    assert torch.equal(*outs)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("store", ["kv", "states"])
def test_memory_is_read_through_the_adapters_layers(family: str, store: str) -> None:
    """Put in before attaching or after it, into the projections that the memory goes through."""
    outs = []
    for before in (True, False):
        model = build(family)
        torch.manual_seed(3)
        modules = ("c_attn",) if family == "gpt2" else ("q_proj", "k_proj")
        if before:
            model.add_adapter(lora(*modules, fan_in_fan_out=family == "gpt2"), "a")
        with cmr.attach(model, **SETTINGS, store=store) as memory, torch.no_grad():
            if not before:
                model.add_adapter(lora(*modules, fan_in_fan_out=family == "gpt2"), "a")
            memory.read(text(200))
            outs.append(model(text(1, 20)).logits)
            assert memory.recalled[0]
            model.disable_adapters()
            memory.clear()
            memory.read(text(200))
            assert not torch.equal(model(text(1, 20)).logits, outs[-1])
    assert torch.equal(*outs)


def test_the_check_takes_microseconds_and_nothing_without_adapters() -> None:
    def seconds(watch: AdapterWatch, session: int) -> float:
        found = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                watch.check([session])
            found.append((time.perf_counter() - began) / 200)
        return min(found)

    for model, most in ((tuned("a"), 20e-6), (build("llama"), 2e-6)):
        with cmr.attach(model, **SETTINGS) as memory:
            memory.read(text(200), sessions=["anna"])
            number = memory._core.table.require("anna")
            assert seconds(memory._stepper.adapters, number) < most
