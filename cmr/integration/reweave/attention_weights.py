"""Attention weights over the local window, as a model that is asked for them gives them."""

from __future__ import annotations

import torch


def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """`[batch, heads, tokens, seen]` float32 of sum 1; 0 for tokens that see nothing.

    Of rotated queries `[batch, heads, tokens, head_dim]` and keys `[batch, kv_heads, seen,
    head_dim]`; the mask is None (causal), bool or additive, and `scale` None stands for `head_dim
    ** -0.5`.
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
