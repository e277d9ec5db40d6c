"""Finding blocks by late interaction, and choosing passages of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cmr.kernels._ops import register
from cmr.kernels.reference import maxsim as reference
from cmr.kernels.reference import select as selecting
from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.select import Columns, Rule, Selection

MAX_K = 64
"""Passages that `maxsim_select` chooses at most."""
MAX_NEIGHBOURS = 8
_SPLIT, _SPLITS = 256, 64
_STATISTICS = 6


class Scratch(NamedTuple):
    """Room for `maxsim_select` to work in; what it held or holds means nothing.

    Attributes:
        statistics: [B, splits, 6, Q] float32, of each query token's maxima, part by part.
        lines: [B, 4, N] float32, of each block: similarity, visibility, score, likeness.
    """

    statistics: torch.Tensor
    lines: torch.Tensor


def _block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    session: torch.Tensor | None,
    sessions: torch.Tensor | None,
    slots: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    out.copy_(reference.block_maxima(query, index, token_mask, scale, session, sessions, slots))


block_maxima_ = register(
    "block_maxima(Tensor query, Tensor index, Tensor? token_mask, Tensor? scale, Tensor? session, "
    "Tensor? sessions, Tensor? slots, Tensor(a!) out) -> ()",
    _block_maxima,
    "maxsim:block_maxima",
    "cmr.retrieve",
)


def block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    session: torch.Tensor | None = None,
    sessions: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cosine of each query token with the best token of each block. One launch.

    Args:
        query: [B, Q, H], norm 1 per token, in the index's dtype; float16 or float32 for codes.
        index: [N, block, H], norm 1 per token, features side by side; N may be 0. int8 or
            float8_e4m3fn: codes, to be multiplied by `scale`.
        token_mask: [N, block] bool, True = a stored token, or int64 positions, at least 0 = a
            stored token; None: all.
        scale: [N, block] float32, multiplies the similarities of each token; needed for codes.
        session: [N] int64, session of each block; None: no row is limited to one.
        sessions: [B] int64, session of each row; given with `session`. The blocks of others are
            -inf for the row, and their part of the index is hardly read.
        slots: [B, C] int64, the only blocks that a row looks at (an exact second look at what a
            coarse index found), -1 for none; None: all N in their order.
        out: [B, Q, N or C] float32, any strides, to write into; None: a new one.

    Returns:
        `out`; -inf for a block without a stored token. A similarity that is NaN makes its block
        NaN, unless its token is masked.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Source: Khattab and Zaharia, ColBERT (2020), section 3.3, before the sum over query tokens.

    Equivalent PyTorch: `torch.einsum("bqh,nth->bqnt", query, index).amax(-1)`.
    """
    reference.check_block_maxima(query, index, token_mask, scale, session, sessions, slots)
    if index.stride(-1) != 1 and index.shape[-1] > 1:
        raise ValueError(f"index: features side by side expected, got stride {index.stride(-1)}")
    batch, tokens, _ = query.shape
    found = index.shape[0] if slots is None else slots.shape[1]
    if out is None:
        out = query.new_empty(batch, tokens, found, dtype=torch.float32)
    else:
        expect_shape("out", out, ("B", batch), ("Q", tokens), ("N", found))
        expect_same_dtype("out", out, torch.float32)
    block_maxima_(query, index, token_mask, scale, session, sessions, slots, out)
    return out


def rerank_blocks(
    query: torch.Tensor,
    index: torch.Tensor,
    slots: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact maxima of candidate blocks that an index of codes found: `block_maxima` with slots.

    Args:
        query: [B, Q, H], in the index's dtype.
        index: [N, block, H], full precision.
        slots: [B, C] int64, -1 for none.
        token_mask: as for `block_maxima`.
        out: [B, Q, C] float32 to write into.

    Returns:
        [B, Q, C] float32, -inf where there is no candidate.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `block_maxima(query, index, token_mask)[..., slots]` for one row.
    """
    return block_maxima(query, index, token_mask, slots=slots, out=out)


def _maxsim_select(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    session: torch.Tensor,
    positions: torch.Tensor,
    successor: torch.Tensor,
    predecessor: torch.Tensor,
    relevance: torch.Tensor,
    created: torch.Tensor,
    cursor: torch.Tensor,
    sessions: torch.Tensor,
    before: torch.Tensor | None,
    criteria: Sequence[float],
    half_life: float,
    peak_power: int,
    clamp: float,
    ratio: float,
    threshold: float,
    null_base: float,
    null_slope: float,
    few_blocks: int,
    few_certainty: float,
    passage: int,
    neighbours: int,
    statistics: torch.Tensor,
    lines: torch.Tensor,
    *out: torch.Tensor,
) -> None:
    columns = Columns(session, positions, successor, predecessor, relevance, created, cursor)
    a, b, c, d = criteria
    rule = Rule(
        (a, b, c, d), half_life, peak_power, clamp, ratio, threshold, null_base, null_slope,
        few_blocks, few_certainty, passage, neighbours,
    )  # fmt: skip
    k = out[0].shape[1]
    chosen = selecting.maxsim_select(maxima, query_mask, columns, sessions, before, rule, k)
    for tensor, value in zip(out, chosen, strict=True):
        tensor.copy_(value)


maxsim_select_ = register(
    "maxsim_select(Tensor maxima, Tensor? query_mask, Tensor session, Tensor positions, "
    "Tensor successor, Tensor predecessor, Tensor relevance, Tensor created, Tensor cursor, "
    "Tensor sessions, Tensor? before, float[] criteria, float half_life, int peak_power, "
    "float clamp, float ratio, float threshold, float null_base, float null_slope, "
    "int few_blocks, float few_certainty, int passage, int neighbours, Tensor(a!) statistics, "
    "Tensor(b!) lines, Tensor(c!) scores, Tensor(d!) starts, Tensor(e!) certainty, "
    "Tensor(f!) table, Tensor(g!) stamps) -> ()",
    _maxsim_select,
    "select:maxsim_select",
    "cmr.retrieve",
)


def new_selection(like: torch.Tensor, batch: int, k: int, run: int) -> Selection:
    """Uninitialised tensors for the result of `maxsim_select`, on the device of `like`."""
    integer, real = torch.int64, torch.float32
    return Selection(
        like.new_empty(batch, k, dtype=real),
        like.new_empty(batch, k, dtype=integer),
        like.new_empty(batch, dtype=real),
        like.new_empty(batch, k, run, dtype=integer),
        like.new_empty(batch, k, run, dtype=integer),
    )


def new_scratch(like: torch.Tensor, batch: int, tokens: int, blocks: int) -> Scratch:
    """Uninitialised room for `maxsim_select`, on the device of `like`."""
    splits = max(1, min(_SPLITS, -(-blocks // _SPLIT)))
    return Scratch(
        like.new_empty(batch, splits, _STATISTICS, tokens, dtype=torch.float32),
        like.new_empty(batch, 4, blocks, dtype=torch.float32),
    )


def maxsim_select(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    columns: Columns,
    sessions: torch.Tensor,
    before: torch.Tensor | None,
    rule: Rule,
    k: int,
    out: Selection | None = None,
    scratch: Scratch | None = None,
) -> Selection:
    """Choose passages from block maxima: everything up to the block table.

    Three launches, four with diversity.

    Each query token's maxima are standardised over the row's visible blocks (its own session's,
    before `before`), a passage takes the larger value of its two blocks, and its similarity is the
    mean over the query's tokens, each weighted by a power of its best value. Candidates are the
    local maxima of the similarity along the text. Their score is

        criteria[0] * similarity + criteria[1] * relevance + criteria[2] * recency
        + criteria[3] * diversity

    with recency = 2 ** (-age / half_life), age in blocks written since, and diversity, given the
    candidates chosen before, 1 less the largest cosine with one of their profiles; the profile of a
    passage is sqrt(share of the token) * max(0, z) over the query's tokens, and the cosine with a
    profile that is all 0 is 0. With criteria[3] = 0 it is a plain top-k, else k greedy rounds.

    Args:
        maxima: [B, Q, N] float32 from `block_maxima`, any strides.
        query_mask: [B, Q] bool, False for padding; None for none.
        columns: of the stored blocks: `session` [N], `positions` [N, block], `successor` [N],
            `predecessor` [N] (slots below N, or -1), `relevance` [N] float32, `created` [N],
            `cursor` [1], the number of blocks ever written; int64 but for `relevance`.
        sessions: [B] int64.
        before: [B] int64: blocks whose largest position is not below are left out; None: none is.
        rule: `criteria`, four numbers; `half_life` in blocks, above 0; `peak_power` 0 to 2;
            `clamp`, limit of standardised values; `ratio`, a passage is kept whose score is at
            least so much of the best one's; `threshold`, least certainty; `null_base` and
            `null_slope`, the best similarity is null_base + null_slope * ln(blocks) when nothing
            fits; `few_blocks`, below so many visible ones the certainty is `few_certainty`;
            `passage`, blocks in one, 1 or 2; `neighbours`, blocks read beside it, 0 to 8.
        k: passages chosen at most, 1 to 64.
        out: tensors to write into, see `new_selection`; None: new ones.
        scratch: see `new_scratch`; None: new.

    Returns:
        A `Selection`. Ties: the lowest slot wins. Rows whose weights are all 0 find nothing.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or a number is out of its range.

    Source: ColBERT (2020) for the similarity; Carbonell and Goldstein, MMR (1998) for diversity.

    Equivalent PyTorch: `cmr.kernels.reference.select.maxsim_select`.
    """
    _check_select(maxima, query_mask, columns, sessions, before, rule, k)
    batch, tokens, blocks = maxima.shape
    run = rule.passage + 2 * rule.neighbours
    if out is None:
        out = new_selection(maxima, batch, k, run)
    else:
        expect_shape("out.scores", out.scores, ("B", batch), ("k", k))
        expect_shape("out.table", out.table, ("B", batch), ("k", k), ("run", run))
        if not all(tensor.is_contiguous() for tensor in out):
            raise ValueError("out: contiguous tensors expected")
    if scratch is None:
        scratch = new_scratch(maxima, batch, tokens, blocks)
    else:
        splits = scratch.statistics.shape[1]
        shape = (("B", batch), ("splits", splits), ("6", _STATISTICS), ("Q", tokens))
        expect_shape("scratch.statistics", scratch.statistics, *shape)
        expect_shape("scratch.lines", scratch.lines, ("B", batch), ("4", 4), ("N", blocks))
        if not all(tensor.is_contiguous() for tensor in scratch):
            raise ValueError("scratch: contiguous tensors expected")
    maxsim_select_(
        maxima, query_mask, *columns, sessions, before, list(rule.criteria), *rule[1:],
        *scratch, *out,
    )  # fmt: skip
    return out


def _check_select(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    columns: Columns,
    sessions: torch.Tensor,
    before: torch.Tensor | None,
    rule: Rule,
    k: int,
) -> None:
    expect_shape("maxima", maxima, ("B", None), ("Q", None), ("N", None))
    expect_same_dtype("maxima", maxima, torch.float32)
    batch, tokens, blocks = maxima.shape
    if query_mask is not None:
        expect_shape("query_mask", query_mask, ("B", batch), ("Q", tokens))
        expect_bool("query_mask", query_mask)
    for name, column in zip(columns._fields, columns, strict=True):
        if name == "positions":
            expect_shape(name, column, ("N", blocks), ("block", None))
        else:
            expect_shape(name, column, ("N", 1 if name == "cursor" else blocks))
        wanted = torch.float32 if name == "relevance" else torch.int64
        expect_same_dtype(name, column, wanted)
    for name, row in (("sessions", sessions), ("before", before)):
        if row is not None:
            expect_shape(name, row, ("B", batch))
            expect_same_dtype(name, row, torch.int64)
    if len(rule.criteria) != 4:
        raise ValueError(f"criteria: 4 numbers expected, got {len(rule.criteria)}")
    if not (rule.half_life > 0 and rule.clamp > 0):
        raise ValueError(f"half_life, clamp: above 0 expected, got {rule.half_life}, {rule.clamp}")
    for name, value, low, high in (
        ("k", k, 1, MAX_K),
        ("passage", rule.passage, 1, 2),
        ("peak_power", rule.peak_power, 0, 2),
        ("neighbours", rule.neighbours, 0, MAX_NEIGHBOURS),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: {low} to {high} expected, got {value}")
