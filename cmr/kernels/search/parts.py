"""Scores of passages for what is asked in parts, by their states, their words and what is around.

Source: Khattab and Zaharia (2020), ColBERT, for the similarity of a part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference._own_blocks import seen_first
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.standardise import standardised
from cmr.kernels.words import Words


class Windows(NamedTuple):
    """Windows of W passages, of two blocks each, that begin at every stored block.

    Attributes:
        inside: [N, W] int64, slots of the window's passages, its own first; N for none.
        holders: [N, 2 W - 1] int64, slots where windows begin that a passage lies in; N for none.
        lined: [N] bool, whether a window counts: only those of short lines do.
        within: [N] bool, whether a passage lies in such a window.
    """

    inside: torch.Tensor
    holders: torch.Tensor
    lined: torch.Tensor
    within: torch.Tensor


class Numbers(NamedTuple):
    """The numbers of a search in parts.

    Attributes:
        peak_power: of a token's best value, by which it weighs in its part; 0 to 2.
        clamp: limit of deviations of words, above 0.
        words: what a passage says in words, beside 1 for its states.
        lined_words: the same where a passage lies in a window of lines, and of the window itself.
        context: how well the best window around a passage fits, beside 1 for itself.
        marked: factor of the parts with a question mark.
        null_base: the best score when nothing fits: base + blocks * ln(blocks) + parts * ln(parts).
        null_blocks: see `null_base`.
        null_parts: see `null_base`.
        few_blocks: below so many visible blocks the certainty is `few_certainty`.
        few_certainty: see `few_blocks`.
    """

    peak_power: int
    clamp: float
    words: float
    lined_words: float
    context: float
    marked: float
    null_base: float
    null_blocks: float
    null_parts: float
    few_blocks: int
    few_certainty: float


class PartScores(NamedTuple):
    """What the parts of a query say of every passage.

    Attributes:
        line: [B, N] float32, the best score that a part gives a passage, in standard deviations;
            -inf where a row does not see it, or no part asks.
        winner: [B, N] int64, the first part that gives it.
        shares: [B, P, Q] float32, the weight of each token in its part; they add up to 1, or 0.
        certainty: [B] float32, the best passage's own score over what is expected when nothing
            fits; 0 where there is none.
    """

    line: torch.Tensor
    winner: torch.Tensor
    shares: torch.Tensor
    certainty: torch.Tensor


def part_scores(
    z: torch.Tensor,
    seen: torch.Tensor,
    of: torch.Tensor,
    marked: torch.Tensor,
    words: Words,
    windows: Windows,
    numbers: Numbers,
) -> PartScores:
    """Each part is a query of its own; a passage has the best one's score. Five launches.

    Of a part: its tokens' values in the mean, weighted by a power of the token's best one and by
    how rare its word is, and its words; both as deviations over what the row sees, added up. The
    same of windows of short lines: a passage has the fit of the best one that it lies in beside its
    own. All of it once more as deviations, so that parts of any length are comparable.

    Args:
        z: [B, Q, N] float32, N above 0, of each token and passage, see `standardise`.
        seen: [B, N] bool, the blocks that a row may see.
        of: [B, Q] int64, the part that a token belongs to; -1: it does not ask.
        marked: [B, P] bool, whether a part has a question mark.
        words: of the query, [B, Q] and [B, P, N], see `words`.
        windows: of the stored blocks.
        numbers: of the search.

    Returns:
        A `PartScores`.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or a number is out of its range.

    Equivalent PyTorch: `part_scores_plain`.
    """
    sizes = expect(
        ("z", z, "B Q N", torch.float32),
        ("seen", seen, "B N", torch.bool),
        ("of", of, "B Q", torch.int64),
        ("marked", marked, "B P", torch.bool),
        ("rarity", words.rarity, "B Q", torch.float32),
        ("words", words.scores, "B P N", torch.float32),
        ("inside", windows.inside, "N W", torch.int64, CONTIGUOUS),
        ("holders", windows.holders, "N V", torch.int64, CONTIGUOUS),
        ("lined", windows.lined, "N", torch.bool),
        ("within", windows.within, "N", torch.bool),
    )
    if not sizes["N"]:
        raise ValueError("z: one block at least expected, got none")
    if not 0 <= numbers.peak_power <= 2:
        raise ValueError(f"peak_power: 0 to 2 expected, got {numbers.peak_power}")
    if not numbers.clamp > 0:
        raise ValueError(f"clamp: a number above 0 expected, got {numbers.clamp}")
    rows, tokens, blocks, parts = (sizes[name] for name in "BQNP")
    plain = runs_plain(z)
    room = () if plain else ((rows, tokens), (rows, parts), (rows, 3, parts, blocks))
    weights, totals, lines = [z.new_empty(shape) for shape in room] or [z.new_empty(0)] * 3
    out = PartScores(
        z.new_empty(rows, blocks),
        z.new_empty(rows, blocks, dtype=torch.int64),
        z.new_empty(rows, parts, tokens),
        z.new_empty(rows),
    )
    run: Any = part_scores_plain if plain else part_scores_
    run(z, seen, of, marked, *words, *windows, *numbers, weights, totals, lines, *out)
    return out


def part_scores_plain(*given: Any) -> None:
    """The specification of `part_scores`, of the operation's arguments, checked before."""
    (z, seen, of, marked), (rarity, words), windows = given[:4], given[4:6], Windows(*given[6:10])
    n, out = Numbers(*given[10:21]), PartScores(*given[24:])
    numbers = torch.arange(marked.shape[1], device=z.device)
    own = of[:, None] == numbers[:, None]
    count = seen.sum(-1)
    peaks = z.amax(-1)
    # Of a single block, or several that are the same, none stands out: they fit equally well.
    peaks = torch.where(peaks == 0, 1.0, peaks.clamp(min=0) ** n.peak_power)
    weighed = own * (peaks * (1.0 + rarity))[:, None]
    total = weighed.sum(-1, keepdim=True)
    torch.div(weighed, total.clamp(min=torch.finfo(total.dtype).tiny), out=out.shares)
    said = standardised(words, seen, None, n.clamp)
    weight = torch.where(windows.within, n.lined_words, n.words)
    near = standardised(torch.bmm(out.shares, z), seen, None, torch.inf) + weight * said
    wide = fits_around(windows, near, z, out.shares, words, seen, n.clamp, n.lined_words)
    asks = (total > 0) & seen[:, None]
    both = standardised(near + n.context * wide, seen, None, torch.inf)
    scores = both.masked_fill(~asks, NEG_INF)
    favour = torch.where(marked, n.marked, 1.0)[..., None]
    torch.max(scores * favour, 1, out=(out.line, out.winner))
    # How well the best one fits by itself: what lies around it is not certain to answer.
    alone = standardised(near, seen, None, torch.inf).masked_fill(~asks, NEG_INF)
    best = alone.gather(1, out.winner[:, None])[:, 0]
    best = best.gather(1, out.line.argmax(1, keepdim=True))[:, 0]
    # Among few blocks some block always stands out, which says nothing of how well it fits.
    many = count.clamp(min=n.few_blocks).log()
    asking = (total > 0).sum((1, 2)).clamp(min=1).log()
    null = n.null_base + n.null_blocks * many + n.null_parts * asking
    sure = torch.where(count < n.few_blocks, n.few_certainty, best / null)
    out.certainty.copy_(torch.where(best > NEG_INF, sure, 0.0))


def fits_around(
    windows: Windows,
    near: torch.Tensor,
    z: torch.Tensor,
    shares: torch.Tensor,
    words: torch.Tensor,
    seen: torch.Tensor,
    clamp: float,
    weight: float,
) -> torch.Tensor:
    """How well the best window fits that a passage lies in; its own fit where there is none.

    Args:
        windows: of the stored blocks.
        near: [B, P, N] float32, how well passages fit by themselves.
        z: [B, Q, N], how well they match each token that asks.
        shares: [B, P, Q], the weight of a token in its part.
        words: [B, P, N], at least 0, what passages say in the words of a part.
        seen: [B, N] bool.
        clamp: largest deviation of what is said in words.
        weight: of that, beside 1 for states.
    """
    said = standardised(_at(words, windows.inside, 0.0).sum(-1), seen, None, clamp)
    wide = _means_of_windows(z, shares, windows.inside, seen)
    fits = standardised(wide, seen, None, torch.inf) + weight * said
    fits = fits.masked_fill(~(seen & windows.lined)[:, None], NEG_INF)
    best = _at(fits, windows.holders, NEG_INF).amax(-1)
    return torch.where(best > NEG_INF, best, near)


def _means_of_windows(
    z: torch.Tensor, shares: torch.Tensor, inside: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Means [B, P, N] of each token's best value in the windows; 0 where a row need not look."""
    own = seen_first(seen)
    if own is None:
        return torch.bmm(shares, _at(z, inside, NEG_INF).amax(-1))
    # Scores of a row's own blocks alone count: of a batch among many users those are few.
    slots = inside[own]  # [B, n, W]
    there = (slots < z.shape[2])[:, None]
    at = slots.clamp(max=z.shape[2] - 1).flatten(1)[:, None].expand(-1, z.shape[1], -1)
    best = z.gather(2, at).unflatten(2, slots.shape[1:]).masked_fill_(~there, NEG_INF).amax(-1)
    means = torch.bmm(shares, best)
    at = own[:, None].expand(-1, means.shape[1], -1)
    return means.new_zeros(*means.shape[:2], z.shape[2]).scatter_(2, at, means)


def _at(values: torch.Tensor, slots: torch.Tensor, fill: float) -> torch.Tensor:
    """`values` [..., N] at slots [N, n]: [..., N, n], `fill` for none."""
    picked = F.pad(values, (0, 1), value=fill).index_select(-1, slots.flatten())
    return picked.unflatten(-1, slots.shape)


part_scores_ = register(
    "part_scores(Tensor z, Tensor seen, Tensor of, Tensor marked, Tensor rarity, Tensor words, "
    "Tensor inside, Tensor holders, Tensor lined, Tensor within, int peak_power, float clamp, "
    "float words_weight, float lined_words, float context, float mark, float null_base, "
    "float null_blocks, float null_parts, int few_blocks, float few_certainty, Tensor(a!) weights, "
    "Tensor(b!) totals, Tensor(c!) lines, Tensor(d!) line, Tensor(e!) winner, Tensor(f!) shares, "
    "Tensor(g!) certainty) -> ()",
    part_scores_plain,
    "search.parts:part_scores",
    "cmr.retrieve",
)
