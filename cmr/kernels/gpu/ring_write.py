"""Ring writes as Triton kernels; `cmr.kernels.ring_write` is the specification."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cmr.kernels.gpu._launch import cdiv, in_rows, launch, next_power, strides

COPIED = 2048
"""Elements that a program copies in one step."""
TURNED = 1024
"""Pairs of elements that a program un-rotates in one step."""
NORMALISED = 4096
"""Elements of states that a program holds in registers at once."""
FEATURES = 1024
"""Most features of a token that are copied in one step."""

FLOATS, INT8, E4M3 = 0, 1, 2


@triton.jit
def _copy(
    p_to, p_from, o_t, m_t, m_real, stride_to, stride_from,
    FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Features FIRST to LAST of some tokens, zeros where they are not real."""
    for start in range(FIRST, LAST, BLOCK_D):
        o_d = start + tl.arange(0, BLOCK_D)
        m_d = o_d < LAST
        b_x = tl.load(
            p_from + o_t[:, None] * stride_from + o_d[None, :],
            mask=m_real[:, None] & m_d[None, :],
            other=0.0,
        )  # [BLOCK_T, BLOCK_D]
        # Through float32, as bfloat16 and float16 have no direct conversion on every target.
        b_x = b_x.to(tl.float32).to(p_to.dtype.element_ty)
        tl.store(
            p_to + o_t[:, None] * stride_to + o_d[None, :],
            b_x,
            mask=m_t[:, None] & m_d[None, :],
        )


@triton.jit
def _unrotate(
    p_to, p_from, p_cos, p_sin, o_t, m_t, m_real, stride_to, stride_from, stride_cos, stride_sin,
    HALF: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The first 2 HALF features of some tokens, turned back; zeros where they are not real."""
    o_r = tl.arange(0, BLOCK_R)
    m_r = (o_r < HALF)[None, :]
    m_x = m_real[:, None] & m_r
    o_x = o_t[:, None] * stride_from + o_r[None, :]
    o_c = o_t[:, None] * stride_cos + o_r[None, :]
    o_s = o_t[:, None] * stride_sin + o_r[None, :]
    b_first = tl.load(p_from + o_x, mask=m_x, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_R]
    b_second = tl.load(p_from + o_x + HALF, mask=m_x, other=0.0).to(tl.float32)
    b_cos = tl.load(p_cos + o_c, mask=m_x, other=1.0)
    b_sin = tl.load(p_sin + o_s, mask=m_x, other=0.0)
    # Over the squares' sum: embeddings that scale their attention (YaRN) have a sum other than 1.
    b_norm = b_cos * b_cos + b_sin * b_sin
    b_low = b_first * (b_cos / b_norm) + b_second * (b_sin / b_norm)
    b_cos = tl.load(p_cos + o_c + HALF, mask=m_x, other=1.0)
    b_sin = tl.load(p_sin + o_s + HALF, mask=m_x, other=0.0)
    b_norm = b_cos * b_cos + b_sin * b_sin
    b_high = b_second * (b_cos / b_norm) - b_first * (b_sin / b_norm)
    # Rounded to the keys' dtype first, as the specification is, then to the store's.
    b_low = b_low.to(p_from.dtype.element_ty).to(tl.float32)
    b_high = b_high.to(p_from.dtype.element_ty).to(tl.float32)
    o_to = o_t[:, None] * stride_to + o_r[None, :]
    m_to = m_t[:, None] & m_r
    tl.store(p_to + o_to, b_low.to(p_to.dtype.element_ty), mask=m_to)
    tl.store(p_to + o_to + HALF, b_high.to(p_to.dtype.element_ty), mask=m_to)


@triton.jit
def ring_write_heads_kernel(
    p_key_store, p_value_store, p_slots, p_pick, p_keys, p_values, p_cos, p_sin,
    tokens, blocks,
    stride_ks, stride_kh, stride_kt, stride_vs, stride_vh, stride_vt,
    stride_kb, stride_kg, stride_kn, stride_vb, stride_vg, stride_vn,
    stride_cb, stride_cn, stride_sb, stride_sn,
    SIZE: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HALF: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some tokens of one block of one head a program: keys turned back, values as they are."""
    i_n = tl.program_id(0)
    i_g = tl.program_id(1).to(tl.int64)
    # Slots are distinct, so that no two programs store to one address; they are int64 as loaded,
    # which the offsets into a large store need.
    i_slot = tl.load(p_slots + i_n)
    i_from = tl.load(p_pick + i_n)
    i_row = i_from // blocks
    i_first = (i_from - i_row * blocks) * SIZE
    o_t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    m_t = o_t < SIZE
    m_real = m_t & (i_first + o_t < tokens)
    p_to = p_key_store + i_slot * stride_ks + i_g * stride_kh
    p_from = p_keys + i_row * stride_kb + i_g * stride_kg + i_first * stride_kn
    if p_cos is not None:
        p_c = p_cos + i_row * stride_cb + i_first * stride_cn
        p_s = p_sin + i_row * stride_sb + i_first * stride_sn
        _unrotate(
            p_to, p_from, p_c, p_s, o_t, m_t, m_real,
            stride_kt, stride_kn, stride_cn, stride_sn, HALF, BLOCK_R,
        )  # fmt: skip
    _copy(p_to, p_from, o_t, m_t, m_real, stride_kt, stride_kn, 2 * HALF, KEY_DIM, BLOCK_D)
    if p_value_store is not None:
        p_to = p_value_store + i_slot * stride_vs + i_g * stride_vh
        p_from = p_values + i_row * stride_vb + i_g * stride_vg + i_first * stride_vn
        _copy(p_to, p_from, o_t, m_t, m_real, stride_vt, stride_vn, 0, VALUE_DIM, BLOCK_D)


def ring_write_heads(
    key_store: torch.Tensor,
    value_store: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> None:
    """Launches `ring_write_heads_kernel`, a program for some tokens of a block and head."""
    size = key_store.shape[2]
    tokens, key_dim = keys.shape[2:]
    half = 0 if cos is None else cos.shape[-1] // 2
    value_dim = 0 if values is None else values.shape[-1]
    block_r = next_power(half)
    block_d = min(FEATURES, max(next_power(key_dim - 2 * half), next_power(value_dim)))
    # As many tokens a program as keep its tiles of copied and of turned features in registers.
    at_once = min(COPIED // block_d, TURNED // block_r, next_power(size))
    keys = in_rows(keys)
    values, cos, sin = (x if x is None else in_rows(x) for x in (values, cos, sin))
    launch(
        ring_write_heads_kernel,
        (slots.shape[0], keys.shape[1], cdiv(size, at_once)),
        device=key_store.device,
        warps=4,
        p_key_store=key_store,
        p_value_store=value_store,
        p_slots=slots,
        p_pick=pick,
        p_keys=keys,
        p_values=values,
        p_cos=cos,
        p_sin=sin,
        tokens=tokens,
        blocks=cdiv(tokens, size),
        **strides("stride_k", "sht", key_store),
        **strides("stride_v", "sht", value_store),
        **strides("stride_k", "bgn", keys),
        **strides("stride_v", "bgn", values),
        **strides("stride_c", "bn", cos),
        **strides("stride_s", "bn", sin),
        SIZE=size,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        HALF=half,
        BLOCK_T=at_once,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
    )


@triton.jit
def _round_to_even(b_x):
    """To the nearest integer, below 2**22 in magnitude: float32 has no room for a fraction then."""
    return (b_x + 12582912.0) - 12582912.0


@triton.jit
def _to_e4m3(b_x):
    """float32 of magnitude up to 448 as the bits of float8_e4m3fn, ties to even."""
    b_bits = b_x.to(tl.int32, bitcast=True)
    b_size = b_bits & 0x7FFFFFFF
    # Half of the last kept bit, less one where that bit is 0: ties go to even.
    b_rounded = b_size + 0x7FFFF + ((b_size >> 20) & 1)
    b_normal = (b_rounded >> 20) - (120 << 3)
    b_small = _round_to_even(tl.abs(b_x) * 512.0).to(tl.int32)  # units of 2**-9
    b_code = tl.where(b_size < 0x3C800000, b_small, b_normal)  # below 2**-6
    b_code = tl.where(b_size > 0x7F800000, 0x7F, b_code)
    return (b_code | ((b_bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def ring_write_index_kernel(
    p_index, p_scale, p_slots, p_pick, p_states,
    tokens, blocks, stride_batch, stride_token,
    SIZE: tl.constexpr, HIDDEN: tl.constexpr, KIND: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Some tokens of one block a program: scaled to norm 1, quantised where there are scales."""
    i_n = tl.program_id(0)
    i_slot = tl.load(p_slots + i_n)
    i_from = tl.load(p_pick + i_n)
    i_row = i_from // blocks
    i_first = (i_from - i_row * blocks) * SIZE
    o_t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    o_h = tl.arange(0, BLOCK_H)
    m_t = o_t < SIZE
    m_h = (o_h < HIDDEN)[None, :]
    m_real = m_t & (i_first + o_t < tokens)
    p_row = p_states + i_row * stride_batch + (i_first + o_t)[:, None] * stride_token
    b_x = tl.load(p_row + o_h[None, :], mask=m_real[:, None] & m_h, other=0.0)
    b_x = b_x.to(tl.float32)  # [BLOCK_T, BLOCK_H]
    # Correctly rounded roots and quotients: the fast ones differ in the last bit, which moves codes
    # of an 8-bit index off those of the specification.
    b_norm = tl.sqrt_rn(tl.sum(b_x * b_x, 1))
    b_inverse = tl.where(b_norm == 0, 0.0, tl.div_rn(1.0, tl.where(b_norm == 0, 1.0, b_norm)))
    b_x = b_x * b_inverse[:, None]
    o_row = i_slot * SIZE + o_t
    if KIND != 0:
        LARGEST: tl.constexpr = 127.0 if KIND == 1 else 448.0
        b_scale = tl.div_rn(tl.max(tl.abs(b_x), 1), LARGEST)
        tl.store(p_scale + o_row, b_scale, mask=m_t)
        b_up = tl.where(b_scale > 0, tl.div_rn(1.0, tl.where(b_scale > 0, b_scale, 1.0)), 0.0)
        b_x = tl.minimum(tl.maximum(b_x * b_up[:, None], -LARGEST), LARGEST)
    if KIND == 1:
        b_code = _round_to_even(b_x).to(tl.int8)
    elif KIND == 2:
        b_code = _to_e4m3(b_x)
    else:
        b_code = b_x.to(p_index.dtype.element_ty)
    o_to = o_row[:, None] * HIDDEN + o_h[None, :]
    tl.store(p_index + o_to, b_code, mask=m_t[:, None] & m_h)


def ring_write_index(
    index: torch.Tensor,
    scale: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    states: torch.Tensor,
) -> None:
    """Launches `ring_write_index_kernel`, a program for some tokens of a block."""
    size, hidden = index.shape[1:]
    width = next_power(hidden)
    at_once = max(1, min(next_power(size), NORMALISED // width))
    kind = {torch.int8: INT8, torch.float8_e4m3fn: E4M3}.get(index.dtype, FLOATS)
    states = in_rows(states)
    tokens = states.shape[1]
    launch(
        ring_write_index_kernel,
        (slots.shape[0], cdiv(size, at_once)),
        device=index.device,
        warps=4 if width <= 2048 else 8,
        p_index=index.view(torch.uint8) if kind == E4M3 else index,
        p_scale=scale,
        p_slots=slots,
        p_pick=pick,
        p_states=states,
        tokens=tokens,
        blocks=cdiv(tokens, size),
        **strides("stride_", ("batch", "token"), states),
        SIZE=size,
        HIDDEN=hidden,
        KIND=kind,
        BLOCK_T=at_once,
        BLOCK_H=width,
    )
