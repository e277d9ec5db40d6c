"""The preallocated store of whole blocks: arrays over one space of slots, in tiers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from cmr.kernels.ring_link import Columns, Reserved, ring_link
from cmr.kernels.ring_write import ring_write_heads, ring_write_index
from cmr.memory.batch import BlockBatch, LayerSource, Lower
from cmr.memory.keeper import Keeper, Policy
from cmr.memory.layer_tensors import LayerShape, on_device
from cmr.memory.sessions import NO_SESSION, SessionTable
from cmr.memory.tier_tensors import TieredStores

NO_SLOT = -1


class RingBuffer(TieredStores):
    """Whole blocks of tokens in preallocated tensors; what leaves is up to the policy.

    New blocks go into the first tier. What has to leave it sinks into the next one, and out of the
    last one it is gone. A block keeps its number for life, whichever slot it is in.

    Args:
        slots: number of blocks that fit into the first tier.
        block_size: tokens in a block.
        hidden: width of the states at the index layer.
        layers: layer number (index into `hidden_states`) to what it stores.
        index_dtype: data type of the index vectors.
        device: device of the index and of the shared columns.
        lower: the tiers under the first one.
        policy: what leaves first.
        sessions: terms of the sessions, see `Keeper`.

    Attributes:
        columns: what is known of each slot of all tiers, see `Columns`, with the cursor on the
            device: blocks ever written. Numbers in `created` start at 1 and never come twice.
        keeper: makes room.
        on_change: told the slots, `[n]` int64 on the CPU, whose blocks are about to leave them. It
            may look at them and must not change anything. None: nobody is told.

    The tensors themselves are those of `TieredStores`.

    Raises:
        ValueError: for fewer than one slot.
    """

    def __init__(
        self,
        *,
        slots: int,
        block_size: int,
        hidden: int,
        layers: Mapping[int, LayerShape],
        index_dtype: torch.dtype,
        device: torch.device,
        lower: Lower | None = None,
        policy: Policy | None = None,
        sessions: SessionTable | None = None,
    ) -> None:
        super().__init__(
            slots=slots,
            block_size=block_size,
            hidden=hidden,
            layers=layers,
            index_dtype=index_dtype,
            device=device,
            lower=lower or Lower(),
        )
        self.columns = columns = _columns(self.slots, block_size, device)
        self.cursor, self.relevance = columns.cursor, columns.relevance
        self.token_ids, self.positions = columns.token_ids, columns.positions
        self.session, self.created = columns.session, columns.created
        self.successor, self.predecessor = columns.successor, columns.predecessor
        self.last_access, self.access_count = columns.last_access, columns.access_count
        self.clock = self._start = 0
        self.keeper = Keeper(self, policy or Policy(), sessions)
        self.on_change: Callable[[torch.Tensor], None] | None = None

    # -- size ------------------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """Blocks written since the buffer was last empty."""
        return self.clock - self._start

    @property
    def high_water(self) -> int:
        """Slots from 0 on that were ever written: what a search has to look at."""
        return self.ledger.limit

    @property
    def nbytes(self) -> int:
        """Bytes of all preallocated tensors, those in files included."""
        return sum(self.tier_bytes(i) for i in range(len(self.ledger.tiers)))

    def tier_bytes(self, tier: int) -> int:
        """Bytes of one tier's tensors, its part of the shared columns included."""
        at = self.ledger.tiers[tier]
        columns = [column[at.first : at.end] for column in self._slot_columns()]
        return sum(t.numel() * t.element_size() for t in [*self.parts(tier).values(), *columns])

    def tier_stats(self) -> dict[str, dict[str, float]]:
        """Tier name to its blocks, capacity in blocks, bytes, and bytes of a token that it fits."""
        found = {}
        for number, tier in enumerate(self.ledger.tiers):
            held, size = len(self.ledger.held(number)), self.tier_bytes(number)
            found[tier.name] = {
                "blocks": held,
                "capacity_blocks": tier.slots,
                "bytes": size,
                "bytes_per_token": size / (tier.slots * self.block_size),
            }
        return found

    def blocks_of(self, session: int) -> int:
        """Number of blocks that the session has stored."""
        return self.ledger.blocks_of(session)

    def has(self, sessions: Sequence[int]) -> bool:
        """Whether any of the sessions has a stored block. Host only: no device sync."""
        return any(self.ledger.blocks_of(s) for s in sessions)

    def stored_tokens(self, session: int | None = None) -> int:
        """Stored tokens without padding. Reads the device: for people, not for the hot path."""
        own = self.session != NO_SESSION if session is None else self.session == session
        return int(((self.positions >= 0) & own[:, None]).sum())

    # -- writing ---------------------------------------------------------------------------------

    def write(self, batch: BlockBatch) -> torch.Tensor:
        """Store the blocks; returns the slots, `[n]` int64, that they went into.

        Where more come than the first tier holds, the earlier ones have left it by then.

        Raises:
            ValueError: when more blocks are given than there are slots, a layer is missing, or
                everything is pinned.
        """
        n = len(batch.sessions)
        if n > self.slots:
            raise ValueError(f"at most {self.slots} blocks fit into the buffer, got {n} at once")
        self._check(batch.layers)
        pick = torch.arange(n) if batch.pick is None else batch.pick
        written, done = [], 0
        while done < n:
            room = self.keeper.make_room(batch.sessions[done:])
            part = slice(done, done + room)
            piece = replace(batch, sessions=batch.sessions[part], pick=pick[part].to(self.device))
            written.append(self._write(piece))
            done += room
        return torch.cat(written) if written else torch.empty(0, dtype=torch.int64)

    def _write(self, batch: BlockBatch) -> torch.Tensor:
        n, born = len(batch.sessions), time.time()
        slots = self.ledger.take(0, n)
        numbers = torch.arange(self.clock + 1, self.clock + n + 1)
        before: dict[int, int] = {}
        chain = []
        for slot, session in zip(slots.tolist(), batch.sessions, strict=True):
            chain.append(before.get(session, self.ledger.newest(session)))
            before[session] = slot
        reserved = Reserved(*(x.to(self.device) for x in (slots, torch.tensor(chain), numbers)))
        sessions = torch.tensor(list(batch.sessions), device=self.device)
        assert batch.pick is not None
        for number, source in batch.layers.items():
            self._write_layer(number, source, reserved.slots, batch.pick)
        index = batch.index.to(self.device)
        ring_write_index(self.index, None, reserved.slots, batch.pick, index)
        relevance = batch.relevance
        ring_link(
            self.columns,
            reserved,
            sessions,
            batch.token_ids.to(self.device),
            batch.positions.to(self.device),
            None if relevance is None else relevance.to(self.device),
            batch.pick,
        )
        ends = [self.keeper.deadline(session, born) for session in batch.sessions]
        when = torch.full((n,), born, dtype=torch.float64)
        ends_at = torch.tensor(ends, dtype=torch.float64)
        self.ledger.fill(slots, batch.sessions, numbers, when, ends_at)
        self.clock += n
        return slots

    def _check(self, layers: Mapping[int, LayerSource]) -> None:
        """Raises before anything is written."""
        if set(layers) != set(self.keys):
            raise ValueError(f"layers {sorted(self.keys)} expected, got {sorted(layers)}")
        for number, source in layers.items():
            stored = {"keys": self.keys[number], "values": self.values.get(number)}
            for name, store in stored.items():
                given = getattr(source, name)
                if store is None or given is None:
                    if store is not given:
                        has = "no values, got some" if store is None else "values, got none"
                        raise ValueError(f"layer {number} stores {has}")
                elif given.ndim != 4 or given.shape[1::2] != store.shape[1::2]:
                    wanted = f"[batch, {store.shape[1]}, tokens, {store.shape[3]}]"
                    raise ValueError(
                        f"layer {number}: {name} of shape {wanted} expected, "
                        f"got {list(given.shape)}"
                    )

    def _write_layer(
        self, number: int, source: LayerSource, slots: torch.Tensor, pick: torch.Tensor
    ) -> None:
        keys, values = source.keys, source.values
        device = self.keys[number].device
        cos, sin = source.turned or (None, None)
        ring_write_heads(
            self.keys[number],
            self.values.get(number),
            slots.to(device),
            pick.to(device),
            keys.to(device),
            None if values is None else values.to(device),
            None if cos is None else cos.to(device),
            None if sin is None else sin.to(device),
        )

    # -- moving ----------------------------------------------------------------------------------

    def move(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        states: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Take blocks into other slots, which the ledger gave; the old ones are zeroed.

        Args:
            source: `[n]` int64 slots of one tier, on the CPU.
            target: `[n]` int64 slots of one tier, on the CPU.
            states: parts that the target's tier has and the source's has not, `[n, ...]` each.
        """
        if not len(source):
            return
        self._tell(source)
        ledger, (above, below) = self.ledger, (int(source[0]), int(target[0]))
        tiers = [ledger.tier_of(above), ledger.tier_of(below)]
        rows = self.rows(tiers[0], source - ledger.tiers[tiers[0]].first)
        self.put(tiers[1], target - ledger.tiers[tiers[1]].first, {**rows, **(states or {})})
        old, new = source.to(self.device), target.to(self.device)
        for column in self._slot_columns():
            column[new] = column[old]
        self._relink(old, new)
        ledger.move(source, target)
        self._zero(source)

    def swap(self, slot: int, other: int, states: Mapping[str, torch.Tensor] | None = None) -> None:
        """Let the blocks of two slots change places.

        Args:
            slot: holds a block.
            other: holds another one, in another tier.
            states: parts of the first block that the other's tier has and its own has not,
                `[1, ...]` each.
        """
        pair = [slot, other]
        self._tell(torch.tensor(pair))
        tiers = [self.ledger.tier_of(at) for at in pair]
        at = [
            torch.tensor([p - self.ledger.tiers[t].first]) for p, t in zip(pair, tiers, strict=True)
        ]
        one, two = (self.rows(tier, where) for tier, where in zip(tiers, at, strict=True))
        self.put(tiers[1], at[1], {**one, **(states or {})})
        self.put(tiers[0], at[0], two)
        both = torch.tensor(pair, device=self.device)
        for column in self._slot_columns():
            column[both] = column[both.flip(0)]
        self._relink(both, both.flip(0))
        self.ledger.swap(slot, other)

    def _relink(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Let every link that leads to an old slot lead to the new one."""
        remap = torch.arange(self.slots, device=self.device)
        remap[old] = new
        for links in (self.successor, self.predecessor):
            links.copy_(torch.where(links >= 0, remap[links.clamp(min=0)], NO_SLOT))

    def _slot_columns(self) -> list[torch.Tensor]:
        return [column for column in self.columns if column is not self.cursor]

    def new_numbers(self, count: int) -> torch.Tensor:
        """Numbers `[count]` int64 for blocks that are about to come in other ways than `write`."""
        self.clock += count
        self.cursor.fill_(self.clock)
        return torch.arange(self.clock - count + 1, self.clock + 1)

    def copy(
        self, source: torch.Tensor, target: torch.Tensor, session: int, numbers: torch.Tensor
    ) -> None:
        """Copy blocks into slots that the ledger gave, of one tier, for another session.

        The copies are new blocks of the same age, in no chain. A tier keeps of them what it keeps.

        Args:
            source: `[n]` int64 slots on the CPU.
            target: `[n]` int64 slots on the CPU.
            session: number of the session that gets them.
            numbers: `[n]` int64, from `new_numbers`.
        """
        n, ledger = len(source), self.ledger
        to = ledger.tier_of(int(target[0]))
        for tier, at in enumerate(ledger.tiers):
            here = at.holds(source)
            if here.any():
                rows = self.rows(tier, source[here] - at.first)
                self.put(to, target[here] - ledger.tiers[to].first, rows)
        old, new = source.to(self.device), target.to(self.device)
        for column in self._slot_columns():
            column[new] = column[old]
        self.session[new] = session
        self.created[new] = numbers.to(self.device)
        self.successor[new] = self.predecessor[new] = NO_SLOT
        born = ledger.born[source]
        ends = torch.tensor([self.keeper.deadline(session, at) for at in born.tolist()])
        ledger.fill(target, [session] * n, numbers, born, ends.double())

    def hand_over(self, slots: torch.Tensor, session: int, shift: int) -> None:
        """Give blocks to another session, `shift` positions further on in its text."""
        if len(slots):
            at = slots.to(self.device)
            self.session[at] = session
            placed = self.positions[at]
            self.positions[at] = torch.where(placed >= 0, placed + shift, placed)
            self.ledger.hand_over(slots, session)

    def touch(self, slots: torch.Tensor) -> None:
        """Count a recall of the given slots (any shape; entries below 0 count for nothing)."""
        flat = slots.reshape(-1)
        read = (flat >= 0).to(self.access_count.dtype)
        flat = flat.clamp(min=0)
        self.access_count.index_add_(0, flat, read)
        self.last_access.scatter_reduce_(0, flat, read * self.clock, "amax")

    def tick(self) -> int:
        """Let the clock go on by a number that no block gets: what is recalled from now on shows.

        Returns:
            What `last_access` is at least for a block that is recalled from now on.
        """
        self._start += 1
        return int(self.new_numbers(1))

    # -- forgetting ------------------------------------------------------------------------------

    def clear(self, session: int | None = None) -> int:
        """Zero every block of the session, or of all; returns how many blocks were emptied."""
        slots = self.ledger.slots_of(session)
        self.empty(slots)
        if session is None:
            # A block's number never comes twice: who still knows a block by its number must not
            # find another one in its slot.
            self._start = self.clock
            self.cursor.fill_(self.clock)
            self.ledger.restart()
        return len(slots)

    def empty(self, slots: torch.Tensor) -> None:
        """Zero some blocks, wherever they are; chains that lead to them are cut.

        Args:
            slots: `[n]` int64 on the CPU, each holding a block.
        """
        if not len(slots):
            return
        self._tell(slots)
        at = slots.to(self.device)
        for ahead, back in (
            (self.successor, self.predecessor),
            (self.predecessor, self.successor),
        ):
            beside = ahead[at]
            back[beside[beside >= 0]] = NO_SLOT
        self.ledger.empty(slots)
        self._zero(slots)

    def _tell(self, slots: torch.Tensor) -> None:
        if self.on_change is not None:
            self.on_change(slots)

    def _zero(self, slots: torch.Tensor) -> None:
        self.zero(slots)
        at = slots.to(self.device)
        nowhere = (self.positions, self.session, self.successor, self.predecessor)
        for column in self._slot_columns():
            empty = -1 if any(column is other for other in nowhere) else 0
            column.index_fill_(0, at, empty)


def _columns(slots: int, block_size: int, device: torch.device) -> Columns:
    def full(*shape: int, value: int = 0) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=device)

    return Columns(
        cursor=full(1),
        session=full(slots, value=NO_SESSION),
        created=full(slots),
        successor=full(slots, value=NO_SLOT),
        predecessor=full(slots, value=NO_SLOT),
        last_access=full(slots),
        access_count=full(slots),
        relevance=torch.zeros(slots, device=device),
        token_ids=on_device((slots, block_size), torch.int64, device),
        positions=full(slots, block_size, value=-1),
    )
