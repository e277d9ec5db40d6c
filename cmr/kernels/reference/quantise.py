"""Rows in 8 bits with a scale of their own: int8, or floating point with 4 exponent bits (e4m3)."""

from __future__ import annotations

import torch

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest element of a row is mapped to."""


def quantise_rows(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales: row i is about `codes[i] * scale[i]`.

    Args:
        rows: [..., H], any float dtype, finite.
        dtype: torch.int8 or torch.float8_e4m3fn.

    Returns:
        codes [..., H] of `dtype`, rounded to the nearest (ties to even), and scale [...] float32,
        the row's largest magnitude over 127 or 448; a row that is all 0 has scale 0 and codes 0.

    Raises:
        TypeError: rows are not floats, or another dtype is wanted.

    Equivalent PyTorch: `(rows / scale[..., None]).round().to(torch.int8)`.
    """
    if not rows.is_floating_point():
        raise TypeError(f"rows: a floating-point dtype expected, got {rows.dtype}")
    if dtype not in LARGEST:
        raise TypeError(f"dtype: torch.int8 or torch.float8_e4m3fn expected, got {dtype}")
    wide = rows.float()
    scale = wide.abs().amax(-1) / LARGEST[dtype]
    codes = wide * torch.where(scale > 0, 1.0 / scale, 0.0).unsqueeze(-1)
    # The product may end just above the largest code: the scale was rounded.
    codes = codes.clamp(-LARGEST[dtype], LARGEST[dtype])
    if dtype == torch.int8:
        codes = codes.round()
    return codes.to(dtype), scale
