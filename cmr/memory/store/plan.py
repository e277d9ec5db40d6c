"""What a save has to write: which data files stay as they are, which blocks go into new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cmr.memory.store.form import Content
from cmr.memory.store.manifest import DEAD, Manifest, Shard


@dataclass
class Plan:
    """The files of a save.

    Attributes:
        kept: data files that stay where they are.
        new: kind and positions of the blocks of each data file to write, in their order.
    """

    kept: list[Shard]
    new: list[tuple[int, torch.Tensor]]


def plan(
    content: Content,
    old: Manifest | None,
    usable: Callable[[Shard], bool],
    shard_bytes: int,
    clean: bool,
) -> Plan:
    """Chooses what to keep and what to write.

    Args:
        content: what is saved.
        old: the manifest of the save that `content` goes on from, None where there is none.
        usable: whether a data file of `old` can be relied on.
        shard_bytes: the most bytes in a data file, one block excepted.
        clean: keep no file with a row that is no longer used.
    """
    kinds = list(content.kinds)
    same = {
        number: kinds.index(kind)
        for number, kind in enumerate(old.kinds if old else [])
        if kind in kinds
    }
    candidates: Mapping[int, list[tuple[Shard, torch.Tensor]]] = {k: [] for k in range(len(kinds))}
    at_of = [(content.kind == k).nonzero().view(-1) for k in range(len(kinds))]
    sorted_of = [content.numbers[at].sort().values for at in at_of]
    for shard in old.shards if old else []:
        if shard.kind not in same:
            continue
        kind = same[shard.kind]
        live = _among(torch.tensor(shard.numbers, dtype=torch.int64), sorted_of[kind])
        dead = len(live) - int(live.sum())
        if 2 * dead > len(live) or (clean and dead) or not usable(shard):
            continue
        candidates[kind].append((shard, live))
    out = Plan([], [])
    for kind, at in enumerate(at_of):
        each = kinds[kind].nbytes
        present = []
        for shard, live in _keep_large(candidates[kind], len(at), each, shard_bytes):
            numbers = torch.tensor(shard.numbers, dtype=torch.int64).masked_fill(~live, DEAD)
            out.kept.append(shard._replace(kind=kind, numbers=numbers.tolist()))
            present.append(numbers[live])
        if present:
            at = at[~_among(content.numbers[at], torch.cat(present).sort().values)]
        # By session, then by number: what is read together lies together.
        at = at[content.numbers[at].argsort()]
        at = at[content.session[at].argsort(stable=True)]
        if len(at):
            out.new += [(kind, some) for some in at.split(max(1, shard_bytes // max(each, 1)))]
    return out


def _among(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Which `values` are in `known`, which is sorted; both int64."""
    if not len(known):
        return torch.zeros_like(values, dtype=torch.bool)
    return known[torch.searchsorted(known, values).clamp(max=len(known) - 1)] == values


def _keep_large(
    candidates: list[tuple[Shard, torch.Tensor]], blocks: int, each: int, shard_bytes: int
) -> list[tuple[Shard, torch.Tensor]]:
    """The candidates that stay files of their own.

    Many small saves must not leave many small files: one of less than half of `shard_bytes` is
    written again together with at least as many new bytes. A block is so written again at most as
    often as its file's size doubles, and the number of small files stays logarithmic.
    """
    held = sum(int(live.sum()) for _, live in candidates)
    fresh = blocks - held
    kept = []
    for shard, live in sorted(candidates, key=lambda pair: int(pair[1].sum())):
        rows = int(live.sum())
        if fresh >= rows and 2 * rows * each < shard_bytes:
            fresh += rows
        else:
            kept.append((shard, live))
    return kept
