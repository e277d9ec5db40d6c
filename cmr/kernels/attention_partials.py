"""Attention over ranges of the keys, each for itself, and the merge of such parts."""

from __future__ import annotations

from typing import Any

import torch

from cmr.kernels.again import Again
from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.attention import attend, check_logits, with_causal
from cmr.kernels.dispatch import needs_gradient, register
from cmr.kernels.reference.attention import NEG_INF, wide

AGAIN = Again()


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
    tensors = query, key, value, mask, out, lse
    if AGAIN.launched(tensors, is_causal, scale, softcap):
        return out, lse
    sizes = expect(
        ("query", query, "B H S D", FLOAT),
        ("key", key, "B G L D", "query"),
        ("value", value, "B G L E", "query"),
        ("out", out, "P B H S E", FLOAT),
        ("lse", lse, "P B H S", torch.float32, CONTIGUOUS),
    )
    check_logits(mask, softcap, sizes)
    # Parts are for decoding, into tensors that are kept; a training step attends in one piece.
    if needs_gradient(query, key, value, mask):
        raise ValueError("no gradient flows through results that are given: expected None")
    factor = sizes["D"] ** -0.5 if scale is None else float(scale)
    arguments = query, key, value, mask, is_causal, factor, softcap, out, lse
    AGAIN.launch(attention_partials_, arguments, tensors, is_causal, scale, softcap)
    return out, lse


def part_size(length: int, parts: int) -> int:
    """Keys in each of `parts` ranges but the last ones: a multiple of 16, at least 16."""
    return max(16, -(-length // (16 * parts)) * 16)


def merge_partials(out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [B, H, S, E] float32 over all keys, with its lse, from the parts of them.

    With P = 1 what was given, as it was given.
    """
    if out.shape[0] == 1:
        return out[0], lse[0]
    total = torch.logsumexp(lse, 0)
    # Where no part saw a key, -inf less -inf would be NaN: subtracting 0 gives shares of 0.
    shares = torch.exp(lse - total.masked_fill(total == NEG_INF, 0.0))
    return (shares.unsqueeze(-1) * wide(out)).sum(0), total


def attention_partials_plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> None:
    """The specification of `attention_partials`, of arguments that were checked already."""
    mask, is_causal, scale, softcap, out, lse = rest
    steps, length = query.shape[2], key.shape[2]
    if is_causal and steps > 1:
        mask = with_causal(mask, steps, length, query.device)
    size = part_size(length, len(out))
    for part in range(len(out)):
        seen = slice(part * size, (part + 1) * size)
        keys, values = key[:, :, seen], value[:, :, seen]
        own = mask
        # A mask that is broadcast over the keys has nothing to be cut.
        if mask is not None and mask.dim() and mask.shape[-1] == length:
            own = mask[..., seen]
        if keys.shape[2] == 0:
            own = None
        found = attend(query, keys, values, own, False, scale, softcap)
        out[part], lse[part] = found


attention_partials_ = register(
    "attention_partials(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, "
    "float scale, float? softcap, Tensor(a!) out, Tensor(b!) lse) -> ()",
    attention_partials_plain,
    "attention:attention_partials",
    "cmr.reweave",
)
