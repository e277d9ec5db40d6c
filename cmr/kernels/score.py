"""Relevance of tokens and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cmr.kernels._ops import register
from cmr.kernels.reference import score as reference
from cmr.kernels.reference._shapes import (
    expect_float,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.score import (
    calibrate,
    expect_weights,
    hybrid,
    inverse_norm,
    norm,
    pool_blocks,
    variance,
)

__all__ = [
    "HybridScores",
    "StateScores",
    "attention_received",
    "calibrate",
    "hybrid",
    "hybrid_blocks",
    "inverse_norm",
    "norm",
    "pool_blocks",
    "state_scores",
    "surprise",
    "variance",
]


class StateScores(NamedTuple):
    """What one pass over hidden states gives.

    Attributes:
        variance: [B, S] float32, of each token's state over its features.
        norm: [B, S] float32, Euclidean.
        inverse_norm: [B, S] float32, 1 / norm, 0 for a state that is all 0.
        pooled: [B, ceil(S / block_size)] float32, mean variance of each block.
    """

    variance: torch.Tensor
    norm: torch.Tensor
    inverse_norm: torch.Tensor
    pooled: torch.Tensor


def _state_scores(
    states: torch.Tensor, lengths: torch.Tensor | None, block_size: int, *out: torch.Tensor
) -> None:
    for tensor, value in zip(out, reference.state_scores(states, block_size, lengths), strict=True):
        tensor.copy_(value)


state_scores_ = register(
    "state_scores(Tensor states, Tensor? lengths, int block_size, Tensor(a!) variance, "
    "Tensor(b!) norm, Tensor(c!) inverse_norm, Tensor(d!) pooled) -> ()",
    _state_scores,
    "score:state_scores",
    "cmr.score",
)


def state_scores(
    states: torch.Tensor, block_size: int, lengths: torch.Tensor | None = None
) -> StateScores:
    """Variance, norm and inverse norm of each token's state, and the mean variance of each block.

    The states are read once.

    Args:
        states: [B, S, H], any float dtype.
        block_size: tokens in a block, at least 1.
        lengths: [B] int64, tokens of each row that count for `pooled` (from the left); None: S.

    Returns:
        Four float32 tensors, see `StateScores`. Variance is the population's.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or block_size is below 1.

    Equivalent PyTorch: `states.float().var(-1, correction=0)`, `states.float().norm(dim=-1)`.
    """
    expect_shape("states", states, ("B", None), ("S", None), ("H", None))
    expect_float("states", states)
    if block_size < 1:
        raise ValueError(f"block_size: an integer of at least 1 expected, got {block_size}")
    batch, tokens, _ = states.shape
    if lengths is not None:
        expect_shape("lengths", lengths, ("B", batch))
    spread, norms, inverse = (
        states.new_empty(batch, tokens, dtype=torch.float32) for _ in range(3)
    )
    pooled = states.new_empty(batch, -(-tokens // block_size), dtype=torch.float32)
    out = StateScores(spread, norms, inverse, pooled)
    state_scores_(states, lengths, block_size, *out)
    return out


def _attention_received(
    query: torch.Tensor,
    key: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float,
    is_causal: bool,
    lse: torch.Tensor,
    partial: torch.Tensor,
    received: torch.Tensor,
) -> None:
    received.copy_(reference.attention_received(query, key, scale, is_causal, key_mask))


attention_received_ = register(
    "attention_received(Tensor query, Tensor key, Tensor? key_mask, float scale, bool is_causal, "
    "Tensor(a!) lse, Tensor(b!) partial, Tensor(c!) received) -> ()",
    _attention_received,
    "score:attention_received",
    "cmr.score",
)


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

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Source: Zhang et al., H2O (2023), accumulated attention, here per query that can see the token.

    Equivalent PyTorch: `torch.softmax(scale * query @ key.mT + causal, -1).mean(1).sum(1) / seen`.
    """
    reference.check_attention_received(query, key, is_causal, key_mask)
    batch, heads, steps, width = query.shape
    length = key.shape[2]
    lse = query.new_empty(batch, heads, steps, dtype=torch.float32)
    partial = query.new_empty(batch, heads, length, dtype=torch.float32)
    received = query.new_empty(batch, length, dtype=torch.float32)
    scale = width**-0.5 if scale is None else float(scale)
    attention_received_(query, key, key_mask, scale, is_causal, lse, partial, received)
    return received


def _surprise(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    previous: torch.Tensor | None,
    losses: torch.Tensor,
) -> None:
    losses.copy_(reference.surprise(logits, token_ids, previous))


surprise_ = register(
    "surprise(Tensor logits, Tensor token_ids, Tensor? previous, Tensor(a!) losses) -> ()",
    _surprise,
    "score:surprise",
    "cmr.score",
)


def surprise(
    logits: torch.Tensor, token_ids: torch.Tensor, previous: torch.Tensor | None = None
) -> torch.Tensor:
    """Each token's own loss in nats: how little the model expected it.

    The logits are read once; no matrix of probabilities is kept.

    Args:
        logits: [B, S, V], any float dtype; those at s predict the token at s + 1.
        token_ids: [B, S] integers in [0, V).
        previous: [B, V], the logits that predict the first token (the last of the text before).
            None: the first token gets the mean of the others, 0 where there are none.

    Returns:
        [B, S] float32, at least 0 up to rounding. No gradient.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `F.cross_entropy(logits[:, :-1].mT, token_ids[:, 1:], reduction="none")`.
    """
    expect_shape("logits", logits, ("B", None), ("S", None), ("V", None))
    batch, steps, vocabulary = logits.shape
    expect_float("logits", logits)
    expect_shape("token_ids", token_ids, ("B", batch), ("S", steps))
    if token_ids.is_floating_point() or token_ids.dtype == torch.bool:
        raise TypeError(f"token_ids: an integer dtype expected, got {token_ids.dtype}")
    if previous is not None:
        expect_shape("previous", previous, ("B", batch), ("V", vocabulary))
        expect_float("previous", previous)
    losses = logits.new_empty(batch, steps, dtype=torch.float32)
    surprise_(logits, token_ids, previous, losses)
    return losses


class HybridScores(NamedTuple):
    """Several scores as one.

    Attributes:
        tokens: [B, S] float32, of each token.
        pooled: [B, ceil(S / block_size)] float32, the mean of each block.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor


def _hybrid_blocks(
    scores: torch.Tensor,
    references: torch.Tensor,
    weights: torch.Tensor,
    lengths: torch.Tensor | None,
    block_size: int,
    *out: torch.Tensor,
) -> None:
    found = reference.hybrid_blocks(scores, references, weights, block_size, lengths)
    for tensor, value in zip(out, found, strict=True):
        tensor.copy_(value)


hybrid_blocks_ = register(
    "hybrid_blocks(Tensor scores, Tensor references, Tensor weights, Tensor? lengths, "
    "int block_size, Tensor(a!) tokens, Tensor(b!) pooled) -> ()",
    _hybrid_blocks,
    "score:hybrid_blocks",
    "cmr.score",
)


def hybrid_blocks(
    scores: Sequence[torch.Tensor] | torch.Tensor,
    references: torch.Tensor,
    weights: Sequence[float] | torch.Tensor,
    block_size: int,
    lengths: torch.Tensor | None = None,
) -> HybridScores:
    """Calibrates several scores of the same tokens, takes their weighted mean and pools it.

    Args:
        scores: n tensors [B, S] float32, or one [n, B, S].
        references: [n, R] float32, a sample of earlier values of each score, sorted upwards; R may
            be 0. A score becomes the share of its sample below it, ties counted half; NaN becomes
            0; without a sample all become 0.5.
        weights: n numbers of at least 0, not all 0, or a tensor [n] float32 of them. The values of
            a tensor are looked at on a CPU only; elsewhere they are a precondition.
        block_size: tokens in a block, at least 1.
        lengths: [B] int64, tokens of each row that count for `pooled` (from the left); None: S.

    Returns:
        Two float32 tensors, see `HybridScores`.

    Raises:
        TypeError, ValueError: nothing to combine, counts, dtypes or shapes differ, bad weights.

    Equivalent PyTorch: `hybrid([calibrate(s, r) for s, r in zip(scores, references)], weights)`,
    then `pool_blocks`.
    """
    if not isinstance(scores, torch.Tensor):
        if not scores:
            raise ValueError("scores: at least one tensor expected, got none")
        for index, score in enumerate(scores):
            expect_shape(f"scores[{index}]", score, *zip("BS", scores[0].shape, strict=True))
        scores = torch.stack(tuple(scores))
    expect_shape("scores", scores, ("n", None), ("B", None), ("S", None))
    count, batch, steps = scores.shape
    if count == 0:
        raise ValueError("scores: at least one tensor expected, got none")
    expect_same_dtype("scores", scores, torch.float32)
    expect_shape("references", references, ("n", count), ("R", None))
    expect_same_dtype("references", references, torch.float32)
    if not isinstance(weights, torch.Tensor):
        expect_weights(weights, count)
        weights = torch.tensor(weights, dtype=torch.float32, device=scores.device)
    expect_shape("weights", weights, ("n", count))
    expect_same_dtype("weights", weights, torch.float32)
    if block_size < 1:
        raise ValueError(f"block_size: an integer of at least 1 expected, got {block_size}")
    if lengths is not None:
        expect_shape("lengths", lengths, ("B", batch))
    out = HybridScores(
        scores.new_empty(batch, steps), scores.new_empty(batch, -(-steps // block_size))
    )
    hybrid_blocks_(scores, references, weights, lengths, block_size, *out)
    return out
