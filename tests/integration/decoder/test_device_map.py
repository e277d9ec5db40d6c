"""Models that accelerate spreads over devices, host memory and a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.integration.calibration.files import identity
from cmr.integration.decoder import fingerprint
from cmr.integration.decoder.adapter import ModelAdapter
from tests.integration.tiny import LAYERS, READS_ALL, build, greedy, text
from tests.kernels.helpers.compare import assert_close

PLACES = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "cpu",
    **{f"model.layers.{layer}": "disk" for layer in LAYERS[2:]},
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The tiny llama, most of it on a disk: weights are there only while they compute."""
    from accelerate import dispatch_model

    folder = str(tmp_path_factory.mktemp("weights"))
    return dispatch_model(build("llama"), PLACES, main_device="cpu", offload_dir=folder)


def said(model: nn.Module, memory: cmr.Memory) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Logits, generated tokens, and what the rows recalled."""
    ids = text(2, 40)
    logits = model(ids).logits
    recalled = [[passage.token_ids for passage in row] for row in memory.recalled]
    return logits, greedy(model, ids, 6), recalled


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
def test_a_spread_model_remembers_what_the_whole_one_does(
    store: str, spread: nn.Module, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    results = []
    for model in (tiny("llama"), spread):
        with cmr.attach(model, **READS_ALL, window=64, store=store) as memory:
            memory.read(text(2, 96, seed=1))
            memory.save(tmp_path / "notes")
            results.append(said(model, memory))
    (want, want_added, want_recalled), (have, have_added, have_recalled) = results
    assert_close("logits", have, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(have_added, want_added) and have_recalled == want_recalled
    assert all(want_recalled)
    with cmr.load(tmp_path / "notes", tiny("llama")) as memory:  # the disk's weights are the same
        assert_close("loaded", said(tiny("llama"), memory)[0], want, atol=1e-5, rtol=1e-5)


def test_a_spread_model_without_its_memory_is_itself(
    spread: nn.Module, tiny: Callable[[str], nn.Module]
) -> None:
    ids = text(2, 40)
    want = tiny("llama")(ids).logits
    with cmr.attach(spread, window=64) as memory:
        memory.read(text(2, 96, seed=1))
        memory.pause()
        assert torch.equal(spread(ids).logits, want)
    assert torch.equal(spread(ids).logits, want)


def test_an_offloaded_model_is_where_it_computes_and_is_known(
    spread: nn.Module, tiny: Callable[[str], nn.Module]
) -> None:
    assert spread.get_input_embeddings().weight.is_meta
    here, there = ModelAdapter(tiny("llama")), ModelAdapter(spread)
    assert {there.device(layer).type for layer in LAYERS} == {"cpu"}
    assert there.input_device.type == "cpu" and there.dtype == torch.float32
    assert fingerprint.of_model(there) == fingerprint.of_model(here)
    assert identity(there) == identity(here)


def test_what_a_layer_stores_lies_on_its_device() -> None:
    model = build("llama")
    for layer in LAYERS[3:]:
        model.model.layers[layer].to("meta")  # stands for a second GPU: it can hold, not compute
    with cmr.attach(model, target_layers=LAYERS, window=64) as memory:
        ring = memory._core.ring
        for layer in LAYERS:
            device = "cpu" if layer < 3 else "meta"
            assert ring.keys[layer].device.type == ring.values[layer].device.type == device
        assert ring.index.device.type == "cpu"


@pytest.mark.parametrize("to", [torch.bfloat16, "meta"])
def test_a_model_that_was_brought_elsewhere_is_refused(to: torch.dtype | str) -> None:
    """What is stored, and the room for it, is of the model as it was."""
    model, ids = build("llama"), text(1, 20)
    with cmr.attach(model, window=64) as memory:
        memory.read(text(1, 64))
        model.to(to)
        now = str(to)
        with pytest.raises(cmr.AttachError, match=f"is {now} now"):
            model(ids)
        with pytest.raises(cmr.AttachError, match=f"is {now} now"):
            memory.read(text(1, 64))
        assert memory.tokens == 64 and memory.sessions == ["0"]
