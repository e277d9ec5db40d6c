"""The k stored entries that are nearest to a query by cosine."""

from __future__ import annotations

import torch

from cmr.kernels._ops import register, runs_plain
from cmr.kernels.reference import cosine_topk as reference
from cmr.kernels.reference._shapes import expect_same_dtype, expect_shape

ROUND = 64
"""Entries that one pass over the store finds at most; more take further passes."""
_FEW, _MANY, _PROGRAMS = 512, 2048, 128


def _cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    threshold: float | None,
    scale: torch.Tensor | None,
    partial: torch.Tensor,
    scores: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    k = scores.shape[1]
    found = reference.cosine_topk(query, entries, inverse_norm, visible, k, threshold, scale)
    scores.copy_(found[0])
    slots.copy_(found[1])


cosine_topk_ = register(
    "cosine_topk(Tensor query, Tensor entries, Tensor? inverse_norm, Tensor? visible, "
    "float? threshold, Tensor? scale, Tensor(a!) partial, Tensor(b!) scores, Tensor(c!) slots) "
    "-> ()",
    _cosine_topk,
    "cosine_topk:cosine_topk",
    "cmr.retrieve",
)


def new_partial(like: torch.Tensor, batch: int, entries: int, k: int) -> torch.Tensor:
    """Uninitialised room for `cosine_topk`, [B, splits, K] int64, on the device of `like`.

    A program of the kernel looks at 2,048 entries or more where that fills a GPU, at 512 or more
    otherwise.
    """
    splits = min(-(-entries // _FEW), max(-(-entries // _MANY), _PROGRAMS))
    width = 1 << (min(k, ROUND) - 1).bit_length()
    return like.new_empty(batch, max(1, splits), width, dtype=torch.int64)


def cosine_topk(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    k: int,
    threshold: float | None = None,
    scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    partial: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k visible entries with the highest cosine to each query.

    Two launches for every 64 entries that are wanted.

    Args:
        query: [B, H], any float dtype and norm; scaled to norm 1 in float32, then cast to the
            entries' dtype (float16 for codes). A query that is all 0 has cosine 0 with everything.
        entries: [N, H], any float dtype, features side by side; N may be 0. int8 or float8_e4m3fn:
            codes, to be multiplied by `scale`.
        inverse_norm: [N] float32, 1 / norm of each entry (dequantised); None: they have norm 1.
        visible: [B, N] bool: the entries that a row may see; None: all.
        k: at least 1; may exceed N.
        threshold: least cosine that is returned; None: any.
        scale: [N] float32, needed for codes: entry i is entries[i] * scale[i].
        out: scores [B, k] float32 and slots [B, k] int64 to write into, contiguous; None: new ones.
        partial: room to work in, see `new_partial`; None: new.

    Returns:
        scores [B, k] float32 in falling order and slots [B, k] int64; -inf and -1 where fewer
        qualify. Ties: the lowest slot wins. NaN never wins.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is below 1.

    Products accumulate in float32.

    Equivalent PyTorch:
        `torch.topk(F.normalize(query) @ F.normalize(entries).mT, k)`, ties aside.
    """
    if out is None and partial is None and runs_plain(query):
        return reference.cosine_topk(query, entries, inverse_norm, visible, k, threshold, scale)
    reference.check_cosine_topk(query, entries, inverse_norm, visible, k, scale)
    scores, slots = _outputs(query, k, out)
    if partial is None:
        partial = new_partial(query, query.shape[0], entries.shape[0], k)
    else:
        width = 1 << (min(k, ROUND) - 1).bit_length()
        expect_shape("partial", partial, ("B", query.shape[0]), ("splits", None), ("K", width))
        expect_same_dtype("partial", partial, torch.int64)
    cosine_topk_(query, entries, inverse_norm, visible, threshold, scale, partial, scores, slots)
    return scores, slots


def _cosine_rerank(
    query: torch.Tensor,
    entries: torch.Tensor,
    candidates: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    scores: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    found = reference.cosine_rerank(query, entries, candidates, scores.shape[1], inverse_norm)
    scores.copy_(found[0])
    slots.copy_(found[1])


cosine_rerank_ = register(
    "cosine_rerank(Tensor query, Tensor entries, Tensor candidates, Tensor? inverse_norm, "
    "Tensor(a!) scores, Tensor(b!) slots) -> ()",
    _cosine_rerank,
    "cosine_topk:cosine_rerank",
    "cmr.retrieve",
)


def cosine_rerank(
    query: torch.Tensor,
    entries: torch.Tensor,
    candidates: torch.Tensor,
    k: int,
    inverse_norm: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each query's candidates, by the exact cosine: a second look after codes.

    Args:
        query: [B, H], as for `cosine_topk`.
        entries: [N, H], any float dtype, features side by side.
        candidates: [B, C] int64 slots, -1 for none; no slot twice in a row.
        k: 1 to 64.
        inverse_norm: [N] float32; None: the entries have norm 1.
        out: as for `cosine_topk`.

    Returns:
        scores [B, k] float32 and slots [B, k] int64, as `cosine_topk`. One launch.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is not in its range.

    Equivalent PyTorch: `(entries[candidates] @ F.normalize(query)[..., None]).squeeze(-1).topk(k)`.
    """
    reference.check_cosine_rerank(query, entries, candidates, k, inverse_norm)
    if k > ROUND:
        raise ValueError(f"k: 1 to {ROUND} expected, got {k}")
    scores, slots = _outputs(query, k, out)
    cosine_rerank_(query, entries, candidates, inverse_norm, scores, slots)
    return scores, slots


def _outputs(
    query: torch.Tensor, k: int, out: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = query.shape[0]
    if out is None:
        scores = query.new_empty(batch, k, dtype=torch.float32)
        return scores, query.new_empty(batch, k, dtype=torch.int64)
    for name, tensor, dtype in (("scores", out[0], torch.float32), ("slots", out[1], torch.int64)):
        expect_shape(name, tensor, ("B", batch), ("k", k))
        expect_same_dtype(name, tensor, dtype)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: a contiguous tensor expected, got {tensor.stride()}")
    return out
