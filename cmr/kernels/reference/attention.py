"""Attention that also returns its log-sum-exp, so that two attentions can be merged exactly."""

from __future__ import annotations

import functools

import torch

from cmr.kernels.reference._shapes import (
    expect_float,
    expect_heads,
    expect_same_dtype,
    expect_shape,
)

NEG_INF = float("-inf")


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def group_logits(
    query: torch.Tensor, key: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """Scaled (and capped) q·k of grouped-query attention, without copying keys per head.

    Args:
        query: [B, H, S, D]; H a multiple of G, head h belongs to group h // (H / G).
        key: [B, G, L, D], same dtype.
        scale: factor of q·k.
        softcap: None, or c of c tanh(x / c).

    Returns:
        [B, G, H / G, S, L] float32 (float64 for float64 inputs).
    """
    batch, heads, steps, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    rows = heads // groups * steps
    folded = query.reshape(batch * groups, rows, width)
    logits = torch.bmm(folded, key.reshape(batch * groups, length, width).transpose(1, 2))
    logits = wide(logits) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.view(batch, groups, heads // groups, steps, length)


def group_sum(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weighted sum of values per head.

    Args:
        weights: [B, G, H / G, S, L], cast to the values' dtype.
        value: [B, G, L, D].

    Returns:
        [B, H, S, D] in the values' dtype.
    """
    batch, groups, repeat, steps, length = weights.shape
    folded = weights.reshape(batch * groups, repeat * steps, length).to(value.dtype)
    summed = torch.bmm(folded, value.reshape(batch * groups, length, value.shape[-1]))
    return summed.view(batch, groups * repeat, steps, value.shape[-1])


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cmr.kernels.attention_with_lse` of arguments that were checked already.

    On a CPU, without softcap and gradients, PyTorch's own fused kernel runs, which keeps no logits
    in memory; `attention_with_lse_plain` is the specification and runs everywhere else.
    """
    if not _fused_fits(query, key, value, softcap):
        return _plain(query, key, value, mask, is_causal, scale, softcap)
    steps, length = query.shape[2], key.shape[2]
    causal = is_causal and steps > 1
    flag = causal and mask is None and steps == length
    if causal and not flag:
        mask = _with_causal(mask, steps, length, query.device)
    added = _additive(mask, query.dtype)
    blind = None
    if added is not None:
        blind = (added == NEG_INF).all(-1)
        added = added.expand(*added.shape[:-2], steps, length)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, flag, attn_mask=added, scale=scale
    )
    lse = lse.float()
    if blind is not None:
        # The fused kernel reports 0 for a row that sees nothing.
        lse = lse.masked_fill(blind, NEG_INF)
    return out, lse


def attention_with_lse_plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `cmr.kernels.attention_with_lse`: the same arguments, result, errors."""
    scale = check_attention(query, key, value, mask, scale, softcap)
    return _plain(query, key, value, mask, is_causal, scale, softcap)


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, steps, _ = query.shape
    groups, length = key.shape[1], key.shape[2]
    if length == 0:
        out = query.new_zeros(batch, heads, steps, value.shape[-1])
        return out, query.new_full((batch, heads, steps), NEG_INF, dtype=torch.float32)
    logits = group_logits(query, key, scale, softcap)
    if is_causal and steps > 1:
        mask = _with_causal(mask, steps, length, query.device)
    if mask is not None:
        flat = logits.view(batch, heads, steps, length)
        flat = flat.masked_fill(~mask, NEG_INF) if mask.dtype == torch.bool else flat + mask
        logits = flat.view(batch, groups, heads // groups, steps, length)
    lse = torch.logsumexp(logits, -1)
    if mask is None:
        weights = torch.softmax(logits, -1)
    else:
        blind = (lse == NEG_INF).unsqueeze(-1)
        weights = torch.softmax(logits.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    return group_sum(weights, value), lse.view(batch, heads, steps).float()


def attend_partials(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over `parts` ranges of the keys, each for itself: what a merge starts from.

    The arguments are those of `attention_with_lse`, checked, and the number of parts P: range p
    starts at key `p * part_size(L, P)`.

    Returns:
        out [P, B, H, S, E] float32 and lse [P, B, H, S] float32; 0 and -inf where a row sees
        nothing of a range. Computed in the query's dtype.
    """
    steps, length = query.shape[2], key.shape[2]
    if is_causal and steps > 1:
        mask = _with_causal(mask, steps, length, query.device)
    size = part_size(length, parts)
    found = []
    for start in range(0, parts * size, size):
        seen = slice(start, start + size)
        keys, values = key[:, :, seen], value[:, :, seen]
        own = mask
        if mask is not None and mask.dim() and mask.shape[-1] == length:
            own = mask[..., seen]
        if keys.shape[2] == 0:
            own = None
        found.append(attend(query, keys, values, own, False, scale, softcap))
    return torch.stack([out.float() for out, _ in found]), torch.stack([lse for _, lse in found])


def part_size(length: int, parts: int) -> int:
    """Keys in each of `parts` ranges but the last ones: a multiple of 16, at least 16."""
    return max(16, -(-length // (16 * parts)) * 16)


def merge_partials(out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over all keys from attention over ranges of them.

    Args:
        out: [P, B, H, S, E], any float dtype.
        lse: [P, B, H, S] float32.

    Returns:
        out [B, H, S, E] float32 and lse [B, H, S]; with P = 1 what was given, as it was given.
    """
    if out.shape[0] == 1:
        return out[0], lse[0]
    total = torch.logsumexp(lse, 0)
    shares = torch.exp(lse - total.masked_fill(total == NEG_INF, 0.0))
    return (shares.unsqueeze(-1) * wide(out)).sum(0), total


def check_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> float:
    """Raises unless the arguments of `attention_with_lse` fit; returns the scale to use."""
    expect_shape("query", query, ("B", None), ("H", None), ("S", None), ("D", None))
    batch, heads, steps, width = query.shape
    expect_shape("key", key, ("B", batch), ("G", None), ("L", None), ("D", width))
    groups, length = key.shape[1], key.shape[2]
    expect_shape("value", value, ("B", batch), ("G", groups), ("L", length), ("E", None))
    expect_float("query", query)
    expect_same_dtype("key", key, query.dtype)
    expect_same_dtype("value", value, query.dtype)
    expect_heads(query, key)
    if mask is not None:
        full = (batch, heads, steps, length)
        fits = mask.dim() <= 4 and all(
            have in (1, want)
            for have, want in zip(reversed(mask.shape), reversed(full), strict=False)
        )
        if not fits:
            raise ValueError(
                f"mask: a shape broadcastable to {list(full)} expected, got {list(mask.shape)}"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"mask: dtype bool or float expected, got {mask.dtype}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")
    return width**-0.5 if scale is None else float(scale)


def _with_causal(
    mask: torch.Tensor | None, steps: int, length: int, device: torch.device
) -> torch.Tensor:
    causal = torch.ones(steps, length, dtype=torch.bool, device=device).tril(length - steps)
    causal = causal[None, None]
    if mask is None:
        return causal
    if mask.dtype == torch.bool:
        return mask & causal
    return torch.where(causal, mask, NEG_INF)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """`mask` as a 4-D float mask of a dtype that the fused kernel takes."""
    if mask is None:
        return None
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, NEG_INF)
    return mask if mask.dtype in (dtype, torch.float32) else mask.to(dtype)


def _fused_fits(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softcap: float | None
) -> bool:
    tensors = (query, key, value)
    return (
        softcap is None
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1]
        and all(tensor.numel() > 0 and tensor.stride(-1) == 1 for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.compiler.is_compiling()  # which fuses on its own, and cannot trace the trial
        and _fused_works(query.shape[1] != key.shape[1])
    )


@functools.cache
def _fused_works(grouped: bool) -> bool:
    """Whether this PyTorch's fused CPU kernel exists and takes (grouped) heads: tried once."""
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return False
    query = torch.linspace(-1, 1, 2 * 3 * 8).view(1, 2, 3, 8)
    key = torch.linspace(2, -1, 2 * 5 * 8).view(1, 2, 5, 8)[:, : 1 if grouped else 2]
    try:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, key, 0.0, False, scale=0.5
        )
    except (RuntimeError, TypeError, IndexError):
        return False
    want_out, want_lse = _plain(query, key, key, None, False, 0.5, None)
    same_shape = out.shape == want_out.shape and lse.shape == want_lse.shape
    return same_shape and bool(torch.allclose(out, want_out) and torch.allclose(lse, want_lse))
