"""Loads keys and values of chosen blocks that the first tier does not hold as they are read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cmr._fork import renew
from cmr.integration.reweave.recomputer import Layers, Recomputer
from cmr.memory.block_store import BlockStore

Stored = tuple[torch.Tensor, torch.Tensor | None]
Gather = Callable[[int], Stored]
Project = Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Recomputed:
    """The last few passages that were run through the model again.

    Attributes:
        most: passages that are kept.
        runs: times that the model ran.
        asked: passages that were to be read.
        ready: of them, those that were there already.
    """

    def __init__(self, recomputer: Recomputer, ring: BlockStore, passages: int) -> None:
        self._recomputer, self._ring, self.most = recomputer, ring, passages
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()
        self.runs = self.asked = self.ready = 0

    def get(self, passages: torch.Tensor) -> list[Layers]:
        """Keys and values by layer number, of each of the passages `[n, run]` of slots on the CPU.

        Two `[1, kv_heads, run * block_size, head_dim]`; -1 is no slot. The decoder's hooks must
        rest meanwhile.
        """
        return self._get(passages, self._names(passages))

    def read(self, passages: torch.Tensor) -> list[Layers]:
        """The same for a request, which is counted."""
        names = self._names(passages)
        self.asked += len(names)
        self.ready += sum(name in self._kept for name in names)
        return self._get(passages, names)

    def prepare(self, passages: torch.Tensor) -> int:
        """Run those of the passages that are not there; how many these are. As for `get`."""
        names = self._names(passages)
        new = sum(name not in self._kept for name in names)
        self._get(passages, names)
        return new

    def _names(self, passages: torch.Tensor) -> list[tuple[int, ...]]:
        # By the blocks' numbers, not their slots: a slot may hold another block by now.
        numbers = torch.where(passages >= 0, self._ring.ledger.number[passages.clamp(min=0)], -1)
        return [tuple(row) for row in numbers.tolist()]

    def _get(self, passages: torch.Tensor, names: list[tuple[int, ...]]) -> list[Layers]:
        new = [i for i, name in enumerate(names) if name not in self._kept]
        found = {name: self._kept[name] for name in names if name in self._kept}
        if new:
            self.runs += 1
            fresh = self._recomputer.recompute(self._ring, passages[new].to(self._ring.device))
            # Copies: a view of one passage would keep all that ran with it alive.
            for at, i in enumerate(new):
                found[names[i]] = {
                    n: (k[at : at + 1].clone(), v[at : at + 1].clone())
                    for n, (k, v) in fresh.items()
                }
        for name, layers in found.items():
            self._kept[name] = layers
            self._kept.move_to_end(name)
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return [found[name] for name in names]

    def forget(self) -> None:
        """Drop everything."""
        self._kept.clear()


class Prefetcher:
    """A thread that gathers ahead, made when first needed; `gathered` counts layers."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self.gathered = 0
        renew(self, "_pool", lambda: None)

    def ahead(self, gather: Gather, layers: Iterable[int]) -> Gather:
        """A function like `gather`, whose work begins at once in a thread, layer by layer.

        It waits where a layer is not there yet, and raises what was raised there. A layer that is
        asked for again is gathered anew.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="cmr-prefetch")
        pool = self._pool
        coming: dict[int, Future[Stored]] = {
            layer: pool.submit(gather, layer) for layer in sorted(layers)
        }

        def take(layer: int) -> Stored:
            if layer not in coming or self._pool is not pool:  # what a parent began never comes
                return gather(layer)
            self.gathered += 1
            return coming.pop(layer).result()

        return take

    def close(self) -> None:
        """End the thread; what was begun is finished first."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class TieredStates:
    """Keys and values of a table `[batch, passages, run]` of blocks in several tiers, or of none.

    `project` makes keys and values of hidden states `[batch, tokens, hidden]`, where those are
    stored; None: keys and values are. With `again` every passage is run through the model again.
    """

    def __init__(
        self,
        ring: BlockStore,
        recomputed: Recomputed,
        table: torch.Tensor,
        prefetcher: Prefetcher,
        layers: Iterable[int],
        project: Project | None,
        again: bool = False,
    ) -> None:
        self._ring, self._table, self._project = ring, table.cpu(), project
        self._gather: Gather = self._gathered
        self._again = again
        # What has to come a long way begins to come now, while the layers before it run.
        if ring.keys and not again and ring.far(self._table):
            self._gather = prefetcher.ahead(self._gathered, layers)
        rows, passages, run = table.shape
        flat = self._table.view(rows * passages, run)
        bare = (flat >= 0) & (again | ~ring.keeps_states(flat))
        which = bare.any(dim=1).nonzero()[:, 0]
        self._bare = bare.repeat_interleave(ring.block_size, dim=1)
        self._found = dict(
            zip(which.tolist(), recomputed.read(flat[which]) if len(which) else [], strict=True)
        )

    def __call__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values `[batch, kv_heads, passages * run * block_size, head_dim]`."""
        stored = self._stored(layer)
        if not self._found:
            assert stored is not None
            return stored
        rows, passages, _ = self._table.shape
        out = []
        for part in range(2):
            given = next(iter(self._found.values()))[layer][part]
            empty = torch.zeros_like(given)
            heads, tokens, dim = given.shape[1:]
            found = [self._found.get(i) for i in range(rows * passages)]
            pieces = [empty if one is None else one[layer][part] for one in found]
            fresh = torch.cat(pieces).view(rows, passages, heads, tokens, dim)
            fresh = fresh.transpose(1, 2).reshape(rows, heads, passages * tokens, dim)
            if stored is not None:
                bare = self._bare.view(rows, 1, passages * tokens, 1).to(fresh.device)
                fresh = torch.where(bare, fresh, stored[part].to(fresh.device))
            out.append(fresh)
        return out[0], out[1]

    def _stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self._again or layer not in self._ring.keys:
            return None
        keys, values = self._gather(layer)
        if self._project is not None:
            return self._project(layer, keys[:, 0])
        return keys, keys if values is None else values

    def _gathered(self, layer: int) -> Stored:
        return self._ring.gather_anywhere(layer, self._table.flatten(1))
