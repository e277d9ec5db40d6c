"""Model families, described by data: a row a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
