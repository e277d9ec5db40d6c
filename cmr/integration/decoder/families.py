"""Model families, described by data: a row a family.

Most decoders need none: they are detected. A row spares the detection's forwards, and brings the
tests; the kinds of `models/backbone/backbones.py` name it, too. A row says in a `Family` what
differs from Llama, whose row is all defaults; `model_type` of the (text) configuration is its key
in `FAMILIES`. Its test is a row, too: a tiny random decoder in `OTHERS` of
`tests/integration/tiny.py`, which `tests/integration/decoder/test_families.py` holds to every
property that a family must have. Steps, and what to look for in its source: docs/families.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from cmr.config.checks import near
from cmr.errors import UnsupportedModelError

SUPPORTED_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Family:
    """Where a family keeps what the memory needs, and how its attention comes by it.

    Attributes:
        layers: attribute of the decoder: its list of blocks.
        attention: attribute of a block: its attention module.
        norms: attributes of a block, the first that it has being the norm in front of the
            attention; empty where the attention reads the states as they enter (OLMo 2).
        projection: how queries, keys and values are laid out, see `projections.LAYOUTS`.
        names: attributes of the attention that project: query, key and value, or the fused one.
        query_norm: attribute of the attention that norms queries, or None.
        key_norm: the same for keys.
        norm_by_head: whether these norms are of each head, or of all heads side by side.
        rotary: attribute of the decoder: its rotary embedding; None where positions are absolute.
        rotary_by_layer_type: whether the rotary embedding wants the layer's type (Gemma 3).
        rotates: field of the configuration that says of each layer whether it rotates queries and
            keys, or the layers that do; None: all do.
        kv_heads: field of the attention or the configuration with the number of key-value heads.
        max_positions: field of the configuration with the longest text the model was made for.
        plug: how its attention is reached: `interface` asks transformers' `AttentionInterface`,
            `sdpa` calls PyTorch's `scaled_dot_product_attention` itself.
        refused: fields of the configuration and values of them that cannot be covered, and why.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    norms: tuple[str, ...] = ("input_layernorm",)
    projection: str = "split"
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    query_norm: str | None = None
    key_norm: str | None = None
    norm_by_head: bool = True
    rotary: str | None = "rotary_emb"
    rotary_by_layer_type: bool = False
    rotates: str | tuple[int, ...] | None = None
    kv_heads: str = "num_key_value_heads"
    max_positions: str = "max_position_embeddings"
    plug: str = "interface"
    refused: tuple[tuple[str, Any, str], ...] = ()


# Rows say only what differs from Llama; a family that differs in nothing has Llama's own.
LLAMA = Family()
NORMED = Family(query_norm="q_norm", key_norm="k_norm")

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "mixtral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": NORMED,
    "gemma2": LLAMA,
    "gemma3_text": Family(query_norm="q_norm", key_norm="k_norm", rotary_by_layer_type=True),
    "smollm3": Family(rotates="no_rope_layers"),
    "olmo2": Family(norms=(), query_norm="q_norm", key_norm="k_norm", norm_by_head=False),
    "phi3": Family(projection="side_by_side", names=("qkv_proj",)),
    "gpt2": Family(
        layers="h",
        attention="attn",
        norms=("ln_1",),
        projection="side_by_side",
        names=("c_attn",),
        rotary=None,
        max_positions="n_positions",
        refused=(
            (
                "reorder_and_upcast_attn",
                True,
                "it computes attention in a way of its own; turn it off in the configuration",
            ),
        ),
    ),
    "gpt_neox": Family(attention="attention", projection="by_group", names=("query_key_value",)),
    "falcon": Family(
        layers="h",
        attention="self_attention",
        norms=("ln_attn", "input_layernorm"),
        projection="by_group",
        names=("query_key_value",),
        kv_heads="num_kv_heads",
        plug="sdpa",
        refused=(
            (
                "alibi",
                True,
                "its positions are a bias on the logits of the window, which what left the "
                "window has no place in",
            ),
        ),
    ),
}
"""`model_type` of a (text) configuration to its row."""


def require_decoder(model: Any) -> Any:
    """The configuration of a model's decoder; raises `UnsupportedModelError` where it is none."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(config, "model_type"):
        raise UnsupportedModelError(
            f"a transformers decoder expected (AutoModelForCausalLM), got {type(model).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a decoder with a language-model head; "
            "load it with AutoModelForCausalLM"
        )
    head: Any = getattr(model, "get_output_embeddings", None)
    can_generate: Any = getattr(model, "can_generate", None)
    if not (can_generate is None or can_generate()) or head is None or head() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head to generate with; "
            "load it with AutoModelForCausalLM"
        )
    return config.get_text_config(decoder=True)


def row_of(config: Any) -> Family:
    """The row of a decoder's family; raises `UnsupportedModelError` where it has none."""
    name = config.model_type
    if name not in FAMILIES:
        close = near(name, FAMILIES)
        hint = "" if close is None else f" (nearest: {close})"
        raise UnsupportedModelError(
            f"model family {name!r} is not covered yet; covered: {covered()}{hint}. "
            "A family is a row in cmr/integration/decoder/families.py and a test"
        )
    return FAMILIES[name]


def require_settings(config: Any, family: Family) -> None:
    """Raises `UnsupportedModelError` where a covered family is configured in an uncovered way."""
    name = config.model_type
    for field, value, why in family.refused:
        if getattr(config, field, None) == value:
            raise UnsupportedModelError(f"{name} with {field}={value} is not covered: {why}")
    if "dynamic" in rope_types(config):
        raise UnsupportedModelError(
            f"{name} with rope_type 'dynamic' is not covered: its rotation depends on the longest "
            "text that the model has seen, so a stored key cannot be rotated back; set another "
            "rope_type, such as 'yarn', in the configuration"
        )
    # Where calls go by `AttentionInterface` both of its ways are plugged; elsewhere only PyTorch's
    # own function can be. `cmr_` stands there while another memory's plug is in place.
    attention = config._attn_implementation
    supported = SUPPORTED_ATTENTION if family.plug == "interface" else ("sdpa",)
    if attention.removeprefix("cmr_") not in supported:
        either = " or ".join(map(repr, supported))
        raise UnsupportedModelError(
            f"attn_implementation {attention!r} is not covered; load the model with {either}, or "
            "call model.set_attn_implementation before attaching"
        )


def rope_types(config: Any) -> set[str]:
    """The kinds of rotary embedding of a configuration, those of all kinds of layers."""
    # One dictionary, or one for each kind of layer; before transformers 5 it was `rope_scaling`.
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [given, *(part for part in given.values() if isinstance(part, dict))]
    kinds = (part.get("rope_type", part.get("type")) for part in parts)
    return {kind for kind in kinds if isinstance(kind, str)}


def covered() -> str:
    """The families with a row, for people."""
    return ", ".join(sorted(FAMILIES))
