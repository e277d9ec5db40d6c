"""Relevance scores as Triton kernels; `cmr.kernels.score` is the specification."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, in_rows, launch, next_power, strides

ROW_ELEMENTS = 4096
"""Elements of states that a program holds in registers at once."""
VOCABULARY = 4096
"""Logits that a program reads at a time."""
HYBRID_TOKENS = 256
"""Tokens that a program calibrates."""


@triton.jit
def state_scores_kernel(
    p_states, p_lengths, p_variance, p_norm, p_inverse, p_pooled,
    tokens, blocks, stride_batch, stride_token,
    HIDDEN: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One block of tokens a program; each row is read once and stays in registers."""
    i_block = tl.program_id(0).to(tl.int64)
    i_batch = tl.program_id(1).to(tl.int64)
    length = tokens
    if p_lengths is not None:
        length = tl.minimum(tl.load(p_lengths + i_batch), tokens).to(tl.int32)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < HIDDEN
    total = 0.0
    for start in range(0, BLOCK_SIZE, BLOCK_ROWS):
        o_in = start + tl.arange(0, BLOCK_ROWS)
        o_t = i_block * BLOCK_SIZE + o_in
        m_t = (o_in < BLOCK_SIZE) & (o_t < tokens)
        p_row = p_states + i_batch * stride_batch + o_t[:, None] * stride_token
        m_x = m_t[:, None] & m_h[None, :]
        b_x = tl.load(p_row + o_h[None, :], mask=m_x, other=0.0).to(tl.float32)  # [ROWS, H]
        b_mean = tl.sum(b_x, 1) / HIDDEN
        # Masked features are 0, whose distance from the mean is not.
        b_centred = tl.where(m_h[None, :], b_x - b_mean[:, None], 0.0)
        b_variance = tl.sum(b_centred * b_centred, 1) / HIDDEN
        b_norm = tl.sqrt(tl.sum(b_x * b_x, 1))
        b_inverse = tl.where(b_norm == 0, 0.0, 1.0 / tl.where(b_norm == 0, 1.0, b_norm))
        o_out = i_batch * tokens + o_t
        tl.store(p_variance + o_out, b_variance, mask=m_t)
        tl.store(p_norm + o_out, b_norm, mask=m_t)
        tl.store(p_inverse + o_out, b_inverse, mask=m_t)
        total += tl.sum(tl.where(m_t & (o_t < length), b_variance, 0.0), 0)
    # A block behind the row's end has none left: it is divided by 1, and 0.
    left = tl.minimum(length - i_block * BLOCK_SIZE, BLOCK_SIZE)
    pooled = total / tl.maximum(left, 1).to(tl.float32)
    tl.store(p_pooled + i_batch * blocks + i_block, pooled)


def state_scores(
    states: torch.Tensor,
    lengths: torch.Tensor | None,
    block_size: int,
    variance: torch.Tensor,
    norm: torch.Tensor,
    inverse_norm: torch.Tensor,
    pooled: torch.Tensor,
) -> None:
    """Launches `state_scores_kernel`, one program a block of tokens."""
    batch, tokens, hidden = states.shape
    states, width = in_rows(states), next_power(hidden)
    launch(
        state_scores_kernel,
        (cdiv(tokens, block_size), batch),
        device=states.device,
        warps=4 if width <= 2048 else 8,
        p_states=states,
        p_lengths=lengths,
        p_variance=variance,
        p_norm=norm,
        p_inverse=inverse_norm,
        p_pooled=pooled,
        tokens=tokens,
        blocks=cdiv(tokens, block_size),
        **strides("stride_", ("batch", "token"), states),
        HIDDEN=hidden,
        BLOCK_SIZE=block_size,
        BLOCK_ROWS=max(1, min(next_power(block_size), ROW_ELEMENTS // width)),
        BLOCK_H=width,
    )


@triton.jit
def surprise_kernel(
    p_logits, p_previous, p_tokens, p_losses,
    steps, vocabulary, stride_batch, stride_step, stride_previous, stride_tokens,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Loss of one token a program: log-sum-exp of the row that predicts it, in one pass."""
    i_s = tl.program_id(0).to(tl.int64)
    i_b = tl.program_id(1).to(tl.int64)
    p_row = p_logits + i_b * stride_batch + (i_s - 1) * stride_step
    count = vocabulary
    # The logits of a token predict the next one: the first token's stand in `previous`, or nowhere.
    if i_s == 0:
        if p_previous is not None:
            p_row = p_previous + i_b * stride_previous
        else:  # the mean kernel's: nothing is read
            count = 0
            p_row = p_logits
    b_max = float("-inf")
    b_sum = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, count, BLOCK_V):
        o_v = start + tl.arange(0, BLOCK_V)
        b_x = tl.load(p_row + o_v, mask=o_v < count, other=float("-inf")).to(tl.float32)  # [V]
        b_new = tl.maximum(b_max, tl.max(b_x, 0))
        # An infinite logit would make NaN of the difference of maxima; the plain log-sum-exp gives
        # inf or -inf there, and so does this.
        b_kept = tl.exp(_finite(b_max) - _finite(b_new))
        b_kept = tl.where(tl.abs(b_new) == float("inf"), 1.0, b_kept)
        b_sum = b_sum * b_kept + tl.exp(b_x - _finite(b_new))
        b_max = b_new
    b_lse = tl.log(tl.where(count > 0, tl.sum(b_sum, 0), 1.0)) + _finite(b_max)
    i_token = tl.load(p_tokens + i_b * stride_tokens + i_s).to(tl.int64)
    m_token = (i_token >= 0) & (i_token < count)
    # A token outside of the vocabulary gets NaN rather than what happens to stand there.
    b_own = tl.load(p_row + i_token, mask=m_token, other=float("nan")).to(tl.float32)
    tl.store(p_losses + i_b * steps + i_s, b_lse - b_own, mask=count > 0)


@triton.jit
def _finite(b_x):
    return tl.where(tl.abs(b_x) == float("inf"), 0.0, b_x)


@triton.jit
def first_surprise_kernel(p_losses, steps, BLOCK: tl.constexpr):
    """The first token of a row gets the mean of the others, 0 where there are none."""
    p_row = p_losses + tl.program_id(0).to(tl.int64) * steps
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(1, steps, BLOCK):
        o_s = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_row + o_s, mask=o_s < steps, other=0.0)  # [BLOCK]
    tl.store(p_row, tl.sum(b_sum, 0) / tl.maximum(steps - 1, 1).to(tl.float32))


def surprise(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    previous: torch.Tensor | None,
    losses: torch.Tensor,
) -> None:
    """Launches `surprise_kernel`, one program a token, and the mean where it is asked for."""
    batch, steps, vocabulary = logits.shape
    logits, token_ids = in_rows(logits), in_rows(token_ids)
    previous = None if previous is None else in_rows(previous)
    launch(
        surprise_kernel,
        (steps, batch),
        device=logits.device,
        warps=8,
        p_logits=logits,
        p_previous=previous,
        p_tokens=token_ids,
        p_losses=losses,
        steps=steps,
        vocabulary=vocabulary,
        **strides("stride_", ("batch", "step"), logits),
        **strides("stride_", ("previous",), previous),
        stride_tokens=token_ids.stride(0),
        BLOCK_V=min(VOCABULARY, max(128, next_power(vocabulary))),
    )
    if previous is None and steps > 0:
        launch(
            first_surprise_kernel,
            (batch,),
            device=logits.device,
            warps=4,
            p_losses=losses,
            steps=steps,
            BLOCK=1024,
        )


@triton.jit
def hybrid_blocks_kernel(
    p_scores, p_references, p_weights, p_lengths, p_hybrid, p_pooled,
    count, tokens, blocks, sample, rounds, stride_score,
    BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Some blocks of tokens a program: quantiles by bisection, their mean, the mean of a block."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_in = tl.arange(0, BLOCK_T)
    o_t = o_n.to(tl.int64)[:, None] * BLOCK_SIZE + o_in[None, :]  # [BLOCK_N, BLOCK_T]
    m_t = (o_in < BLOCK_SIZE)[None, :] & (o_t < tokens)
    weight = 0.0
    for i in range(0, count):
        weight += tl.load(p_weights + i)
    b_mean = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    p_row = p_scores + i_batch * tokens
    p_sample = p_references
    for i in range(0, count):
        b_x = tl.load(p_row + o_t, mask=m_t, other=0.0)  # [BLOCK_N, BLOCK_T]
        b_low = tl.zeros([BLOCK_N, BLOCK_T], tl.int32)  # how many are known to be below
        b_upto = b_low
        b_low_end = b_low + sample
        b_upto_end = b_low_end
        # Two bisections at once, for what is below and what is up to a score: ties count half.
        for _ in range(0, rounds):
            b_middle = (b_low + b_low_end) // 2
            m_open = b_low < b_low_end
            b_y = tl.load(p_sample + b_middle, mask=m_open & m_t, other=0.0)
            m_below = m_open & (b_y < b_x)
            b_low = tl.where(m_below, b_middle + 1, b_low)
            b_low_end = tl.where(m_open & ~m_below, b_middle, b_low_end)
            b_middle = (b_upto + b_upto_end) // 2
            m_open = b_upto < b_upto_end
            b_y = tl.load(p_sample + b_middle, mask=m_open & m_t, other=0.0)
            m_below = m_open & (b_y <= b_x)
            b_upto = tl.where(m_below, b_middle + 1, b_upto)
            b_upto_end = tl.where(m_open & ~m_below, b_middle, b_upto_end)
        b_share = (b_low + b_upto).to(tl.float32) / tl.maximum(2 * sample, 1).to(tl.float32)
        b_share = tl.where(b_x == b_x, b_share, 0.0)
        b_share = tl.where(sample == 0, 0.5, b_share)
        b_mean += b_share * (tl.load(p_weights + i) / weight)
        p_row += stride_score
        p_sample += sample
    tl.store(p_hybrid + i_batch * tokens + o_t, b_mean, mask=m_t)
    length = tl.cast(tokens, tl.int64)  # one token is a constant of the program, which has no `to`
    if p_lengths is not None:
        length = tl.minimum(tl.load(p_lengths + i_batch), tokens)
    b_sum = tl.sum(tl.where(m_t & (o_t < length), b_mean, 0.0), 1)
    b_left = tl.minimum(tl.maximum(length - o_n.to(tl.int64) * BLOCK_SIZE, 1), BLOCK_SIZE)
    tl.store(p_pooled + i_batch * blocks + o_n, b_sum / b_left.to(tl.float32), mask=o_n < blocks)


def hybrid_blocks(
    scores: torch.Tensor,
    references: torch.Tensor,
    weights: torch.Tensor,
    lengths: torch.Tensor | None,
    block_size: int,
    hybrid: torch.Tensor,
    pooled: torch.Tensor,
) -> None:
    """Launches `hybrid_blocks_kernel`, some blocks of tokens a program."""
    count, batch, tokens = scores.shape
    sample = references.shape[1]
    width = next_power(block_size)
    blocks = cdiv(tokens, block_size)
    at_once = max(1, HYBRID_TOKENS // width)
    launch(
        hybrid_blocks_kernel,
        (cdiv(blocks, at_once), batch),
        device=scores.device,
        warps=4,
        p_scores=scores.contiguous(),
        p_references=references.contiguous(),
        p_weights=weights,
        p_lengths=lengths,
        p_hybrid=hybrid,
        p_pooled=pooled,
        count=count,
        tokens=tokens,
        blocks=blocks,
        sample=sample,
        rounds=sample.bit_length(),
        stride_score=batch * tokens,
        BLOCK_SIZE=block_size,
        BLOCK_N=at_once,
        BLOCK_T=width,
    )
