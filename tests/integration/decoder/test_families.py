"""Every family: what a model with a memory must equal, exactly or up to rounding."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

import cmr
from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.families import FAMILIES
from cmr.integration.reweave.recomputer import Recomputer
from cmr.kernels.attention import rotate
from tests.integration.reweave.test_oracles import stored
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import (
    OTHER_LAYERS,
    OTHERS,
    OTHERS_SLIDING,
    READS_ALL,
    SHAPE,
    SPAN,
    TOKENS,
    VOCABULARY,
    greedy,
    stepwise,
    text,
)
from tests.kernels.helpers.compare import assert_close

TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
READS = {**READS_ALL, "target_layers": OTHER_LAYERS}
READ = 64


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)


def all_in_memory(model: nn.Module, whole: torch.Tensor, **settings: object) -> cmr.Memory:
    """A memory of the first `READ` tokens, read in one piece, that every layer reads in full."""
    settings = {"window": 128, "left_context": 0, "positions": "true", **READS, **settings}
    memory = cmr.attach(model, **settings)
    memory.read(whole[:, :READ])
    return memory


def rotated(
    adapter: ModelAdapter, layer: int, keys: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Keys as a layer caches them at these places, in a text of more than 128 tokens."""
    if not adapter.rotates(layer):
        return keys
    return rotate(keys, *adapter.rotary(layer, places, reach=torch.tensor(128)))


def test_every_row_has_a_tiny_decoder() -> None:
    kinds = {getattr(transformers, f"{name}Config").model_type for name, _ in OTHERS.values()}
    assert kinds | {"llama", "mistral", "qwen3", "gemma3_text", "gpt2"} == set(FAMILIES)


def outputs(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the plain model says."""
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {
        "forward": model(ids).logits,
        "left padding": model(ids, attention_mask=mask).logits,
        "step by step": stepwise(model, ids, 36),
        "greedy": greedy(model, ids, tokens=4, attention_mask=mask),
        "beams": greedy(model, ids, tokens=4, num_beams=2),
    }


@pytest.mark.parametrize("name", [*OTHERS, *OTHERS_SLIDING])
def test_a_memory_that_is_off_changes_no_bit(name: str, tiny: Callable[[str], nn.Module]) -> None:
    """Of weight 0, paused, and detached."""
    model, ids = tiny(name), text(2, 40)
    want = outputs(model, ids)
    before = hooks(model), attributes(model), model.config._attn_implementation
    with cmr.attach(model, window=64, memory_weight=0.0) as memory:
        memory.read(text(2, 70, seed=1))
        for kind, have in outputs(model, ids).items():
            assert torch.equal(have, want[kind]), f"{kind} differs"
    with cmr.attach(model, window=64, threshold=0.0, memory_weight=0.8) as memory:
        memory.read(text(2, 70, seed=1))
        assert not torch.equal(model(ids).logits, want["forward"])
        memory.pause()
        assert torch.equal(model(ids).logits, want["forward"])
    assert (hooks(model), attributes(model), model.config._attn_implementation) == before
    assert torch.equal(model(ids).logits, want["forward"])
    assert torch.equal(greedy(model, ids, tokens=4, num_beams=2), want["beams"])


@pytest.mark.parametrize("store", ["kv", "states"])
def test_all_in_memory_at_true_positions_is_full_attention(store: str, other: nn.Module) -> None:
    whole = text(2, READ + 24)
    want = other(whole).logits[:, READ:]
    places = torch.arange(READ, READ + 24).expand(2, -1)
    alone = other(whole[:, READ:], position_ids=places).logits
    assert (alone - want).abs().max() > 0.1, "what is in memory does not show"
    with all_in_memory(other, whole, store=store):
        have = other(whole[:, READ:], position_ids=places).logits
    assert_close("logits", have, want, **TOLERANCE)


def test_all_in_memory_step_by_step_is_full_attention(other: nn.Module) -> None:
    whole = text(1, READ + 9)
    want = other(whole).logits[:, READ:]
    with all_in_memory(other, whole, refresh=3):
        logits, cache = [], None
        for start, stop in ((64, 67), (67, 68), (68, 69), (69, 70), (70, 73)):
            places = torch.arange(start, stop)[None]
            out = other(whole[:, start:stop], position_ids=places, past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits)
    assert_close("logits", torch.cat(logits, dim=1), want, **TOLERANCE)


def test_constant_positions_are_one_window_away(other: nn.Module) -> None:
    """A token at position `window` that sees keys of position 0 sees them one window away.

    Whatever changes with the length of a text (LongRoPE, queries scaled by their position) is the
    same at all places tried.
    """
    whole, window = text(1, READ + 1), 128
    with all_in_memory(other, whole, positions="constant", store="kv") as memory:
        ring, adapter = memory._core.ring, memory._core.adapter
        cache = DynamicCache()
        for layer in OTHER_LAYERS:
            keys, values = ring.gather(layer, torch.tensor([[0, 1]]))
            if getattr(other.config, "new_decoder_architecture", False):
                keys, values = (x.repeat_interleave(2, dim=1) for x in (keys, values))
            cache.update(rotated(adapter, layer, keys, torch.zeros(1, READ)), values, layer)
        near = other(whole[:, READ:], position_ids=torch.tensor([[130]])).logits
        far = other(whole[:, READ:], position_ids=torch.tensor([[158]])).logits
    want = other(whole[:, READ:], position_ids=torch.tensor([[window]]), past_key_values=cache)
    assert_close("logits at position 130", near, want.logits, **TOLERANCE)
    assert_close("logits at position 158", far, want.logits, **TOLERANCE)


def test_memory_laid_out_before_the_window_is_full_attention(other: nn.Module) -> None:
    """Only distances count where keys are rotated, so the window may begin elsewhere."""
    whole = text(1, READ + 10)
    places = torch.arange(READ, READ + 10)[None]
    want = other(whole).logits[:, READ:]
    with all_in_memory(other, whole, positions="layout"):
        have = other(whole[:, READ:], position_ids=places).logits
    assert_close("logits", have, want, **TOLERANCE)


def test_reading_in_chunks_stores_what_reading_at_once_stores(other: nn.Module) -> None:
    ids = text(1, 96)
    if ModelAdapter(other).rotary_varies:
        ids = text(1, 32)
    found = []
    for left in (0, 64):
        with cmr.attach(
            other, window=128, left_context=left, store="kv", target_layers=OTHER_LAYERS
        ) as memory:
            memory.read(ids)
            found.append(stored(memory, "0"))
    assert len(found[0]) > 3
    for name in found[0]:
        assert_close(name, found[1][name], found[0][name], **TOLERANCE)


def test_recomputed_keys_are_those_of_a_text_of_its_own(other: nn.Module) -> None:
    ids = text(40)
    ids[0] = 1
    with cmr.attach(
        other, window=64, left_context=0, block_size=1, store="kv", target_layers=OTHER_LAYERS
    ) as memory:
        memory.read(ids)
        core = memory._core
        passage = torch.arange(1, 40)[None]
        with memory._stepper.alone():
            found = Recomputer(core.adapter, OTHER_LAYERS).recompute(core.ring, passage)
        for layer in OTHER_LAYERS:
            for have, want in zip(found[layer], core.ring.gather(layer, passage), strict=True):
                assert_close(f"layer {layer}", have, want, **TOLERANCE)


def test_what_leaves_the_window_is_stored_and_its_sinks_move_on(other: nn.Module) -> None:
    """Un-rotated as the model made it; the sinks' keys stand right before the window."""
    ids, window, sinks, left = text(2, 40), 24, 4, 12
    states = other(ids, output_hidden_states=True).hidden_states
    with cmr.attach(
        other, window=window, memory_weight=0.0, store="kv", target_layers=OTHER_LAYERS
    ) as memory:
        cache = other(ids).past_key_values
        core, adapter = memory._core, memory._core.adapter
        assert memory.tokens == 2 * left
        for layer in OTHER_LAYERS:
            keys, values = adapter.keys_values(layer, states[layer])
            for row in range(2):
                slots = torch.tensor([[entry.slot for entry in memory.entries(str(row))]])
                for kind, have, want in zip(
                    ("keys", "values"), core.ring.gather(layer, slots), (keys, values), strict=True
                ):
                    mine = want[row : row + 1, :, sinks : sinks + left]
                    assert_close(f"{kind} of layer {layer}", have[:, :, :left], mine, **TOLERANCE)
            if adapter.has_rotary:
                places = (torch.arange(sinks) + left).expand(2, -1)
                want = rotated(adapter, layer, keys[:, :, :sinks], places)
                have = adapter.distinct(cache.layers[layer].keys[:, :, :sinks])
                assert_close(f"sinks of layer {layer}", have, want, **TOLERANCE)


def test_keys_are_rotated_with_the_frequencies_of_the_text_that_reads_them(
    tiny: Callable[[str], nn.Module],
) -> None:
    """LongRoPE: a short text that was read, asked for from far behind."""
    model = tiny("phi3_long")
    with cmr.attach(
        model, window=64, positions="true", store="kv", left_context=0, **READS
    ) as memory:
        memory.read(text(20))
        model(text(1, 8, seed=1), position_ids=torch.arange(120, 128)[None])
        ring, adapter = memory._core.ring, memory._core.adapter
        for layer in OTHER_LAYERS:
            keys = ring.gather(layer, torch.tensor([[0]]))[0][:, :, :20]
            want = rotated(adapter, layer, keys, torch.arange(20)[None])
            have = memory._stepper.last.recall.layer(layer).keys
            assert_close(f"keys of layer {layer}", have, want, **TOLERANCE)


@pytest.mark.parametrize("name", OTHERS_SLIDING)
def test_a_sliding_layer_sees_its_own_window_and_the_memory(
    name: str, tiny: Callable[[str], nn.Module]
) -> None:
    """Window and memory together are all of the text, and no token is seen twice."""
    model, whole = tiny(name), text(1, READ + 40)
    places = torch.arange(READ, READ + 40)[None]
    types = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 4
    bias = torch.full((1, 1, READ + 40, READ + 40), -torch.inf).triu(1)
    far = torch.ones_like(bias).tril(-SPAN).bool()
    far[..., :READ] = False  # what is in memory is seen by all
    sliding = bias.masked_fill(far, -torch.inf)
    states = model.model(whole[:, :READ], output_hidden_states=True).hidden_states
    with all_in_memory(model, whole, store="kv"):
        have = model(whole[:, READ:], position_ids=places).logits
    cache = DynamicCache()
    adapter = ModelAdapter(model)
    for layer in OTHER_LAYERS:
        keys, values = adapter.keys_values(layer, states[layer])
        keys = rotated(adapter, layer, keys, torch.arange(READ)[None])
        cache.update(keys, values, layer)
    masks = {"sliding_attention": sliding[..., READ:, :], "full_attention": bias[..., READ:, :]}
    given = masks if hasattr(model.config, "layer_types") else masks[types[0]]
    want = model(
        whole[:, READ:], position_ids=places, past_key_values=cache, attention_mask=given
    ).logits
    assert_close("logits", have, want, **TOLERANCE)


def test_generating_past_the_window_remembers_and_recalls(other: nn.Module) -> None:
    with cmr.attach(other, window=48, threshold=0.0, memory_weight=0.8, refresh=2) as memory:
        out = greedy(other, text(2, 46), tokens=12)
        assert out.shape == (2, 12)
        assert memory.tokens > 0 and all(memory.recalled)


def test_a_cache_that_phi3_gives_up_is_not_remembered_twice(
    tiny: Callable[[str], nn.Module],
) -> None:
    """It begins anew where a text grows past its first length, here 32 tokens."""
    model, ids = tiny("phi3_long"), text(2, 26)
    if "cache_position" in inspect.signature(model.prepare_inputs_for_generation).parameters:
        pytest.skip("this release of transformers loses the text's beginning by itself then")
    with cmr.attach(model, window=16, memory_weight=0.0) as memory:
        out = model.generate(ids, max_new_tokens=30, do_sample=False)
        for row in range(2):
            entries = memory.entries(str(row))
            found = [token for entry in entries for token in entry.token_ids]
            assert len(found) > 16
            assert found == out[row, 4 : 4 + len(found)].tolist()


@pytest.fixture(scope="module")
def with_images() -> nn.Module:
    """Gemma 3 as it comes with a vision tower."""
    torch.manual_seed(7)
    shape = {**SHAPE, **TOKENS, "num_hidden_layers": 4, "sliding_window": 512}
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**shape, query_pre_attn_scalar=16),
        vision_config=vision, mm_tokens_per_image=4,
        image_token_index=1, boi_token_index=1, eoi_token_index=1,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def test_a_text_decoder_inside_a_model_of_text_and_images(with_images: nn.Module) -> None:
    model, whole = with_images, text(1, READ + 24)
    want, added = model(whole).logits[:, READ:], greedy(model, whole[:, :30], tokens=4)
    before = hooks(model), attributes(model)
    with all_in_memory(model, whole) as memory:
        have = model(whole[:, READ:], position_ids=torch.arange(READ, READ + 24)[None]).logits
        assert memory.recalled[0]
    assert_close("logits", have, want, **TOLERANCE)
    with cmr.attach(model, window=64, memory_weight=0.0):
        assert torch.equal(greedy(model, whole[:, :30], tokens=4), added)
    with cmr.attach(model, window=48, memory_weight=0.0) as memory:
        greedy(model, whole[:, :46], tokens=12)
        (entry,) = memory.entries()
        # Its own code embeds the ids: they are not what the decoder is given.
        assert list(entry.token_ids) == whole[0, 4 : 4 + len(entry.token_ids)].tolist()
    assert (hooks(model), attributes(model)) == before
    implementations = {model.config.get_text_config()._attn_implementation}
    implementations.add(model.config.vision_config._attn_implementation)
    assert implementations == {"sdpa"}


def test_a_falcon_whose_positions_are_a_bias_is_refused() -> None:
    config = transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        alibi=True, **TOKENS,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=r"falcon with alibi=True .* bias"):
        cmr.attach(model)


def test_a_rotation_that_depends_on_the_longest_text_is_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, rope_parameters=rope, **TOKENS,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="rope_type 'dynamic'"):
        cmr.attach(model)


def test_falcon_gives_no_attention_weights_while_it_reads(
    tiny: Callable[[str], nn.Module],
) -> None:
    """They would come from code that reads no memory."""
    model, ids = tiny("falcon"), text(1, 20)
    with cmr.attach(model, window=64, **READS) as memory:
        memory.read(text(70, seed=1))
        want = model(ids).logits
        with pytest.warns(cmr.CMRWarning, match="give None"):
            out = model(ids, output_attentions=True)
        assert torch.equal(out.logits, want)
        assert out.attentions == (None,) * len(OTHER_LAYERS)


def test_falcon_stores_each_key_head_once(tiny: Callable[[str], nn.Module]) -> None:
    model = tiny("falcon_groups")
    with cmr.attach(model, window=64, store="kv") as memory:
        cache = model(text(1, 10)).past_key_values
        assert cache.layers[0].keys.shape[1] == 4
        layer = memory._core.layout.targets[0]
        assert memory._core.ring.keys[layer].shape[1] == 2
