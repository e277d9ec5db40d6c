"""Relevance of tokens and blocks: how much a token is worth keeping, per token, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cmr.kernels.arguments import FLOAT, INTEGER, expect
from cmr.kernels.dispatch import register
from cmr.kernels.reference.score import calibrate, expect_weights, pool_blocks

CHUNK_BYTES = 16 << 20
"""Most bytes of a temporary in float32 at once."""
CACHED_BYTES = 512 << 10
"""Bytes of a temporary that stay in a core's cache while they are used several times."""


# -- states ----------------------------------------------------------------------------------------


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
    expect(("states", states, "B S H", FLOAT), ("lengths", lengths, "B", None))
    _expect_block_size(block_size)
    batch, tokens, _ = states.shape
    spread, norms, inverse = (
        states.new_empty(batch, tokens, dtype=torch.float32) for _ in range(3)
    )
    pooled = states.new_empty(batch, -(-tokens // block_size), dtype=torch.float32)
    out = StateScores(spread, norms, inverse, pooled)
    state_scores_(states, lengths, block_size, *out)
    return out


def state_scores_plain(
    states: torch.Tensor,
    lengths: torch.Tensor | None,
    block_size: int,
    variance: torch.Tensor,
    norm: torch.Tensor,
    inverse_norm: torch.Tensor,
    pooled: torch.Tensor,
) -> None:
    """The specification of `state_scores`, of arguments that were checked already."""
    batch, tokens, width = states.shape
    chunk = max(1, CACHED_BYTES // max(1, 4 * batch * width))
    for start in range(0, tokens, chunk):  # read from memory once: the rest comes from the cache
        part = slice(start, start + chunk)
        wide = states[:, part].float()
        # Two passes: as exact as `var`, and several times as fast on a CPU.
        centred = wide - wide.mean(-1, keepdim=True)
        variance[:, part] = torch.linalg.vector_norm(centred, dim=-1).square_().div_(width)
        norm[:, part] = torch.linalg.vector_norm(wide, dim=-1)
    inverse_norm.copy_(torch.where(norm == 0, 0.0, 1.0 / norm))
    pooled.copy_(pool_blocks(variance, block_size, lengths))


state_scores_ = register(
    "state_scores(Tensor states, Tensor? lengths, int block_size, Tensor(a!) variance, "
    "Tensor(b!) norm, Tensor(c!) inverse_norm, Tensor(d!) pooled) -> ()",
    state_scores_plain,
    "score:state_scores",
    "cmr.score",
)


# -- surprise --------------------------------------------------------------------------------------


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

    Equivalent PyTorch: `F.cross_entropy(logits[:, :-1].mT, token_ids[:, 1:], reduction="none")`.
    """
    expect(
        ("logits", logits, "B S V", FLOAT),
        ("token_ids", token_ids, "B S", INTEGER),
        ("previous", previous, "B V", FLOAT),
    )
    losses = logits.new_empty(logits.shape[:2], dtype=torch.float32)
    surprise_(logits, token_ids, previous, losses)
    return losses


def surprise_plain(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    previous: torch.Tensor | None,
    losses: torch.Tensor,
) -> None:
    """The specification of `surprise`, of arguments that were checked already."""
    batch, steps, vocabulary = logits.shape
    token_ids = token_ids.long()
    losses.zero_()
    # In chunks: logits of a large vocabulary in float32 would be several times the model's states.
    chunk = max(1, CHUNK_BYTES // max(1, 4 * batch * vocabulary))
    for start in range(0, steps - 1, chunk):
        stop = min(start + chunk, steps - 1)
        losses[:, start + 1 : stop + 1] = _loss(
            logits[:, start:stop], token_ids[:, start + 1 : stop + 1]
        )
    if previous is not None and steps > 0:
        losses[:, :1] = _loss(previous[:, None], token_ids[:, :1])
    elif steps > 1:
        # Nothing predicted the first token: the mean neither favours nor hides it.
        losses[:, 0] = losses[:, 1:].mean(1)


def _loss(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    wide = logits.float()
    return torch.logsumexp(wide, -1) - wide.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


surprise_ = register(
    "surprise(Tensor logits, Tensor token_ids, Tensor? previous, Tensor(a!) losses) -> ()",
    surprise_plain,
    "score:surprise",
    "cmr.score",
)


# -- several scores as one -------------------------------------------------------------------------


class HybridScores(NamedTuple):
    """Several scores as one.

    Attributes:
        tokens: [B, S] float32, of each token.
        pooled: [B, ceil(S / block_size)] float32, the mean of each block.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor


def hybrid_blocks(
    scores: torch.Tensor,
    references: torch.Tensor,
    weights: Sequence[float] | torch.Tensor,
    block_size: int,
    lengths: torch.Tensor | None = None,
) -> HybridScores:
    """Calibrates several scores of the same tokens, takes their weighted mean and pools it.

    Args:
        scores: [n, B, S] float32, n at least 1.
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

    Equivalent PyTorch: `sum(w * calibrate(s, r) for w, s, r in zip(weights, scores, references)) /
    sum(weights)`, then `pool_blocks`.
    """
    if not len(scores):
        raise ValueError("scores: at least one tensor expected, got none")
    if not isinstance(weights, torch.Tensor):
        expect_weights(weights, len(scores))
        weights = torch.tensor(weights, dtype=torch.float32, device=scores.device)
    sizes = expect(
        ("scores", scores, "n B S", torch.float32),
        ("references", references, "n R", torch.float32),
        ("weights", weights, "n", torch.float32),
        ("lengths", lengths, "B", None),
    )
    _expect_block_size(block_size)
    batch, steps = sizes["B"], sizes["S"]
    out = HybridScores(
        scores.new_empty(batch, steps), scores.new_empty(batch, -(-steps // block_size))
    )
    hybrid_blocks_(scores, references, weights, lengths, block_size, *out)
    return out


def hybrid_blocks_plain(
    scores: torch.Tensor,
    references: torch.Tensor,
    weights: torch.Tensor,
    lengths: torch.Tensor | None,
    block_size: int,
    tokens: torch.Tensor,
    pooled: torch.Tensor,
) -> None:
    """The specification of `hybrid_blocks`, of arguments that were checked already."""
    quantiles = [calibrate(s, sample) for s, sample in zip(scores, references, strict=True)]
    numbers = weights.tolist()
    expect_weights(numbers, len(quantiles))
    tokens.copy_(torch.einsum("nbs,n->bs", torch.stack(quantiles), weights / sum(numbers)))
    pooled.copy_(pool_blocks(tokens, block_size, lengths))


hybrid_blocks_ = register(
    "hybrid_blocks(Tensor scores, Tensor references, Tensor weights, Tensor? lengths, "
    "int block_size, Tensor(a!) tokens, Tensor(b!) pooled) -> ()",
    hybrid_blocks_plain,
    "score:hybrid_blocks",
    "cmr.score",
)


def _expect_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size: an integer of at least 1 expected, got {block_size}")
