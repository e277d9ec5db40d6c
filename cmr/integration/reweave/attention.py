"""The plug in transformers' attention interface: local attention, then the memory woven in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from cmr.integration.reweave.attention_weights import attention_weights
from cmr.integration.reweave.recall import LayerBlocks
from cmr.integration.reweave.scratch import Scratch
from cmr.integration.reweave.weave import LayerMemory, parts, weave

PREFIX = "cmr_"
MARK = "_cmr_reader"
"""Attribute that marks an attention module as read by a memory, present only while attached."""
WATCH = "_cmr_watch"
"""Attribute of an attention module whose weights are captured, see `cmr.HookManager`."""


class Reader(Protocol):
    """What the attention plug needs of a memory."""

    scratch: Scratch

    def memory_for(self, layer: int) -> LayerMemory | None:
        """What block `layer` reads in this forward; None reads nothing."""

    def note_gate(self, layer: int, gate: torch.Tensor) -> None:
        """Take note of the share of attention that went to memory, `[batch, heads, tokens]`."""


def memory_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers calls it, with the memory of `module`'s reader woven in.

    Without a reader, or where it has nothing to read, the model's own function is called with the
    arguments as they came: the result is bit-identical to the model without a memory.

    Args:
        module: the attention module.
        query: `[batch, heads, tokens, head_dim]`, rotated.
        key: `[batch, kv_heads, seen, head_dim]`, rotated, the local window.
        value: the same shape.
        attention_mask: None, bool or additive `[batch, 1, tokens, seen]`.
        scaling: of the logits; `head_dim ** -0.5` when None.
        dropout: of the attention weights; memory is not read while it is above 0.
        **kwargs: what else the model passes on.

    Returns:
        `[batch, tokens, heads, head_dim]`, and the local attention weights where the model's own
        function gives them. Where memory is read they are computed if they are wanted, `[batch,
        heads, tokens, seen]`; what a row lacks of a sum of 1 went to memory.
    """
    watch = getattr(module, WATCH, None)
    if watch is not None:
        watch(query, key, attention_mask, scaling, kwargs.get("softcap"))
    reader: Reader | None = getattr(module, MARK, None)
    memory = None
    if reader is not None and dropout == 0.0:
        memory = reader.memory_for(module.layer_idx)  # type: ignore[arg-type]
    if reader is None or memory is None:
        return _own(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    out, gate = read_memory(
        module,
        reader,
        memory,
        query,
        key,
        value,
        attention_mask,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=kwargs.get("softcap") if _own_name(module) == "eager" else None,
    )
    if not memory.weights or _own_name(module) != "eager":
        return out.transpose(1, 2), None
    local = attention_weights(query, key, attention_mask, scaling, kwargs.get("softcap"))
    return out.transpose(1, 2), (local * (1.0 - gate[..., None])).to(query.dtype)


def read_memory(
    module: nn.Module,
    reader: Reader,
    memory: LayerMemory,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the local window and what a layer reads of its memory.

    Args:
        module: the attention module.
        reader: is told how much attention went to memory.
        memory: what to read.
        query: `[batch, heads, tokens, head_dim]`, rotated.
        key: `[batch, any, seen, head_dim]`, rotated; `heads` a multiple of its heads.
        value: the same shape.
        attention_mask: as for `memory_attention`.
        scale: of the logits.
        softcap: of the logits, or None.

    Returns:
        `[batch, heads, tokens, head_dim]`, and the share of attention that went to memory, `[batch,
        heads, tokens]` float32.
    """
    tokens = query.shape[2]
    causal = attention_mask is None and tokens > 1
    if causal and key.shape[2] > tokens:  # an empty static cache: behind the tokens lies nothing
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    layer: int = module.layer_idx  # type: ignore[assignment]
    in_place = isinstance(memory.held, LayerBlocks)
    kept = in_place and not torch.compiler.is_compiling()  # a compiler lays out its own
    decoding = kept and tokens == 1 and not torch.is_grad_enabled()
    out, gate = weave(
        query,
        key,
        value,
        attention_mask,
        memory,
        is_causal=causal,
        scale=scale,
        softcap=softcap,
        into=reader.scratch.take(layer, query, parts(query, key)) if decoding else None,
    )
    reader.note_gate(layer, gate)
    return out, gate


def plug(own: str) -> str:
    """Register the plug over the implementation `own`; returns the name to set on a model.

    The masks of `own` are used as they are. Registering a name changes no other model.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = PREFIX + own
    AttentionInterface.register(name, memory_attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _own(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function that the model would call without a memory."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _own_name(module)
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _own_name(module: nn.Module) -> str:
    """Name of the model's own implementation; that of `sdpa` leaves a soft cap out."""
    config: Any = module.config
    return config._attn_implementation.removeprefix(PREFIX)
