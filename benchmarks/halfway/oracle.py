"""What a memory holds, in plain Python, and whether its accounts add up."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import cmr
from cmr.integration.requests.lock import FairLock

SHARE = 36
NAMES = ("anna", "ben", "carl", "dora", "eve")


def canary(name: str, tokens: int, seed: int = 0) -> torch.Tensor:
    """A text of ids that no other session's text holds, `[tokens]` int64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, SHARE, (tokens,), generator=generator)
    return drawn + 3 + SHARE * NAMES.index(name)


def owner(token: int) -> str:
    """Whose canary a token is from; empty: nobody's."""
    at = (token - 3) // SHARE
    return NAMES[at] if token >= 3 and at < len(NAMES) else ""


class View(NamedTuple):
    """What a memory holds, as far as anybody can tell it apart.

    Attributes:
        sessions: of each, oldest first: name, position, whether it is ephemeral, seconds that it
            lives, adapters, and the block that its next one follows.
        blocks: of each, in the order of their numbers: session, tier, positions, token ids, whether
            it is pinned and whether it expires, relevance, the blocks before and behind it, and a
            digest of its keys, values and index. Blocks are named by their place in this order.
    """

    sessions: tuple[Any, ...]
    blocks: tuple[Any, ...]

    def apart(self, other: View) -> str:
        """The first difference to another one, in a few words."""
        names = ("position", "ephemeral", "ttl", "adapters", "newest block")
        mine, its = ({s[0]: s[1:] for s in v.sessions} for v in (self, other))
        if list(mine) != list(its):
            return f"sessions {list(mine)} for {list(its)}"
        for name, said in mine.items():
            for what, a, b in zip(names, said, its[name], strict=True):
                if a != b:
                    return f"{what} of {name}: {a} for {b}"
        if len(self.blocks) != len(other.blocks):
            counts = [dict(Counter(b[0] for b in v.blocks)) for v in (self, other)]
            return f"blocks {counts[0]} for {counts[1]}"
        names = (
            "session", "tier", "positions", "token ids", "pin", "expiry", "relevance",
            "block before", "block behind", "states",
        )  # fmt: skip
        for at, (block, like) in enumerate(zip(self.blocks, other.blocks, strict=True)):
            for what, a, b in zip(names, block, like, strict=True):
                if a != b:
                    return f"{what} of block {at}: {str(a)[:40]} for {str(b)[:40]}"
        return "nothing"


def view(memory: cmr.Memory) -> View:
    """What a memory holds."""
    core = memory._core
    ring, ledger, table = core.ring, core.ring.ledger, core.table
    slots = ledger.slots_of(None)
    place = {slot: at for at, slot in enumerate(slots.tolist())}
    names = {info.number: info.name for info in table.infos()}
    digests: dict[int, Any] = {slot: hashlib.blake2b(digest_size=8) for slot in place}
    for tier, parts in zip(ledger.tiers, ring.parts, strict=True):
        for part in parts.values():
            raw = part.detach().reshape(tier.slots, -1).view(torch.uint8).numpy()
            for slot in place:
                if tier.first <= slot < tier.end:
                    digests[slot].update(raw[slot - tier.first])
    columns = {
        name: getattr(ring, name)[slots].tolist()
        for name in ("positions", "token_ids", "relevance", "predecessor", "successor")
    }
    blocks = [
        (
            names.get(int(ledger.owner[slot]), f"nobody ({int(ledger.owner[slot])})"),
            ledger.tiers[ledger.tier_of(slot)].name,
            tuple(columns["positions"][at]),
            tuple(columns["token_ids"][at]),
            bool(ledger.pinned[slot]),
            bool(ledger.deadline[slot] < math.inf),
            columns["relevance"][at],
            place.get(columns["predecessor"][at], columns["predecessor"][at]),
            place.get(columns["successor"][at], columns["successor"][at]),
            digests[slot].hexdigest(),
        )
        for at, slot in enumerate(place)
    ]
    sessions = [
        (
            info.name,
            info.position,
            info.ephemeral,
            info.ttl,
            info.adapters or (),
            place.get(ledger.newest(info.number), -1),
        )
        for info in table.infos()
    ]
    return View(tuple(sessions), tuple(blocks))


def unaccounted(memory: cmr.Memory) -> list[str]:
    """What does not add up between the ledger, the columns, the tensors and the sessions."""
    core = memory._core
    ring, ledger, table = core.ring, core.ring.ledger, core.table
    wrong: list[str] = []

    def say(what: str, so: Any) -> None:
        if bool(so):
            wrong.append(what)

    held = ledger.owner >= 0
    for number, tier in enumerate(ledger.tiers):
        free = ledger._free[number]
        say(f"slots of {tier.name} lost", len(free) + len(ledger.held(number)) != tier.slots)
        say("a slot is free twice", len(set(free)) != len(free))
        say("a free slot is held", any(bool(held[slot]) for slot in free))
        say("a free slot of another tier", any(ledger.tier_of(slot) != number for slot in free))
    say("session column unlike the ledger", (ring.session != ledger.owner).any())
    say("number column unlike the ledger", (ring.created != ledger.number).any())
    say("a number twice", len(ledger.number[held].unique()) != int(held.sum()))
    say("a number from the future", (ledger.number > ring.clock).any())
    say("cursor unlike the clock", int(ring.cursor) != ring.clock)
    say("the limit hides a block", held[ledger.limit :].any())
    counted = Counter(ledger.owner[held].tolist())
    say(
        "blocks of sessions miscounted",
        dict(counted) != {n: c for n, c in ledger._held.items() if c},
    )
    say("blocks of nobody", set(counted) - {info.number for info in table.infos()})
    for session, slot in ledger._newest.items():
        say("the newest block is not the session's", int(ledger.owner[slot]) != session)
    for ahead, back in ((ring.successor, ring.predecessor), (ring.predecessor, ring.successor)):
        at = (ahead >= 0).nonzero()[:, 0]
        to = ahead[at]
        say("a link from an empty slot", (~held[at]).any())
        say("a link to an empty slot", (~held[to]).any())
        say("a link to another session", (ledger.owner[at] != ledger.owner[to]).any())
        say("a link that leads back elsewhere", (back[to] != at).any())
    empty = (~held).nonzero()[:, 0]
    nothing = (ring.positions, ring.session, ring.successor, ring.predecessor)
    for name, column in ring.columns._asdict().items():
        if name != "cursor":
            value = -1 if any(column is other for other in nothing) else 0
            say(f"{name} of an empty slot is not {value}", (column[empty] != value).any())
    for tier, parts in zip(ledger.tiers, ring.parts, strict=True):
        here = empty[tier.holds(empty)] - tier.first
        for name, part in parts.items():
            # As bytes: -0.0 is equal to 0.
            left = part[here].contiguous().view(torch.uint8).any()
            say(f"{name.partition('.')[0]} of an empty slot are not 0", left)
    say("born without a block", (ledger.born[empty] != 0).any())
    say(
        "a pin or deadline without a block",
        (ledger.pinned | (ledger.deadline < math.inf))[empty].any(),
    )
    return sorted(set(wrong))


class Frozen:
    """All that a memory stores, to be put into another one with the same settings.

    Args:
        memory: what is copied.
    """

    def __init__(self, memory: cmr.Memory) -> None:
        core = memory._core
        self._tensors = [tensor.clone() for tensor in _tensors(core)]
        self._plain = [_plain(thing) for thing in _accounts(core)]
        self._scores = {name: t.clone() for name, t in core.scorer.state().items()}
        self._clock = core.ring.clock, core.ring._start

    def thaw(self, memory: cmr.Memory) -> None:
        """Puts it into a memory that stores nothing."""
        core = memory._core
        for tensor, kept in zip(_tensors(core), self._tensors, strict=True):
            tensor.copy_(kept)
        for thing, kept in zip(_accounts(core), self._plain, strict=True):
            vars(thing).update(copy.deepcopy(kept))
        core.scorer.load_state({name: t.clone() for name, t in self._scores.items()})
        core.ring.clock, core.ring._start = self._clock
        core.names_in_use = True


def needles(memory: cmr.Memory, name: str) -> dict[bytes, str]:
    """Bytes by which what a session stores can be told, with what they are."""
    found: dict[bytes, str] = {}
    ring = memory._core.ring
    for slot in ring.ledger.slots_of(memory._core.table.require(name)).tolist():
        tier = ring.ledger.tier_of(slot)
        at = slot - ring.ledger.tiers[tier].first
        for part, tensor in ring.parts[tier].items():
            rows = tensor[at].reshape(-1, tensor.shape[-1])
            # Numbers that many blocks have in common tell none of them apart.
            if rows.shape[-1] * rows.element_size() >= 32:
                for vector in (rows[0], rows[-1]):
                    found[_raw(vector)] = part
        found[_raw(ring.token_ids[slot])] = "token ids"
        found[_raw(ring.token_ids[slot].int())] = "token ids in a file"
    return {raw: label for raw, label in found.items() if any(raw)}


def in_tensors(wanted: dict[bytes, str]) -> list[str]:
    """What is found in any tensor that the collector of garbage knows."""
    gc.collect()
    seen, found = set(), set()
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor):
            continue
        store = thing.untyped_storage()
        if store.data_ptr() in seen or not store.nbytes():
            continue
        seen.add(store.data_ptr())
        raw = torch.empty(0, dtype=torch.uint8).set_(store).numpy().tobytes()
        found |= {label for needle, label in wanted.items() if needle in raw}
    return sorted(found)


def in_files(wanted: dict[bytes, str], folder: Path) -> list[str]:
    """What is found in any file of a folder."""
    found = set()
    for path in folder.rglob("*"):
        raw = path.read_bytes() if path.is_file() else b""
        found |= {label for needle, label in wanted.items() if needle in raw}
    return sorted(found)


def _raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes()[:64])


def _tensors(core: Any) -> list[torch.Tensor]:
    parts = [part for parts in core.ring.parts for part in parts.values()]
    return [*core.ring.columns, *parts]


def _accounts(core: Any) -> tuple[Any, ...]:
    return core.ring.ledger, core.table


def _plain(thing: Any) -> dict[str, Any]:
    kinds = (torch.Tensor, int, float, bool, str, list, dict, tuple, set, type(None))
    return {n: copy.deepcopy(v) for n, v in vars(thing).items() if isinstance(v, kinds)}


@contextlib.contextmanager
def watched(memory: cmr.Memory) -> Iterator[list[tuple[View, Frozen]]]:
    """Gives the states that others can see while something is done: when the lock is let go."""
    seen = [(view(memory), Frozen(memory))]
    release = FairLock.release

    def note() -> None:
        now = view(memory)
        if now != seen[-1][0]:
            seen.append((now, Frozen(memory)))

    def let_go(lock: FairLock, *given: Any) -> None:
        release(lock, *given)
        if lock is memory._core.lock and not lock.mine:
            note()

    FairLock.release = let_go  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        FairLock.release = release  # type: ignore[method-assign]
    note()
