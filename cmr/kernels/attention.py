"""Attention that also returns its log-sum-exp, whole or over ranges of the keys."""

from __future__ import annotations

import torch

from cmr.kernels._ops import register, runs_plain
from cmr.kernels.reference import attention as reference
from cmr.kernels.reference._shapes import expect_float, expect_same_dtype, expect_shape


def _attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    found = reference.attend(query, key, value, mask, is_causal, scale, softcap)
    out.copy_(found[0])
    lse.copy_(found[1])


def _attention_partials(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    found = reference.attend_partials(
        query, key, value, mask, is_causal, scale, softcap, out.shape[0]
    )
    out.copy_(found[0])
    lse.copy_(found[1])


attention_with_lse_ = register(
    "attention_with_lse(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, "
    "float scale, float? softcap, Tensor(a!) out, Tensor(b!) lse) -> ()",
    _attention_with_lse,
    "attention:attention_with_lse",
    "cmr.reweave",
)
attention_partials_ = register(
    "attention_partials(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, "
    "float scale, float? softcap, Tensor(a!) out, Tensor(b!) lse) -> ()",
    _attention_partials,
    "attention:attention_partials",
    "cmr.reweave",
)


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
    scale = reference.check_attention(query, key, value, mask, scale, softcap)
    batch, heads, steps, _ = query.shape
    if needs_gradient(query, key, value, mask):
        refuse_results(out, lse)
        return reference.attend(query, key, value, mask, is_causal, scale, softcap)
    if out is None and lse is None and runs_plain(query):
        found = reference.attend(query, key, value, mask, is_causal, scale, softcap)
        return found[0], found[1].contiguous()
    width = value.shape[-1]
    if out is None:
        out = query.new_empty(batch, steps, heads, width).transpose(1, 2)
    else:
        expect_shape("out", out, ("B", batch), ("H", heads), ("S", steps), ("E", width))
        expect_same_dtype("out", out, query.dtype)
    if lse is None:
        lse = query.new_empty(batch, heads, steps, dtype=torch.float32)
    else:
        expect_shape("lse", lse, ("B", batch), ("H", heads), ("S", steps))
        expect_contiguous("lse", lse, torch.float32)
    attention_with_lse_(query, key, value, mask, is_causal, scale, softcap, out, lse)
    return out, lse


def attention_partials(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    *,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_with_lse` over P ranges of the keys: parts for `reweave_paged` to merge.

    A decode step has too few queries to fill a GPU: splitting the keys gives it P times as many
    programs, in one launch.

    Args:
        query: as of `attention_with_lse`, as are all but the last two; meant for few tokens S.
        key: the same.
        value: the same.
        mask: the same.
        is_causal: the same.
        scale: the same.
        softcap: the same.
        out: [P, B, H, S, E], any float dtype (float32 loses nothing), written.
        lse: [P, B, H, S] float32, contiguous, written.

    Returns:
        `out` and `lse`. Range p holds ceil(L / P) keys, rounded up to a multiple of 16; the last
        ranges may be short or empty: out 0 and lse -inf there.

    Raises:
        TypeError, ValueError: as of `attention_with_lse`.

    Equivalent PyTorch: `attention_with_lse` of `key[:, :, start:end]`, `value[:, :, start:end]`
    for each range.
    """
    scale = reference.check_attention(query, key, value, mask, scale, softcap)
    if needs_gradient(query, key, value, mask):
        refuse_results(out, lse)
    shape = ("B", query.shape[0]), ("H", query.shape[1]), ("S", query.shape[2])
    expect_shape("out", out, ("P", None), *shape, ("E", value.shape[-1]))
    expect_float("out", out)
    expect_shape("lse", lse, ("P", out.shape[0]), *shape)
    expect_contiguous("lse", lse, torch.float32)
    attention_partials_(query, key, value, mask, is_causal, scale, softcap, out, lse)
    return out, lse


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a gradient is asked for with respect to any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def refuse_results(*given: torch.Tensor | None) -> None:
    """Raises ValueError where a result is to be written into a given tensor."""
    if any(tensor is not None for tensor in given):
        raise ValueError("no gradient flows through results that are given: expected None")


def expect_contiguous(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises unless `tensor` is contiguous and of `dtype`."""
    expect_same_dtype(name, tensor, dtype)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: a contiguous tensor expected, got strides {tensor.stride()}")
