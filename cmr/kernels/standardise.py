"""What makes block maxima of different query tokens comparable: deviations from what is usual."""

from __future__ import annotations

import torch

from cmr.kernels.arguments import expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference._own_blocks import beginnings, seen_first
from cmr.kernels.reference.attention import NEG_INF

MANY = 1 << 16
"""Values from which on rows are looked at in part."""


def standardise(
    maxima: torch.Tensor,
    visible: torch.Tensor,
    clamp: float = 8.0,
    successor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each query token's maxima as deviations from their mean over the visible blocks. One launch.

    A token that matches everything alike then says little, one that singles out a block says much.

    Args:
        maxima: [B, Q, N] float32, any strides.
        visible: [B, N] bool: the blocks that a row may see.
        clamp: above 0; deviations are limited to [-clamp, clamp].
        successor: [N] int64: the slot of the next block of the same session, or -1: a block gets
            the larger of its own value and its successor's, see `passages`. None: its own.

    Returns:
        z [B, Q, N] float32 in [-clamp, clamp]. Mean and population deviation are over a row's
        visible blocks with finite maxima; every other block is -clamp. With fewer than two such
        blocks, or all of them equal, those are 0.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or clamp is not above 0.

    Equivalent PyTorch: `((m - m.mean(-1)) / m.std(-1, correction=0)).clamp(-clamp, clamp)`.
    """
    expect(
        ("maxima", maxima, "B Q N", torch.float32),
        ("visible", visible, "B N", torch.bool),
        ("successor", successor, "N", torch.int64),
    )
    if not clamp > 0:
        raise ValueError(f"clamp: a number above 0 expected, got {clamp}")
    if runs_plain(maxima, visible):
        return standardised(maxima, visible, successor, clamp)
    out = maxima.new_empty(maxima.shape)
    standardise_(maxima, visible, successor, float(clamp), out)
    return out


def standardise_plain(
    maxima: torch.Tensor,
    visible: torch.Tensor,
    successor: torch.Tensor | None,
    clamp: float,
    out: torch.Tensor,
) -> None:
    """The specification of `standardise`, of arguments that were checked already."""
    out.copy_(standardised(maxima, visible, successor, clamp))


def standardised(
    maxima: torch.Tensor, visible: torch.Tensor, successor: torch.Tensor | None, clamp: float
) -> torch.Tensor:
    """`standardise` of arguments that were checked already, in plain PyTorch."""
    # Among many users' blocks a row sees few: only those are looked at where that saves something.
    if maxima.numel() >= MANY:
        own = seen_first(visible if successor is None else beginnings(visible, successor))
        if own is not None:
            return _of_own(maxima, visible, successor, clamp, own)
    z = _deviations(maxima, visible, clamp)
    return z if successor is None else passages(z, successor)


def _of_own(
    maxima: torch.Tensor,
    visible: torch.Tensor,
    successor: torch.Tensor | None,
    clamp: float,
    own: torch.Tensor,
) -> torch.Tensor:
    """The same where all but the blocks `own` [B, n] of each row are -clamp."""
    at = own[:, None].expand(-1, maxima.shape[1], -1)
    few = _deviations(maxima.gather(2, at), visible.gather(1, own), clamp)
    z = torch.full_like(maxima, -clamp).scatter_(2, at, few)
    if successor is None:
        return z
    after = successor[own][:, None].expand(at.shape)
    following = z.gather(2, after.clamp(min=0)).masked_fill_(after < 0, NEG_INF)
    return z.scatter_(2, at, torch.maximum(few, following))


def _deviations(maxima: torch.Tensor, visible: torch.Tensor, clamp: float) -> torch.Tensor:
    usable, mean, deviation = spread(maxima, visible)
    z = torch.where(deviation > 0, (maxima - mean) / deviation, 0.0).clamp(-clamp, clamp)
    return torch.where(usable, z, -clamp)


standardise_ = register(
    "standardise(Tensor maxima, Tensor visible, Tensor? successor, float clamp, Tensor(a!) out) "
    "-> ()",
    standardise_plain,
    "standardise:standardise",
    "cmr.retrieve",
)


def spread(
    maxima: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which maxima [B, Q, N] count, being visible and finite, and their mean and deviation.

    Both are [B, Q, 1] float32, the deviation is the population's.
    """
    usable = visible[:, None] & maxima.isfinite()
    count = usable.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(usable, maxima, 0.0)
    mean = kept.sum(-1, keepdim=True) / count
    centred = torch.where(usable, maxima - mean, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    # A spread at the level of float32 rounding is no spread: it would make noise into a match.
    floor = 1e-6 * kept.abs().amax(-1, keepdim=True) if maxima.shape[-1] else deviation
    return usable, mean, torch.where(deviation > floor, deviation, 0.0)


def passages(maxima: torch.Tensor, successor: torch.Tensor) -> torch.Tensor:
    """Maxima of passages of two consecutive blocks: a fact that an edge cuts is found whole.

    Args:
        maxima: [B, Q, N] float32.
        successor: [N] int64: the slot of the next block of the same session, or -1.

    Returns:
        [B, Q, N] float32: the larger of each block's value and its successor's.

    Equivalent PyTorch: `torch.maximum(maxima, maxima[..., successor])` where there is one.
    """
    expect(("maxima", maxima, "B Q N", None), ("successor", successor, "N", torch.int64))
    following = maxima.index_select(-1, successor.clamp(min=0))
    return torch.maximum(maxima, torch.where(successor >= 0, following, NEG_INF))
