"""Which of the best passages are read: the first, and those that add enough to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reference.select import SearchColumns, block_table, stamped


class Cover(NamedTuple):
    """The passages that are read of each row.

    Attributes:
        scores: [B, m] float32, -inf where there is none.
        starts: [B, m] int64, their first slots, -1 where there is none.
        table: [B, m, run] int64, see `Selection`.
        stamps: the same shape, see `Selection`.
    """

    scores: torch.Tensor
    starts: torch.Tensor
    table: torch.Tensor
    stamps: torch.Tensor


class Enough(NamedTuple):
    """When a further passage is read.

    Attributes:
        ratio: of the first one's fit, from which on a passage is taken whatever it adds.
        gain: of what the first one explains, which another has to add.
        passage: blocks in one, 1 or 2.
        neighbours: blocks read beside a passage, on each side, 0 to 8.
    """

    ratio: float
    gain: float
    passage: int
    neighbours: int


def cover(
    values: torch.Tensor,
    shares: torch.Tensor,
    scores: torch.Tensor,
    starts: torch.Tensor,
    fits: torch.Tensor,
    columns: SearchColumns,
    enough: Enough,
    most: int,
    winner: torch.Tensor | None = None,
    out: Cover | None = None,
) -> Cover:
    """The best passage and those that add enough to it, and the blocks to read. One launch.

    What passages explain together is the mean of each query token's best value among them, weighted
    by its share. A look-alike of the first passage matches the tokens that are matched already and
    adds little; a second fact that the question needs adds much. Those that fit nearly as well as
    the first are taken whatever they add: it is not certain enough that the first one, and not one
    of them, was meant. Passages are taken in the order in which they are given.

    Args:
        values: [B, Q, k] float32, how well each passage matches each query token.
        shares: [B, Q] float32, of each query token in a score.
        scores: [B, k] float32, best first.
        starts: [B, k] int64, first slot of each passage, -1 for none.
        fits: [B, k] float32, how well a passage fits; below 0 it fits less than usual.
        columns: of the stored blocks.
        enough: when another passage is read.
        most: passages that are taken at most, 1 to k.
        winner: [B, N] int64, the part that found each passage, see `part_scores`. Where it is
            given, values are those of all slots, [B, Q, N], and shares those of all parts,
            [B, P, Q]: the ones of the part that found the first passage count. None: as above.
        out: contiguous tensors to write into; None: new ones.

    Returns:
        A `Cover` of `most` passages.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or `most` is out of its range.

    Source: Carbonell and Goldstein (1998) for leaving out what says the same again.

    Equivalent PyTorch: `cover_plain`.
    """
    run = enough.passage + 2 * enough.neighbours
    wanted: list[tuple[Any, ...]] = [
        ("values", values, "B Q k" if winner is None else "B Q N", torch.float32),
        ("shares", shares, "B Q" if winner is None else "B P Q", torch.float32),
        ("winner", winner, "B N", torch.int64),
        ("scores", scores, "B k", torch.float32),
        ("starts", starts, "B k", torch.int64),
        ("fits", fits, "B k", torch.float32),
        ("successor", columns.successor, "N", torch.int64),
        ("predecessor", columns.predecessor, "N", torch.int64),
        ("created", columns.created, "N", torch.int64),
    ]
    if out is not None:
        wanted += [
            ("out.scores", out.scores, "B most", torch.float32, CONTIGUOUS),
            ("out.starts", out.starts, "B most", torch.int64, CONTIGUOUS),
            ("out.table", out.table, "B most run", torch.int64, CONTIGUOUS),
            ("out.stamps", out.stamps, "B most run", torch.int64, CONTIGUOUS),
        ]
    sizes = expect(*wanted, most=most, run=run)
    if not 1 <= most <= sizes["k"]:
        raise ValueError(f"most: 1 to k={sizes['k']} expected, got {most}")
    if out is None:
        batch = sizes["B"]
        table, stamps = (starts.new_empty(batch, most, run) for _ in range(2))
        out = Cover(scores.new_empty(batch, most), starts.new_empty(batch, most), table, stamps)
    given = (values, shares, winner, scores, starts, fits)
    links = (columns.successor, columns.predecessor, columns.created)
    called: Any = cover_plain if runs_plain(values, shares, scores) else cover_
    called(*given, *links, *enough, *out)
    return out


def cover_plain(*given: Any) -> None:
    """The specification of `cover`, of the operation's arguments, checked before."""
    values, shares, winner, scores, starts, fits, successor, predecessor, created = given[:9]
    enough, out = Enough(*given[9:13]), Cover(*given[13:])
    there = starts >= 0
    if winner is not None:
        at, tokens = starts.clamp(min=0), values.shape[1]
        values = values.gather(2, at[:, None].expand(-1, tokens, -1))
        # What a further passage adds is measured on the part that found the first one.
        first = winner.gather(1, at[:, :1])[..., None].expand(-1, 1, tokens)
        shares = shares.gather(1, first)[:, 0]
    # Below 0 a look-alike fits less than usual, however close it comes to the first one.
    close = (fits >= enough.ratio * fits[:, :1]) & (fits > 0)
    order = torch.arange(starts.shape[1], device=starts.device)
    explained = values[..., 0]
    wanted = enough.gain * (shares * explained).sum(1, keepdim=True)
    free = there & (order > 0)
    taken = [torch.where(there[:, 0], 0, -1)]
    # How many rounds there are does not depend on what is found: the host never waits.
    for _ in range(out.table.shape[1] - 1):
        more = (shares[..., None] * (values - explained[..., None]).clamp(min=0)).sum(1)
        adds = free & ((more >= wanted) | close)
        best = adds.int().argmax(-1)  # the first of them
        some = adds.any(-1)
        taken.append(torch.where(some, best, -1))
        picked = values.gather(2, best[:, None, None].expand(-1, values.shape[1], 1))[..., 0]
        explained = torch.where(some[:, None], torch.maximum(explained, picked), explained)
        free = free & (order > best[:, None]) & some[:, None]
    where = torch.stack(taken, 1)
    at, none = where.clamp(min=0), where < 0
    out.scores.copy_(scores.gather(1, at).masked_fill(none, NEG_INF))
    out.starts.copy_(starts.gather(1, at).masked_fill(none, -1))
    links, beside = (successor, predecessor), enough.neighbours
    out.table.copy_(block_table(out.starts, *links, length=enough.passage, neighbours=beside))
    out.stamps.copy_(stamped(out.table, created))


cover_ = register(
    "cover(Tensor values, Tensor shares, Tensor? winner, Tensor scores, Tensor starts, "
    "Tensor fits, Tensor successor, Tensor predecessor, Tensor created, float ratio, float gain, "
    "int passage, int neighbours, Tensor(a!) taken_scores, Tensor(b!) taken_starts, "
    "Tensor(c!) table, Tensor(d!) stamps) -> ()",
    cover_plain,
    "cover:cover",
    "cmr.retrieve",
)
