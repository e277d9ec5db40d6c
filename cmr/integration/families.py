"""Model families, described by data: a row a family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where a family keeps what the memory needs. Names are attributes, dots go deeper.

    Attributes:
        layers: the decoder's list of blocks.
        attention: the attention module inside a block.
        norm: the norm in front of the attention inside a block.
        projection: how the attention makes keys and values: `split` has `k_proj` and `v_proj`,
            `fused_conv1d` has `c_attn` with query, key and value side by side.
        key_norm: norm on each head's key, or None.
        rotary: the rotary embedding of the decoder, or None where positions are absolute.
        rotary_by_layer_type: whether the rotary embedding wants the layer's type (Gemma 3).
        max_positions: configuration field that holds the longest text the model was made for.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    norm: str = "input_layernorm"
    projection: str = "split"
    key_norm: str | None = None
    rotary: str | None = "rotary_emb"
    rotary_by_layer_type: bool = False
    max_positions: str = "max_position_embeddings"


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(),
    "qwen3": Family(key_norm="k_norm"),
    "gemma3_text": Family(key_norm="k_norm", rotary_by_layer_type=True),
    "gpt2": Family(
        layers="h",
        attention="attn",
        norm="ln_1",
        projection="fused_conv1d",
        rotary=None,
        max_positions="n_positions",
    ),
}
"""`model_type` of a (text) configuration to its row."""
