"""Tokens into a query, as a Triton kernel; `cmr.kernels.search.query` is the specification."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import in_rows, launch, next_power, strides
from cmr.kernels.search.query import Places


@triton.jit
def write_query_kernel(
    p_states, p_mean, p_mask, p_token_ids, p_out, p_ids, p_of, p_asks,
    tokens, part, stride_batch, stride_token, stride_to_batch, stride_to_token, stride_row,
    HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One token a program: its state scaled to norm 1, less a mean; and what is known of it."""
    i_token = tl.program_id(0).to(tl.int64)
    i_batch = tl.program_id(1).to(tl.int64)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < HIDDEN
    p_row = p_states + i_batch * stride_batch + i_token * stride_token
    b_x = tl.load(p_row + o_h, mask=m_h, other=0.0).to(tl.float32)  # [BLOCK_H]
    norm = tl.sqrt_rn(tl.sum(b_x * b_x, 0))
    b_x = b_x * tl.where(norm == 0, 0.0, tl.div_rn(1.0, tl.where(norm == 0, 1.0, norm)))
    if p_mean is not None:
        # A state of zeros matches nothing, and has to stay one when the mean is taken off.
        b_mean = tl.load(p_mean + o_h, mask=m_h, other=0.0)
        b_x = tl.where(norm == 0, 0.0, b_x - b_mean)
    p_to = p_out + i_batch * stride_to_batch + i_token * stride_to_token
    tl.store(p_to + o_h, b_x.to(p_out.dtype.element_ty), mask=m_h)
    if p_ids is not None:
        i_from = i_batch * tokens + i_token
        i_to = i_batch * stride_row + i_token
        asks = True
        if p_mask is not None:
            asks = tl.load(p_mask + i_from) != 0
        number = -1
        if p_token_ids is not None:
            number = tl.load(p_token_ids + i_from)
        tl.store(p_ids + i_to, number)
        tl.store(p_of + i_to, tl.where(asks, part, -1))
        tl.store(p_asks + i_to, asks)


def write_query(
    states: torch.Tensor, mask: torch.Tensor | None, token_ids: torch.Tensor | None, *rest: Any
) -> None:
    """Launches `write_query_kernel`, one program a token; twice around the products of a metric."""
    part, (mean, projection, unit, narrow), places = rest[0], rest[1:5], Places(*rest[5:])
    given = in_rows(states)
    if mean is not None:
        _scale(given, mean, Places(unit.view(states.shape)))
        # What was scaled is done with when its products are there: they take its place.
        torch.mm(unit, projection, out=narrow)
        torch.mm(narrow, projection.t(), out=unit)
        given = unit.view(states.shape)
    _scale(given, None, places, mask, token_ids, part)


def _scale(states: torch.Tensor, mean: torch.Tensor | None, places: Places, *known: Any) -> None:
    mask, token_ids, part = known or (None, None, 0)
    batch, tokens, hidden = states.shape
    launch(
        write_query_kernel,
        (tokens, batch),
        device=states.device,
        warps=4 if hidden <= 2048 else 8,
        p_states=states,
        p_mean=mean,
        p_mask=None if mask is None else mask.contiguous().view(torch.uint8),
        p_token_ids=None if token_ids is None else token_ids.contiguous(),
        p_out=places.states,
        p_ids=places.token_ids,
        p_of=places.of,
        p_asks=None if places.asks is None else places.asks.view(torch.uint8),
        tokens=tokens,
        part=part,
        **strides("stride_", ("batch", "token"), states),
        **strides("stride_to_", ("batch", "token"), places.states),
        **strides("stride_", ("row",), places.asks),
        HIDDEN=hidden,
        BLOCK_H=next_power(hidden),
    )
