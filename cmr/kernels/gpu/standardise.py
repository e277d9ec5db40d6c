"""Deviations from what is usual as a Triton kernel; `cmr.kernels.standardise` specifies it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import launch, next_power, strides
from cmr.kernels.gpu._statistics import passage_z, spread

BLOCKS = 1024
"""Blocks that a program looks at at once."""


@triton.jit
def standardise_kernel(
    p_maxima, p_visible, p_successor, p_out,
    tokens, blocks, clamp, stride_batch, stride_token, stride_block, stride_visible,
    PASSAGE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One query token a program: mean and deviation of its maxima, then all of its values."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_q = tl.program_id(0) + tl.arange(0, 1)
    m_q = o_q < tokens
    p_row = p_maxima + i_batch * stride_batch
    p_seen = p_visible + i_batch * stride_visible
    p_line = p_row + tl.program_id(0).to(tl.int64) * stride_token
    mean, deviation = spread(p_line, p_seen, blocks, stride_block, BLOCK_N)
    b_mean = mean + tl.zeros([1], tl.float32)
    b_deviation = deviation + tl.zeros([1], tl.float32)
    p_to = p_out + (i_batch * tokens + tl.program_id(0)) * blocks
    for start in range(0, blocks, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        m_n = o_n < blocks
        b_z = passage_z(
            p_row, p_seen, p_successor, o_q, o_n, m_q, m_n, stride_token, stride_block,
            b_mean, b_deviation, clamp, PASSAGE,
        )  # fmt: skip
        tl.store(p_to + o_n[None, :], b_z, mask=m_n[None, :])  # [1, BLOCK_N]


def standardise(
    maxima: torch.Tensor,
    visible: torch.Tensor,
    successor: torch.Tensor | None,
    clamp: float,
    out: torch.Tensor,
) -> None:
    """Launches `standardise_kernel`, one program a query token."""
    batch, tokens, blocks = maxima.shape
    visible = visible.contiguous().view(torch.uint8)
    launch(
        standardise_kernel,
        (tokens if blocks else 0, batch),
        device=maxima.device,
        warps=4,
        p_maxima=maxima,
        p_visible=visible,
        p_successor=None if successor is None else successor.contiguous(),
        p_out=out,
        tokens=tokens,
        blocks=blocks,
        clamp=clamp,
        **strides("stride_", ("batch", "token", "block"), maxima),
        stride_visible=visible.stride(0),
        PASSAGE=1 if successor is None else 2,
        BLOCK_N=min(BLOCKS, max(16, next_power(blocks))),
    )
