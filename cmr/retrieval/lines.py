"""Where the line ends that a passage stands in: what is read beside it goes no further."""

from __future__ import annotations

import torch

from cmr.kernels.reference.select import Rule, SearchColumns, block_runs
from cmr.retrieval.vocabulary import Vocabulary

LAST = torch.iinfo(torch.int64).max
"""Behind all positions of a text."""


def within_lines(
    starts: torch.Tensor,
    columns: SearchColumns,
    token_ids: torch.Tensor,
    vocabulary: Vocabulary,
    rule: Rule,
) -> torch.Tensor:
    """`Choice.within` of passages that begin at slots `starts` `[batch, k]`, -1 for none.

    A passage is read as a whole. Its neighbours are read as far as the line goes on that it begins
    or ends with: a turn of a conversation, a paragraph, an entry of a list. `token_ids`
    `[slots, block_size]`, one at least, are of the same slots as the columns.
    """
    links = columns.successor, columns.predecessor
    runs = block_runs(starts, *links, length=rule.passage, neighbours=rule.neighbours)
    slots, size = runs.clamp(min=0), token_ids.shape[1]
    places = columns.positions[slots].masked_fill((runs < 0)[..., None], -1).flatten(2)
    breaks = vocabulary.breaks(token_ids[slots].flatten(2)) & (places >= 0)
    at = torch.arange(places.shape[2], device=places.device)
    # A line that ends with the passage's last token goes on in no neighbour.
    before, behind = at < rule.neighbours * size, at >= (rule.neighbours + rule.passage) * size - 1
    first = torch.where(breaks & before, places + 1, 0).amax(-1)
    last = torch.where(breaks & behind, places, LAST).amin(-1)
    # Never beyond what stands there: another passage may.
    first = first.maximum(places.masked_fill(places < 0, LAST).amin(-1))
    last = last.minimum(places.amax(-1))
    return torch.stack((first, last), -1)
