"""`output_attentions` while memory is read: the weights of every layer, or a word about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import LAYERS, READS_ALL, text
from tests.integration.window.test_cache_contract import remembering
from tests.kernels.helpers.compare import assert_close


@pytest.fixture(params=["llama", "gpt2", "gemma3-sliding", "gemma2"])
def eager(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> Iterator[nn.Module]:
    model = tiny(request.param)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    yield model
    model.set_attn_implementation(before)


def test_all_layers_give_theirs_and_memory_has_the_rest(eager: nn.Module) -> None:
    """Of a prompt and of a decoding step, of a padded row, too."""
    ids, mask = text(2, 40, seed=4), torch.ones(2, 41).long()
    mask[1, :9] = 0
    depth = eager.config.num_hidden_layers
    with remembering(eager) as memory, memory.session("anna", "ben"):
        out = eager(ids, attention_mask=mask[:, :40], output_attentions=True)
        gates = memory._stepper.last.gates
        more = eager(
            ids[:, :1],
            attention_mask=mask,
            past_key_values=out.past_key_values,
            output_attentions=True,
        )
        assert eager(ids[:, :1]).attentions is None
    assert len(gates) > 1
    assert [w.shape for w in out.attentions] == [
        (2, eager.config.num_attention_heads, 40, 40)
    ] * depth
    assert all(len(step.attentions) == depth for step in (out, more))
    for layer, weights in enumerate(out.attentions):
        left = 1.0 - weights.sum(-1)[..., 9:]
        gate = gates[layer][..., 9:] if layer in gates else torch.zeros_like(left)
        assert_close(f"layer {layer}", left, gate, atol=1e-5, rtol=1e-5)
        assert (weights[1, :, 9:, :9] == 0).all() and (weights[:, :, 9:].triu(10) == 0).all()


def test_the_configuration_may_ask_for_them(eager: nn.Module) -> None:
    eager.config.output_attentions = True
    try:
        with remembering(eager) as memory, memory.session("anna"):
            given = eager(text(1, 20)).attentions
            assert memory.recalled[0]
    finally:
        eager.config.output_attentions = False
    assert len(given) == eager.config.num_hidden_layers
    assert all(weights is not None for weights in given)


def test_they_are_those_of_attention_over_memory_and_window(llama: nn.Module) -> None:
    whole, before = text(1, 120), llama.config._attn_implementation
    llama.set_attn_implementation("eager")
    try:
        want = llama(whole, output_attentions=True).attentions
        settings = {"window": 128, "left_context": 0, "positions": "true", **READS_ALL}
        with cmr.attach(llama, **settings) as memory:
            memory.read(whole[:, :96])
            places = torch.arange(96, 120)[None]
            have = llama(whole[:, 96:], position_ids=places, output_attentions=True).attentions
    finally:
        llama.set_attn_implementation(before)
    assert len(have) == len(LAYERS)
    for layer, weights in enumerate(have):
        assert_close(f"layer {layer}", weights, want[layer][:, :, 96:, 96:], atol=1e-4, rtol=1e-3)


def test_a_family_that_cannot_give_them_says_so_once(tiny: Callable[[str], nn.Module]) -> None:
    model, ids = tiny("falcon"), text(1, 20)
    with remembering(model, target_layers=(1, 2)) as memory, memory.session("anna"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", cmr.CMRWarning)
            model(ids)
        with pytest.warns(cmr.CMRWarning, match=r"memory\.pause\(\)"):
            given = model(ids, output_attentions=True).attentions
        assert [weights is None for weights in given] == [False, True, True, False]
        with warnings.catch_warnings():
            warnings.simplefilter("error", cmr.CMRWarning)
            model(ids, output_attentions=True)
            memory.pause()
            assert all(w is not None for w in model(ids, output_attentions=True).attentions)
