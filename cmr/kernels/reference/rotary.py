"""Rotary arithmetic: keys are stored un-rotated, and rotated again for where they are read."""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary rotation of the first R features, R even and at most D, in the dtype of `x`.

    Of `x` [B, H, S, D] by cosine and sine [B, S, R] float32: `x * cos + rotate_half(x) * sin` (Su
    et al. 2021, RoFormer, in the half-split layout of transformers).
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = cos.shape[-1]
    # In float32: a cosine in half precision would turn keys far along the text by a wrong angle.
    part = x[..., :width].float()
    first, second = part.chunk(2, dim=-1)
    turned = (part * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def unrotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The inverse of `rotate`, also where cos² + sin² is not 1.

    That sum is not 1 where an embedding scales its attention (YaRN) or where cosine and sine were
    rounded; dividing by it inverts each pair's rotation exactly, up to the rounding of `x`.
    """
    norm = cos * cos + sin * sin
    return rotate(x, cos / norm, -sin / norm)
