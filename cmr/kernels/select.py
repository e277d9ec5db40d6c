"""Choosing passages from kept block maxima, down to the blocks that a layer reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import (
    Rule,
    SearchColumns,
    Selection,
    at_peaks,
    choose,
    topk_lowest_slot,
)

MAX_K = 64
"""Passages that `maxsim_select` chooses at most."""
MAX_NEIGHBOURS = 8
_SPLIT, _SPLITS = 256, 64
_STATISTICS, _LINES = 6, 2


class Scratch(NamedTuple):
    """Room for `maxsim_select` to work in; what it held or holds means nothing.

    Attributes:
        statistics: [B, splits, 6, Q] float32, of each query token's maxima, part by part.
        lines: [B, 2, N] float32, of each block: similarity and visibility.
    """

    statistics: torch.Tensor
    lines: torch.Tensor


def new_selection(like: torch.Tensor, k: int, run: int) -> Selection:
    """Uninitialised tensors for what `maxsim_select` finds by maxima [B, Q, N] `like` these."""
    batch, tokens = like.shape[:2]
    scores = like.new_empty(batch, k, dtype=torch.float32)
    table = like.new_empty(batch, k, run, dtype=torch.int64)
    starts = torch.empty_like(scores, dtype=torch.int64)
    certainty = like.new_empty(batch, dtype=torch.float32)
    values, shares = scores.new_empty(batch, tokens, k), scores.new_empty(batch, tokens)
    return Selection(scores, starts, certainty, table, torch.empty_like(table), values, shares)


def new_scratch(like: torch.Tensor, batch: int, tokens: int, blocks: int) -> Scratch:
    """Room for `maxsim_select`, on the device of `like`."""
    # A part for every 256 blocks, and no more parts than one program can put together at once.
    splits = max(1, min(_SPLITS, -(-blocks // _SPLIT)))
    # Kept as long as a text goes on, and only in part written: what it does not write would go on
    # holding what was freed where it is made, something that was forgotten since among it.
    return Scratch(
        like.new_zeros(batch, splits, _STATISTICS, tokens, dtype=torch.float32),
        like.new_zeros(batch, _LINES, blocks, dtype=torch.float32),
    )


def maxsim_select(
    maxima: torch.Tensor,
    query_mask: torch.Tensor | None,
    columns: SearchColumns,
    sessions: torch.Tensor,
    before: torch.Tensor | None,
    rule: Rule,
    k: int,
    out: Selection | None = None,
    scratch: Scratch | None = None,
) -> Selection:
    """Choose passages from block maxima: everything up to the block table. Four launches.

    Each query token's maxima are standardised over the row's visible blocks (its own session's,
    before `before`), a passage takes the larger value of its two blocks, and its similarity is the
    mean over the query's tokens, each weighted by a power of its best value. Candidates are the
    local maxima of the similarity along the text that are at least 0; the best k are chosen.

    Args:
        maxima: [B, Q, N] float32 from `block_maxima`, any strides.
        query_mask: [B, Q] bool, False for padding; None for none.
        columns: of the stored blocks.
        sessions: [B] int64.
        before: [B] int64: blocks whose largest position is not below are left out; None: none is.
        rule: the numbers of the search.
        k: passages chosen at most, 1 to 64.
        out: tensors to write into, see `new_selection`; None: new ones.
        scratch: see `new_scratch`; None: new.

    Returns:
        A `Selection`. Ties: the lowest slot wins. Rows whose weights are all 0 find nothing.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or a number is out of its range.

    Source: Khattab and Zaharia, ColBERT (2020), for the similarity.

    Equivalent PyTorch: `cmr.kernels.reference.select.choose`.
    """
    run = rule.passage + 2 * rule.neighbours
    wanted: list[tuple[Any, ...]] = [
        ("maxima", maxima, "B Q N", torch.float32),
        ("query_mask", query_mask, "B Q", torch.bool),
        ("session", columns.session, "N", torch.int64),
        ("positions", columns.positions, "N block", torch.int64),
        ("successor", columns.successor, "N", torch.int64),
        ("predecessor", columns.predecessor, "N", torch.int64),
        ("created", columns.created, "N", torch.int64),
        ("sessions", sessions, "B", torch.int64),
        ("before", before, "B", torch.int64),
    ]
    if out is not None:
        wanted += [
            ("out.scores", out.scores, "B k", torch.float32, CONTIGUOUS),
            ("out.starts", out.starts, "B k", torch.int64, CONTIGUOUS),
            ("out.certainty", out.certainty, "B", torch.float32, CONTIGUOUS),
            ("out.table", out.table, "B k run", torch.int64, CONTIGUOUS),
            ("out.stamps", out.stamps, "B k run", torch.int64, CONTIGUOUS),
            ("out.values", out.values, "B Q k", torch.float32, CONTIGUOUS),
            ("out.shares", out.shares, "B Q", torch.float32, CONTIGUOUS),
        ]
    if scratch is not None:
        wanted += [
            ("scratch.statistics", scratch.statistics, "B splits six Q", torch.float32, CONTIGUOUS),
            ("scratch.lines", scratch.lines, "B two N", torch.float32, CONTIGUOUS),
        ]
    sizes = expect(*wanted, k=k, run=run, six=_STATISTICS, two=_LINES)
    _expect_numbers(rule, k)
    if runs_plain(maxima):
        found = choose(maxima, query_mask, columns, sessions, before, rule, k)
        if out is None:
            return found
        _copy(found, out)
        return out
    # While decoding both are given, so that a search allocates nothing.
    out = new_selection(maxima, k, run) if out is None else out
    scratch = scratch or new_scratch(maxima, sizes["B"], sizes["Q"], sizes["N"])
    maxsim_select_(maxima, query_mask, *columns, sessions, before, *rule, *scratch, *out)
    return out


def maxsim_select_plain(maxima: torch.Tensor, query_mask: torch.Tensor | None, *rest: Any) -> None:
    """`choose`, of arguments as the registered operation has them."""
    columns, (sessions, before), rule = SearchColumns(*rest[:5]), rest[5:7], Rule(*rest[7:16])
    # Between the rule and the result stands the kernels' scratch, which is not needed here.
    out = Selection(*rest[18:])
    found = choose(maxima, query_mask, columns, sessions, before, rule, out.scores.shape[1])
    _copy(found, out)


def _copy(found: Selection, out: Selection) -> None:
    for tensor, value in zip(out, found, strict=True):
        tensor.copy_(value)


def _expect_numbers(rule: Rule, k: int) -> None:
    if not rule.clamp > 0:
        raise ValueError(f"clamp: above 0 expected, got {rule.clamp}")
    for name, value, low, high in (
        ("k", k, 1, MAX_K),
        ("passage", rule.passage, 1, 2),
        ("peak_power", rule.peak_power, 0, 2),
        ("neighbours", rule.neighbours, 0, MAX_NEIGHBOURS),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: {low} to {high} expected, got {value}")


maxsim_select_ = register(
    "maxsim_select(Tensor maxima, Tensor? query_mask, Tensor session, Tensor positions, "
    "Tensor successor, Tensor predecessor, Tensor created, Tensor sessions, Tensor? before, "
    "int peak_power, float clamp, float threshold, float null_base, float null_slope, "
    "int few_blocks, float few_certainty, int passage, int neighbours, Tensor(a!) statistics, "
    "Tensor(b!) lines, Tensor(c!) scores, Tensor(d!) starts, Tensor(e!) certainty, "
    "Tensor(f!) table, Tensor(g!) stamps, Tensor(h!) values, Tensor(i!) shares) -> ()",
    maxsim_select_plain,
    "select:maxsim_select",
    "cmr.retrieve",
)


# -- by scores that somebody else gave -------------------------------------------------------------


def best_passages(
    line: torch.Tensor,
    base: torch.Tensor | None,
    seen: torch.Tensor,
    certainty: torch.Tensor,
    columns: SearchColumns,
    k: int,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best passages among the local maxima of a line along the text. One launch.

    What fits less than usual, below 0 by the line, is left out. Where passages are ranked by
    something else, the first one is wanted however well it fits.

    Args:
        line: [B, N] float32, -inf where there is nothing to find.
        base: [B, N] float32, what passages are ranked by; None: the line.
        seen: [B, N] bool, the blocks that a row may see; the others are as -inf.
        certainty: [B] float32 of the rows.
        columns: of the stored blocks.
        k: passages at most, 1 to 64.
        threshold: least certainty of a row that finds anything.

    Returns:
        scores [B, k] float32 in falling order and starts [B, k] int64; -inf and -1 where there is
        none. Ties: the lowest slot wins.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or k is out of its range.

    Equivalent PyTorch: `topk_lowest_slot(at_peaks(line, base, columns), k)`, without what is left
    out.
    """
    sizes = expect(
        ("line", line, "B N", torch.float32),
        ("base", base, "B N", torch.float32),
        ("seen", seen, "B N", torch.bool),
        ("certainty", certainty, "B", torch.float32),
        ("successor", columns.successor, "N", torch.int64),
        ("predecessor", columns.predecessor, "N", torch.int64),
    )
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k: 1 to {MAX_K} expected, got {k}")
    if runs_plain(line, base):
        return fitting(line, base, seen, certainty, columns, k, threshold)
    scores = line.new_empty(sizes["B"], k)
    starts = torch.empty_like(scores, dtype=torch.int64)
    best_passages_(line, base, seen, certainty, *columns, threshold, scores, starts)
    return scores, starts


def fitting(
    line: torch.Tensor,
    base: torch.Tensor | None,
    seen: torch.Tensor,
    certainty: torch.Tensor,
    columns: SearchColumns,
    k: int,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `best_passages`, of arguments that were checked already."""
    line = line.masked_fill(~seen, NEG_INF)
    ranked = line if base is None else base.masked_fill(~seen, NEG_INF)
    scores, starts = topk_lowest_slot(at_peaks(line, ranked, columns), k)
    return floored(scores, starts, None if base is None else line, certainty, threshold)


def floored(
    scores: torch.Tensor,
    starts: torch.Tensor,
    line: torch.Tensor | None,
    certainty: torch.Tensor,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The floor of a search: -inf and -1 for passages below it, and in rows that are not sure.

    Of `scores` and `starts` [B, k], best first, as `best_passages` gives them. `line` [B, N]: how
    well passages fit, where they are ranked by something else; None: as their scores are.
    """
    keep = scores >= 0
    if line is not None:
        if line.shape[1]:
            keep = line.gather(1, starts.clamp(min=0)) >= 0
        # Of a ranking its first one is wanted, however unlike to what is asked.
        keep[:, 0] = True
    drop = ~(keep & (certainty >= threshold)[:, None] & (starts >= 0))
    return scores.masked_fill(drop, NEG_INF), starts.masked_fill(drop, -1)


def best_passages_plain(
    line: torch.Tensor,
    base: torch.Tensor | None,
    seen: torch.Tensor,
    certainty: torch.Tensor,
    *rest: Any,
) -> None:
    """`fitting`, of arguments as the registered operation has them."""
    columns, (threshold, scores, starts) = SearchColumns(*rest[:5]), rest[5:]
    found = fitting(line, base, seen, certainty, columns, scores.shape[1], threshold)
    for out, value in zip((scores, starts), found, strict=True):
        out.copy_(value)


best_passages_ = register(
    "best_passages(Tensor line, Tensor? base, Tensor seen, Tensor certainty, Tensor session, "
    "Tensor positions, Tensor successor, Tensor predecessor, Tensor created, float threshold, "
    "Tensor(a!) scores, Tensor(b!) starts) -> ()",
    best_passages_plain,
    "select:best_passages",
    "cmr.retrieve",
)
