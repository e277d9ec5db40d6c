"""Attention with its log-sum-exp, by which two attentions merge exactly, and rotary positions."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cmr.kernels.again import Again
from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.dispatch import needs_gradient, register, runs_plain
from cmr.kernels.reference.attention import NEG_INF, group_logits, group_sum

AGAIN = Again()


def attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention and the log-sum-exp of its logits.

    Differentiable, by plain PyTorch, where a gradient is asked for.

    Args:
        query: [B, H, S, D], any float dtype (on a GPU float32, float16 or bfloat16), any strides.
        key: [B, G, L, D], same dtype; H a multiple of G (grouped queries), L may be 0.
        value: [B, G, L, E], same dtype.
        mask: None; bool, True = visible; or float, added to the scaled logits, where -inf (and
            nothing else) hides a key. Broadcastable to [B, H, S, L].
        is_causal: query i sees keys up to L - S + i: the last query sees every key. Equal to
            PyTorch's flag where S = L. Combines with `mask`.
        scale: factor of q·k; None: D ** -0.5.
        softcap: None, or c > 0: logits become c tanh(x / c) before the mask.
        out: [B, H, S, E] in the query's dtype, any strides, to write into; None: a new one.
        lse: [B, H, S] float32, contiguous, to write into; None: a new one.

    Returns:
        `out` and `lse`. A row that sees no key has out 0 and lse -inf. Keys and values must be
        finite, hidden ones too. A new `out` lies in memory as [B, S, H, E].

    Raises:
        TypeError: not a tensor, or dtypes differ.
        ValueError: shapes do not fit, softcap is not above 0, or `out` or `lse` is given where a
            gradient is asked for.

    Changes only `out` and `lse`. Low-precision products accumulate in float32.

    Source: Dao et al., FlashAttention (2022), section 3 for the log-sum-exp; Ainslie et al., GQA
    (2023) for the groups.

    Equivalent PyTorch:
        `F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)` and
        `torch.logsumexp(scale * query @ key.mT + mask, -1)`.
    """
    tensors, numbers = (query, key, value, mask, out, lse), (is_causal, scale, softcap)
    if out is not None and lse is not None and AGAIN.launched(tensors, *numbers):
        return out, lse
    sizes = expect(
        ("query", query, "B H S D", FLOAT),
        ("key", key, "B G L D", "query"),
        ("value", value, "B G L E", "query"),
        ("out", out, "B H S E", "query"),
        ("lse", lse, "B H S", torch.float32, CONTIGUOUS),
    )
    check_logits(mask, softcap, sizes)
    scale = sizes["D"] ** -0.5 if scale is None else float(scale)
    given = out is not None or lse is not None
    if not given and runs_plain(query, key, value, mask):
        found = attend(query, key, value, mask, is_causal, scale, softcap)
        # The fused kernel's log-sum-exp has strides of its own; whoever merges wants them in order.
        return found[0], found[1].contiguous()
    if needs_gradient(query, key, value, mask):
        if given:
            raise ValueError("no gradient flows through results that are given: expected None")
        return attend(query, key, value, mask, is_causal, scale, softcap)
    batch, heads, steps = query.shape[:3]
    if out is None:
        # Tokens before heads: the model's next step flattens the heads of a token.
        out = query.new_empty(batch, steps, heads, sizes["E"]).transpose(1, 2)
    if lse is None:
        lse = query.new_empty(batch, heads, steps, dtype=torch.float32)
    arguments = query, key, value, mask, is_causal, scale, softcap, out, lse
    AGAIN.launch(attention_with_lse_, arguments, tensors, *numbers)
    return out, lse


def check_logits(mask: torch.Tensor | None, softcap: float | None, sizes: dict[str, int]) -> None:
    """Raises unless a mask fits the logits [B, H, S, L] of these sizes, and softcap is above 0."""
    if mask is not None:
        full = [sizes[letter] for letter in "BHSL"]
        ends = zip(reversed(mask.shape), reversed(full), strict=False)
        if mask.dim() > 4 or any(have not in (1, want) for have, want in ends):
            raise ValueError(
                f"mask: a shape broadcastable to {full} expected, got {list(mask.shape)}"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"mask: dtype bool or float expected, got {mask.dtype}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")


# -- rotary positions: keys are stored un-rotated, and rotated again for where they are read -------


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


# -- the specification ---------------------------------------------------------------------------


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_with_lse` of arguments that were checked already.

    On a CPU, without softcap and gradients, PyTorch's own fused kernel runs, which keeps no logits
    in memory; `attention_with_lse_plain` is the specification and runs everywhere else.
    """
    if not _fused_fits(query, key, value, softcap):
        return attention_with_lse_plain(query, key, value, mask, is_causal, scale, softcap)
    (batch, heads, steps, width), groups = query.shape, key.shape[1]
    alike = mask is None or mask.dim() < 3 or mask.shape[-3] == 1
    if steps == 1 and heads != groups and alike:
        # The heads of a group become steps of one head: their keys are read once, not once a head.
        folded = query.reshape(batch, groups, heads // groups, width)
        out, lse = _fused(folded, key, value, mask, False, scale)
        return out.reshape(query.shape), lse.reshape(batch, heads, 1)
    return _fused(query, key, value, mask, is_causal, scale)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend` by PyTorch's fused kernel for CPUs."""
    steps, length = query.shape[2], key.shape[2]
    causal = is_causal and steps > 1
    # The fused kernel's own flag counts queries from the first key on; ours from the last.
    flag = causal and mask is None and steps == length
    if causal and not flag:
        mask = with_causal(mask, steps, length, query.device)
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
    """The specification of `attention_with_lse`: the same arguments, unchecked, and result."""
    batch, heads, steps, width = query.shape
    scale = width**-0.5 if scale is None else scale
    groups, length = key.shape[1], key.shape[2]
    if length == 0:
        out = query.new_zeros(batch, heads, steps, value.shape[-1])
        return out, query.new_full((batch, heads, steps), NEG_INF, dtype=torch.float32)
    logits = group_logits(query, key, scale, softcap)
    if is_causal and steps > 1:
        mask = with_causal(mask, steps, length, query.device)
    if mask is not None:
        flat = logits.view(batch, heads, steps, length)
        flat = flat.masked_fill(~mask, NEG_INF) if mask.dtype == torch.bool else flat + mask
        logits = flat.view(batch, groups, heads // groups, steps, length)
    lse = torch.logsumexp(logits, -1)
    if mask is None:
        weights = torch.softmax(logits, -1)
    else:
        # A softmax over nothing but -inf is NaN: such a row gets weights of 0 instead.
        blind = (lse == NEG_INF).unsqueeze(-1)
        weights = torch.softmax(logits.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    return group_sum(weights, value), lse.view(batch, heads, steps).float()


def with_causal(
    mask: torch.Tensor | None, steps: int, length: int, device: torch.device
) -> torch.Tensor:
    """A mask that also hides what comes after each query; the last query sees every key."""
    # Counted from the last query: keys in front of the first one are the past, and all visible.
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
    want_out, want_lse = attention_with_lse_plain(query, key, key, None, False, 0.5, None)
    same_shape = out.shape == want_out.shape and lse.shape == want_lse.shape
    return same_shape and bool(torch.allclose(out, want_out) and torch.allclose(lse, want_lse))


def _write(*given: Any) -> None:
    *arguments, out, lse = given
    found = attend(*arguments)
    out.copy_(found[0])
    lse.copy_(found[1])


attention_with_lse_ = register(
    "attention_with_lse(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, "
    "float scale, float? softcap, Tensor(a!) out, Tensor(b!) lse) -> ()",
    _write,
    "attention:attention_with_lse",
    "cmr.reweave",
)
