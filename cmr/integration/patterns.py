"""Attention patterns: the weights of layers, beside what the model computes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr.errors import UnsupportedModelError
from cmr.integration.adapter import ModelAdapter
from cmr.integration.attention import MARK, PREFIX, WATCH, plug

Weights = Callable[[int, torch.Tensor], None]
"""Takes a layer's number and its weights `[batch, heads, tokens, seen]` float32."""


class Watcher:
    """Lets chosen attention modules tell their weights; what they compute stays as it is.

    Args:
        adapter: the model.

    Raises:
        UnsupportedModelError: the family's attention does not go through transformers' interface.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        if adapter.family.plug != "interface":
            raise UnsupportedModelError(
                f"attention patterns of {adapter.config.model_type!r} cannot be captured: its "
                "attention does not go through transformers' AttentionInterface"
            )
        self._adapter = adapter

    def watch(self, layers: set[int], tell: Weights) -> None:
        """Exactly these layers tell their weights from now on; none of them: as it was before."""
        decoder: Any = self._adapter.decoder
        modules = list(self._adapter.attentions())
        for number, module in enumerate(modules):
            if number in layers:
                setattr(module, WATCH, lambda *args, n=number: tell(n, attention_weights(*args)))
            elif hasattr(module, WATCH):
                delattr(module, WATCH)
        own = decoder.config._attn_implementation.removeprefix(PREFIX)
        if layers:
            decoder.set_attn_implementation(plug(own))
        elif not any(hasattr(module, MARK) for module in modules):
            decoder.set_attn_implementation(own)


@torch.no_grad()
def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Weights of attention over the local window.

    Args:
        query: `[batch, heads, tokens, head_dim]`, rotated.
        key: `[batch, kv_heads, seen, head_dim]`, rotated.
        mask: None (causal), bool or additive, broadcastable to `[batch, heads, tokens, seen]`.
        scale: of the logits; None: `head_dim ** -0.5`.
        softcap: of the logits, or None.

    Returns:
        `[batch, heads, tokens, seen]` float32 of sum 1; 0 for tokens that see nothing.
    """
    tokens, seen = query.shape[2], key.shape[2]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None and tokens > 1:
        mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        mask = mask[..., :seen]
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
        if mask.dtype != torch.bool:
            logits = logits + mask.float()
        logits = logits.masked_fill(~visible, float("-inf"))
    return logits.softmax(-1).nan_to_num(0.0)
