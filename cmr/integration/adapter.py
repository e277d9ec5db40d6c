"""One view of every covered decoder: its blocks, shapes, rotary embedding and projections."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cmr.errors import ConfigError, UnsupportedModelError
from cmr.integration.families import FAMILIES, Family
from cmr.kernels.reference.rotary import rotate
from cmr.memory.stores import LayerShape

SUPPORTED_ATTENTION = ("sdpa", "eager")
FIRST_SHARE, LAST_SHARE = 0.13, 0.83
"""Default range of target layers as shares of the depth; see docs/how-it-works.md."""
INDEX_SHARE = 0.4
"""Default index layer as a share of the depth; see docs/how-it-works.md."""


class ModelAdapter:
    """What the memory needs to know of a model; nothing of the model is changed.

    Args:
        model: a transformers decoder with a language-model head.

    Raises:
        UnsupportedModelError: for what is not a decoder of a covered family.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.family = _family_of(model)
        self.config = self.model.config.get_text_config(decoder=True)
        self.decoder: nn.Module = self.model.get_decoder()
        self.layers: nn.ModuleList = getattr(self.decoder, self.family.layers)
        self.depth = len(self.layers)
        self.hidden: int = self.config.hidden_size
        self.heads: int = self.config.num_attention_heads
        self.kv_heads: int = getattr(self.config, "num_key_value_heads", None) or self.heads
        self.head_dim: int = getattr(self.config, "head_dim", None) or self.hidden // self.heads
        self.max_positions: int = getattr(self.config, self.family.max_positions)
        self.softcap: float | None = getattr(self.config, "attn_logit_softcapping", None)
        self.has_rotary = self.family.rotary is not None

    # -- parts -----------------------------------------------------------------------------------

    def attention(self, layer: int) -> Any:
        """The attention module of block `layer`."""
        return getattr(self.layers[layer], self.family.attention)

    def attentions(self) -> Iterator[Any]:
        """All attention modules, in order."""
        return (self.attention(i) for i in range(self.depth))

    def device(self, layer: int) -> torch.device:
        """Device of block `layer`."""
        return next(self.layers[layer].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the model: that of its embeddings, also where weights are quantised."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def input_device(self) -> torch.device:
        """Device of the embeddings: where token ids go."""
        return self.model.get_input_embeddings().weight.device

    def layer_type(self, layer: int) -> str:
        """The layer's attention type, such as `full_attention` or `sliding_attention`."""
        types = getattr(self.config, "layer_types", None)
        return types[layer] if types else "full_attention"

    # -- choices ---------------------------------------------------------------------------------

    def target_layers(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The layers to store and to read at; numbers index `hidden_states`.

        Raises:
            ConfigError: for a number outside `0..num_hidden_layers`, or none that can be read.
        """
        if wanted is None:
            first = round(self.depth * FIRST_SHARE)
            last = max(first, min(self.depth - 1, round(self.depth * LAST_SHARE) - 1))
            return tuple(range(first, last + 1))
        for number in wanted:
            if not 0 <= number <= self.depth:
                raise ConfigError(
                    f"target_layers holds {number}, but this model has hidden states "
                    f"0..{self.depth}: state i enters block i, state {self.depth} leaves the last"
                )
        blocks = tuple(sorted({n for n in wanted if n < self.depth}))
        if not blocks:
            raise ConfigError(
                f"target_layers {wanted} names no block that can read memory; "
                f"blocks are 0..{self.depth - 1}"
            )
        return blocks

    def index_layer(self, wanted: int | None) -> int:
        """The layer whose states are searched; at two fifths of the depth when not given."""
        if wanted is None:
            return max(1, round(self.depth * INDEX_SHARE))
        if not 0 <= wanted < self.depth:
            raise ConfigError(
                f"index_layer must be 0..{self.depth - 1} on this model, got {wanted}"
            )
        return wanted

    def store_kind(self, wanted: str) -> str:
        """`kv` or `states`, whichever is smaller, where `auto` is wanted."""
        if wanted != "auto":
            return wanted
        return "states" if self.hidden < 2 * self.kv_heads * self.head_dim else "kv"

    def layer_shape(self, layer: int, store: str) -> LayerShape:
        """What `store` keeps of a token at block `layer`."""
        at = (self.dtype, self.device(layer))
        if store == "states":
            return LayerShape(1, self.hidden, 0, *at)
        return LayerShape(self.kv_heads, self.head_dim, self.head_dim, *at)

    # -- computations ----------------------------------------------------------------------------

    def rotary(self, layer: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the rotary embedding at `positions` `[batch, tokens]`, in float32.

        Returns:
            Two `[batch, tokens, rotary_dim]`, times the embedding's attention scaling.
        """
        module = getattr(self.decoder, self.family.rotary or "")
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        if self.family.rotary_by_layer_type:
            return module(like, positions, self.layer_type(layer))
        return module(like, positions)

    def turn_forward(self, layer: int, keys: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        """Rotated keys `[batch, heads, tokens, dim]` moved on by `amount` `[batch]` positions."""
        if not self.has_rotary:
            return keys
        cos, sin = self.rotary(layer, amount[:, None].to(keys.device))
        norm = (cos * cos + sin * sin).sqrt()
        return rotate(keys, cos / norm, sin / norm)

    def rotary_kind(self, layer: int) -> str:
        """Layers of one kind share their rotary embedding."""
        return self.layer_type(layer) if self.family.rotary_by_layer_type else ""

    def keys_values(self, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values of states that enter block `layer`.

        Args:
            layer: block number.
            states: `[batch, tokens, hidden]`.

        Returns:
            Two `[batch, kv_heads, tokens, head_dim]`.
        """
        block, attention = self.layers[layer], self.attention(layer)
        states = getattr(block, self.family.norm)(states)
        shape = (*states.shape[:2], self.kv_heads, self.head_dim)
        if self.family.projection == "fused_conv1d":
            _, keys, values = attention.c_attn(states).split(attention.split_size, dim=2)
        else:
            keys, values = attention.k_proj(states), attention.v_proj(states)
        keys, values = keys.view(shape), values.view(shape)
        if self.family.key_norm:
            keys = getattr(attention, self.family.key_norm)(keys)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def queries(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Un-rotated queries of states that enter block `layer`, not yet scaled.

        Args:
            layer: block number.
            states: `[batch, tokens, hidden]`.

        Returns:
            `[batch, heads, tokens, head_dim]`. Query head h reads key-value head
            `h // (heads // kv_heads)`.
        """
        block, attention = self.layers[layer], self.attention(layer)
        states = getattr(block, self.family.norm)(states)
        if self.family.projection == "fused_conv1d":
            queries = attention.c_attn(states).split(attention.split_size, dim=2)[0]
        else:
            queries = attention.q_proj(states)
        queries = queries.view(*states.shape[:2], self.heads, self.head_dim)
        if self.family.key_norm:  # a family that norms its keys norms its queries, too
            queries = attention.q_norm(queries)
        return queries.transpose(1, 2)


def _family_of(model: Any) -> Family:
    """The model's row, or an error that says what is wrong with it."""
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
    text = config.get_text_config(decoder=True)
    if text.model_type not in FAMILIES:
        near = difflib.get_close_matches(text.model_type, FAMILIES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnsupportedModelError(
            f"model family {text.model_type!r} is not covered yet; covered: "
            f"{', '.join(sorted(FAMILIES))}{hint}. A family is a row in "
            "cmr/integration/families.py and a test"
        )
    attention = config._attn_implementation
    if attention.removeprefix("cmr_") not in SUPPORTED_ATTENTION:
        raise UnsupportedModelError(
            f"attn_implementation {attention!r} is not covered; call "
            "model.set_attn_implementation('sdpa') (or 'eager') before attaching"
        )
    return FAMILIES[text.model_type]
