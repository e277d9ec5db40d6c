"""What `test_transformers_versions.py` runs beside other tests, under another transformers."""

from __future__ import annotations

import os

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

import cmr
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.window_layer import adopt
from tests.integration.tiny import READS_ALL, greedy, text


def test_version() -> None:
    assert transformers.__version__.startswith(os.environ["CMR_EXPECTED_TRANSFORMERS"])


def test_prompt_lookup(llama: nn.Module) -> None:
    """With an end token: without one the oldest version cannot look up prompts at all."""
    ids = text(1, 20)
    with cmr.attach(llama, **{**READS_ALL, "sink_guard": 4}, window=64) as memory:
        memory.read(text(96, seed=1))
        want = greedy(llama, ids, eos_token_id=199)
        have = greedy(llama, ids, prompt_lookup_num_tokens=3, eos_token_id=199)
        assert memory.stats()["recalls"]
    assert torch.equal(have, want)


@pytest.mark.parametrize("given", [-7, 23])
def test_a_window_is_cropped_by_what_goes_and_by_what_stays(given: int, llama: nn.Module) -> None:
    """Releases differ in what they say: 7 of 30 tokens go, 23 stay."""
    window = LocalWindow(ModelAdapter(llama), window=64, sinks=4, block=32, padding=[0])
    cache = adopt(DynamicCache(config=llama.config), window)
    keys = torch.randn(1, 2, 30, 16)
    cache.update(keys, keys, 0)
    cache.crop(given)
    assert cache.get_seq_length() == 23
    assert torch.equal(cache.layers[0].keys, keys[:, :, :23])
    cache.crop(given if given < 0 else 16)
    assert cache.get_seq_length() == 16
