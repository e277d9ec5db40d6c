"""The k stored entries that are nearest to a query by cosine."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.maxsim import CODES
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import topk_lowest_slot

ROUND = 64
"""Entries that one pass over the store finds at most; more take further passes."""
CHUNK_BYTES = 64 << 20
"""Most bytes of similarities, or of codes made floats, at once."""
_FEW, _MANY, _PROGRAMS = 512, 2048, 128


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

    Returns:
        scores [B, k] float32 in falling order and slots [B, k] int64; -inf and -1 where fewer
        qualify. Ties: the lowest slot wins. NaN never wins.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is below 1.

    Products accumulate in float32.

    Equivalent PyTorch:
        `torch.topk(F.normalize(query) @ F.normalize(entries).mT, k)`, ties aside.
    """
    codes = entries.dtype in CODES
    scores, slots = (None, None) if out is None else out
    sizes = expect(
        ("query", query, "B H", FLOAT),
        ("entries", entries, "N H", None if codes else FLOAT),
        ("inverse_norm", inverse_norm, "N", None),
        ("visible", visible, "B N", torch.bool),
        ("scale", scale, "N", torch.float32),
        ("scores", scores, "B k", torch.float32, CONTIGUOUS),
        ("slots", slots, "B k", torch.int64, CONTIGUOUS),
        k=k,
    )
    if k < 1:
        raise ValueError(f"k: an integer of at least 1 expected, got {k}")
    if codes and scale is None:
        raise ValueError(f"scale: [N={sizes['N']}] expected for codes, got None")
    if out is None and runs_plain(query, entries):
        return find(query, entries, inverse_norm, visible, k, threshold, scale)
    if out is None:
        scores = query.new_empty(sizes["B"], k, dtype=torch.float32)
        out = scores, query.new_empty(sizes["B"], k, dtype=torch.int64)
    partial = new_partial(query, sizes["B"], sizes["N"], k)
    cosine_topk_(query, entries, inverse_norm, visible, threshold, scale, partial, *out)
    return out


def find(
    query: torch.Tensor,
    entries: torch.Tensor,
    inverse_norm: torch.Tensor | None,
    visible: torch.Tensor | None,
    k: int,
    threshold: float | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `cosine_topk`, of arguments that were checked already.

    Products accumulate in float32, over chunks of entries that keep temporaries near 64 MB.
    """
    batch, count = query.shape[0], entries.shape[0]
    codes = entries.dtype in CODES
    unit = unit_query(query, entries.dtype)
    unit = unit.float() if codes else unit
    # Norms are divided out of the products: dividing the entries would copy all of them.
    factor = None if inverse_norm is None else inverse_norm.float()
    if scale is not None:
        factor = scale if factor is None else scale * factor
    scores = torch.empty((batch, count), dtype=torch.float32, device=query.device)
    per_entry = max(batch, codes * entries.shape[1]) * unit.element_size()
    chunk = max(1, CHUNK_BYTES // max(1, per_entry))
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        piece = entries[part].float() if codes else entries[part]
        if unit.dtype == torch.float32 and batch == 1:
            # A vector times a matrix, and results written where they belong: both read the entries
            # once and nothing else, and the time is that of the reading.
            torch.mv(piece, unit[0], out=scores[0, part])
        elif unit.dtype == torch.float32:
            torch.mm(unit, piece.t(), out=scores[:, part])
        else:
            scores[:, part] = unit @ piece.t()
        if factor is not None:
            scores[:, part] *= factor[part]
    if visible is not None:
        scores.masked_fill_(~visible, NEG_INF)
    if threshold is not None:
        scores.masked_fill_(scores < threshold, NEG_INF)
    return topk_lowest_slot(scores, k, many_ties=unit.dtype != torch.float32)


def unit_query(query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Queries scaled to norm 1 in float32, in the dtype that they are multiplied in."""
    return F.normalize(query.float(), dim=-1).to(torch.float16 if dtype in CODES else dtype)


def cosine_topk_plain(query: torch.Tensor, entries: torch.Tensor, *rest: Any) -> None:
    """`find`, of arguments as the registered operation has them."""
    inverse_norm, visible, threshold, scale, _, scores, slots = rest
    found = find(query, entries, inverse_norm, visible, scores.shape[1], threshold, scale)
    scores.copy_(found[0])
    slots.copy_(found[1])


cosine_topk_ = register(
    "cosine_topk(Tensor query, Tensor entries, Tensor? inverse_norm, Tensor? visible, "
    "float? threshold, Tensor? scale, Tensor(a!) partial, Tensor(b!) scores, Tensor(c!) slots) "
    "-> ()",
    cosine_topk_plain,
    "cosine_topk:cosine_topk",
    "cmr.retrieve",
)
