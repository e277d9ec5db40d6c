"""Where the line ends that a passage stands in: what is read beside it goes no further."""

from __future__ import annotations

from typing import Any

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference.select import SearchColumns, block_runs

LAST = torch.iinfo(torch.int64).max
"""Behind all positions of a text."""


def within_lines(
    starts: torch.Tensor,
    columns: SearchColumns,
    token_ids: torch.Tensor,
    breaks: torch.Tensor,
    passage: int,
    neighbours: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The first and the last position that each passage is read in. One launch.

    A passage is read as a whole. Its neighbours are read as far as the line goes on that it begins
    or ends with: a turn of a conversation, a paragraph, an entry of a list.

    Args:
        starts: [B, k] int64, first slot of each passage, -1 for none.
        columns: of the stored blocks, one at least.
        token_ids: [N, block] int64 of the same blocks.
        breaks: [V] bool, which tokens end a line; the last one stands for all ids that are no
            token's.
        passage: blocks in one, 1 or 2.
        neighbours: blocks read beside a passage, on each side, 1 to 8.
        out: [B, k, 2] int64, contiguous, to write into; None: a new one.

    Returns:
        [B, k, 2] int64; of no passage a first position that lies behind the last one.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `within_lines_plain`.
    """
    whole = torch.int64
    sizes = expect(
        ("starts", starts, "B k", whole),
        ("token_ids", token_ids, "N block", whole, CONTIGUOUS),
        ("positions", columns.positions, "N block", whole, CONTIGUOUS),
        ("successor", columns.successor, "N", whole, CONTIGUOUS),
        ("predecessor", columns.predecessor, "N", whole, CONTIGUOUS),
        ("breaks", breaks, "V", torch.bool, CONTIGUOUS),
        ("out", out, "B k two", whole, CONTIGUOUS),
        two=2,
    )
    out = starts.new_empty(sizes["B"], sizes["k"], 2) if out is None else out
    links = columns.successor, columns.predecessor
    run = within_lines_plain if runs_plain(starts, token_ids) else within_lines_
    run(starts, *links, columns.positions, token_ids, breaks, passage, neighbours, out)
    return out


def within_lines_plain(starts: torch.Tensor, *rest: Any) -> None:
    """The specification of `within_lines`, of the operation's arguments, checked before."""
    successor, predecessor, positions, token_ids, breaks, passage, neighbours, out = rest
    runs = block_runs(starts, successor, predecessor, length=passage, neighbours=neighbours)
    slots, size = runs.clamp(min=0), token_ids.shape[1]
    places = positions[slots].masked_fill((runs < 0)[..., None], -1).flatten(2)
    # Below 0 stands the last one of a table, as behind its end.
    ids = token_ids[slots].flatten(2).clamp(-1, len(breaks) - 1)
    ends = breaks[ids] & (places >= 0)
    at = torch.arange(places.shape[2], device=places.device)
    # A line that ends with the passage's last token goes on in no neighbour.
    before, behind = at < neighbours * size, at >= (neighbours + passage) * size - 1
    first = torch.where(ends & before, places + 1, 0).amax(-1)
    last = torch.where(ends & behind, places, LAST).amin(-1)
    # Never beyond what stands there: another passage may.
    torch.maximum(first, places.masked_fill(places < 0, LAST).amin(-1), out=out[..., 0])
    torch.minimum(last, places.amax(-1), out=out[..., 1])


within_lines_ = register(
    "within_lines(Tensor starts, Tensor successor, Tensor predecessor, Tensor positions, "
    "Tensor token_ids, Tensor breaks, int passage, int neighbours, Tensor(a!) out) -> ()",
    within_lines_plain,
    "search.lines:within_lines",
    "cmr.retrieve",
)
