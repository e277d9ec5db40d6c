"""Attention that each token receives, without a matrix of probabilities."""

from __future__ import annotations

import torch

from cmr.kernels.arguments import FLOAT, expect
from cmr.kernels.dispatch import register
from cmr.kernels.reference.attention import NEG_INF, group_logits

CHUNK_BYTES = 16 << 20
"""Most bytes of logits in float32 at once."""


def attention_received(
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float | None = None,
    is_causal: bool = True,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention that each token receives: the mean over heads and over the queries that see it.

    A plain column sum would favour the first tokens, which more queries see. No matrix of
    probabilities is kept: the log-sum-exp of each query comes first, the sums over queries after.

    Args:
        query: [B, H, S, D], float32, float16 or bfloat16.
        key: [B, G, L, D], same dtype, H a multiple of G, S <= L where causal.
        scale: factor of q·k; None: D ** -0.5.
        is_causal: query i sees keys up to L - S + i.
        key_mask: [B, L] bool, True = a real token; None: all. Padding scores 0; where S = L it
            does not count as a query either.

    Returns:
        [B, L] float32 in [0, 1]. No gradient.

    Source: Zhang et al., H2O (2023), accumulated attention, here per query that can see the token.

    Equivalent PyTorch: `torch.softmax(scale * query @ key.mT + causal, -1).mean(1).sum(1) / seen`.
    """
    sizes = expect(
        ("query", query, "B H S D", FLOAT),
        ("key", key, "B G L D", "query"),
        ("key_mask", key_mask, "B L", torch.bool),
    )
    batch, heads, steps, length = (sizes[letter] for letter in "BHSL")
    if is_causal and steps > length:
        raise ValueError(f"query: at most L={length} tokens expected, got {steps}")
    # The kernels' room is made here, as a registered operation allocates nothing.
    lse = query.new_empty(batch, heads, steps, dtype=torch.float32)
    partial = query.new_empty(batch, heads, length, dtype=torch.float32)
    received = query.new_empty(batch, length, dtype=torch.float32)
    scale = sizes["D"] ** -0.5 if scale is None else float(scale)
    attention_received_(query, key, key_mask, scale, is_causal, lse, partial, received)
    return received


def attention_received_plain(
    query: torch.Tensor,
    key: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float,
    is_causal: bool,
    lse: torch.Tensor,
    partial: torch.Tensor,
    received: torch.Tensor,
) -> None:
    """The specification of `attention_received`, of arguments that were checked already.

    `lse` and `partial` are room for the kernels; nothing is written there.
    """
    batch, heads, steps, _ = query.shape
    length = key.shape[2]
    total = torch.zeros(batch, length, dtype=torch.float32, device=query.device)
    seen = torch.zeros_like(total)
    columns = torch.arange(length, device=query.device)
    # Some queries at a time, so that no matrix of all probabilities is held.
    chunk = max(1, CHUNK_BYTES // max(1, 4 * batch * heads * length))
    for start in range(0, steps, chunk):
        part = query[:, :, start : start + chunk]
        rows = torch.arange(start, start + part.shape[2], device=query.device)
        visible = torch.ones(1, rows.numel(), length, dtype=torch.bool, device=query.device)
        if is_causal:
            visible = (columns <= rows[:, None] + (length - steps))[None]
        if key_mask is not None:
            visible = visible & key_mask[:, None]
            if steps == length:
                visible = visible & key_mask[:, start : start + chunk, None]
        logits = group_logits(part, key, scale, None).masked_fill(~visible[:, None, None], NEG_INF)
        shares = torch.softmax(logits, -1)
        if key_mask is not None:
            # Only a mask leaves a query that sees nothing, whose shares are NaN. Without one a NaN
            # comes from the states and has to show.
            shares = shares.nan_to_num(0.0)
        total += shares.sum((1, 2, 3)) / heads
        seen += visible.sum(1)
    received.copy_(total / seen.clamp(min=1.0))


attention_received_ = register(
    "attention_received(Tensor query, Tensor key, Tensor? key_mask, float scale, bool is_causal, "
    "Tensor(a!) lse, Tensor(b!) partial, Tensor(c!) received) -> ()",
    attention_received_plain,
    "attention_received:attention_received",
    "cmr.score",
)
