"""A memory that does what it is told and says what it stores: plain values in, plain values out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import cmr
from benchmarks.shared.tiny import tiny_llama
from cmr.memory.sessions import NO_SESSION
from cmr.memory.store import Saved

VOCABULARY = 2048
TYPED = (cmr.CMRError, ValueError)
"""What an operation may raise; anything else is an error of the library."""

Rows = Sequence[Sequence[int]]


def tiny(seed: int) -> Any:
    """A random Llama of three layers, the same for the same seed."""
    return tiny_llama(
        seed,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
    )


class Row(NamedTuple):
    """A stored block as it is found in a memory or in a folder.

    `after` is the number of the block that is read behind it, 0 for none and in a folder.
    """

    number: int
    session: str
    tier: str
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    deadline: float
    pinned: bool
    after: int = 0


class State(NamedTuple):
    """What a memory stores: blocks, sessions in their order with their terms, and its counts."""

    rows: list[Row]
    sessions: list[tuple[str, int, bool, float | None]]
    free: dict[str, int]
    evicted: int
    expired: int


class Answer(NamedTuple):
    """What came of a command: a value, or the name of a typed error and what it says."""

    value: Any = None
    error: str = ""
    said: str = ""


class Actor:
    """A memory attached to a model, or about to be.

    Args:
        model: the model.
        settings: for `cmr.attach`.
    """

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        self.model = model
        self.memory = cmr.attach(model, **{"strict": True, **settings})
        self._caches: dict[int, Any] = {}

    def do(self, command: str, *args: Any) -> Answer:
        """Run a command; errors that are not typed are raised."""
        try:
            return Answer(getattr(self, command)(*args))
        except TYPED as error:
            return Answer(None, type(error).__name__, str(error))

    # -- text ------------------------------------------------------------------------------------

    def read(self, names: list[str], rows: Rows, keep: Rows | None, recall: bool) -> int:
        """Read texts of any lengths; blocks stored."""
        ids, mask = _padded(rows)
        kept = None if keep is None else _padded(keep)[0].bool()
        return self.memory.read(ids, mask, sessions=names, keep=kept, recall=recall).blocks

    def forward(self, key: int, names: list[str] | None, rows: Rows) -> list[Any]:
        """One forward with the cache of that key, which begins where there is none."""
        given = {"input_ids": torch.tensor(rows), "past_key_values": self._caches.get(key)}
        with torch.no_grad():
            if names is None:
                out, memory = self.model(**given, use_cache=True), self.memory
                recalled = memory.recalled if memory.active else []
            else:
                handle = self.memory.session(*names)
                out = handle.forward(**given, use_cache=True)
                recalled = handle.recalled if self.memory.active else []
        self._caches[key] = out.past_key_values
        return [_told(row) for row in recalled]

    def generate(self, names: list[str], rows: Rows, new: int, seed: int) -> Any:
        """What is said behind prompts of one length, and what was recalled last."""
        torch.manual_seed(seed)
        handle, ids = self.memory.session(*names), torch.tensor(rows)
        out = handle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=True,
            temperature=50.0, top_k=0,
        )  # fmt: skip
        recalled = handle.recalled if self.memory.active else []
        return out[:, ids.shape[1] :].tolist(), [_told(row) for row in recalled]

    def search(self, name: str, ids: Sequence[int]) -> list[Any]:
        """What a question finds."""
        return [_told(self.memory.session(name).search(ids, blocks=3))]

    def absorb(self, key: int) -> int:
        """Let a cache's rest become memory."""
        return self.memory.absorb(self._caches[key])

    def drop(self, key: int) -> None:
        """Let go of a cache."""
        self._caches.pop(key, None)

    # -- sessions and what they store ------------------------------------------------------------

    def session(self, name: str, ephemeral: bool | None, ttl: float | None) -> None:
        """Make a session, or give it other terms."""
        self.memory.session(name, create=True, ephemeral=ephemeral, ttl=ttl).tokens  # noqa: B018

    def rename(self, name: str, to: str) -> None:
        """Another name."""
        self.memory.rename(name, to)

    def fork(self, name: str, to: str) -> int:
        """A copy."""
        return self.memory.fork(name, to)

    def merge(self, name: str, into: str) -> int:
        """Two become one."""
        return self.memory.merge(name, into)

    def pin(self, numbers: list[int], pinned: bool) -> None:
        """Never evicted, or no longer so."""
        self.memory.pin(numbers, pinned)

    def forget(self, what: dict[str, Any]) -> tuple[int, list[str]]:
        """Blocks that were forgotten here, and the names of folders written anew."""
        report = self.memory.forget(**what)
        return report.blocks, [Path(path).name for path in report.files]

    def clear(self, name: str | None) -> int:
        """Everything, or a session, here alone."""
        return self.memory.clear(name)

    def consolidate(self) -> tuple[int, int, int]:
        """Expired, merged, risen."""
        report = self.memory.consolidate()
        return report.expired, report.merged, report.risen

    def lift(self, name: str) -> int:
        """Bring up."""
        return self.memory.lift(name)

    def inspect(self, name: str | None) -> list[tuple[int, str, int, tuple[int, ...]]]:
        """What people are shown."""
        return [(b.id, b.session, b.start, b.token_ids) for b in self.memory.inspect(name)]

    # -- folders, and being attached -------------------------------------------------------------

    def save(self, folder: str, names: list[str] | None, key: bytes | None) -> int:
        """Save."""
        return self.memory.save(folder, names, key=key).blocks

    def load(self, folder: str, names: list[str] | None, key: bytes | None) -> int:
        """Load."""
        return self.memory.load(folder, names, key=key)

    def detach(self) -> None:
        """Take the memory off."""
        self.memory.detach()

    def reattach(self) -> None:
        """Put it back."""
        self.memory.reattach()

    def pause(self) -> None:
        """Off for everybody."""
        self.memory.pause()

    def resume(self) -> None:
        """On again."""
        self.memory.resume()

    # -- what is there ---------------------------------------------------------------------------

    def state(self) -> State:
        """What is stored, as the tensors say it, not as a table of it was kept."""
        core = self.memory._core
        ring, table, ledger = core.ring, core.table, core.ring.ledger
        with core.lock:  # whoever takes it puts right what was left half-way, or by a fork
            pass
        names = {info.number: info.name for info in table.infos()}
        columns = (ring.created, ring.session, ring.positions, ring.token_ids)
        per_slot = zip(*(c.tolist() for c in columns), ledger.deadline.tolist(),
                       ledger.pinned.tolist(), ring.successor.tolist(), strict=True)  # fmt: skip
        rows, numbers = [], ring.created.tolist()
        for slot, (number, owner, at, ids, deadline, pinned, after) in enumerate(per_slot):
            if owner == NO_SESSION:
                continue
            held = [place >= 0 for place in at]
            rows.append(Row(
                number, names.get(owner, f"no session {owner}"),
                ledger.tiers[ledger.tier_of(slot)].name,
                tuple(p for p, h in zip(at, held, strict=True) if h),
                tuple(t for t, h in zip(ids, held, strict=True) if h), deadline, pinned,
                numbers[after] if after >= 0 else 0,
            ))  # fmt: skip
        return State(
            rows,
            [(i.name, i.position, i.ephemeral, i.ttl) for i in table.infos()],
            {tier.name: ledger.free(at) for at, tier in enumerate(ledger.tiers)},
            core.keeper.evicted,
            core.keeper.expired,
        )

    def wrong_slots(self) -> list[str]:
        """Where the host's account, the columns and the tensors do not agree."""
        return wrong_slots(self.memory)

    def samples(self, numbers: list[int]) -> dict[int, dict[str, bytes]]:
        """Some bytes of each part of some blocks: a token in the middle of what each layer has."""
        ring, found = self.memory._core.ring, {}
        ledger, wanted = ring.ledger, set(numbers)
        for slot in ledger.slots_of(None).tolist():
            number = int(ledger.number[slot])
            if number not in wanted:
                continue
            # The last token that is stored: a text's first one is indexed as zeros.
            token = int((ring.positions[slot] >= 0).nonzero()[-1])
            tier = ledger.tier_of(slot)
            at = slot - ledger.tiers[tier].first
            found[number] = {
                name: (part[at, token] if part.ndim == 3 else part[at, 0, token]).numpy().tobytes()
                for name, part in ring.parts[tier].items()
                if part.ndim > 2
            }
        return found


def _padded(rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def _told(passages: Sequence[Any]) -> list[tuple[str, int, int, tuple[int, ...]]]:
    return [(p.session, p.start, p.end, p.token_ids) for p in passages]


def wrong_slots(memory: cmr.Memory) -> list[str]:
    """Where a store's account, its columns and its tensors do not agree."""
    ring = memory._core.ring
    ledger, wrong = ring.ledger, []
    held = ledger.owner != NO_SESSION
    for name, here, there in (
        ("session", ledger.owner, ring.session),
        ("number", ledger.number, torch.where(ring.session >= 0, ring.created, 0)),
    ):
        if not here.equal(there.cpu()):
            wrong.append(f"{name}: the host's account differs from the column")
    for at, tier in enumerate(ledger.tiers):
        free = ledger._free[at]
        mine = set(range(tier.first, tier.end)) - set(ledger.held(at).tolist())
        if len(set(free)) != len(free) or set(free) != mine:
            wrong.append(f"{tier.name}: free slots do not add up")
    empty = (~held).nonzero()[:, 0]
    for number, tier in enumerate(ledger.tiers):
        here = empty[tier.holds(empty)] - tier.first
        for name, part in ring.parts[number].items():
            if len(here) and bool(part[here].contiguous().view(torch.uint8).any()):
                wrong.append(f"{tier.name}: {name} of an empty slot is not 0")
    if bool(ring.token_ids[empty].any()) or bool((ring.positions[empty] >= 0).any()):
        wrong.append("token ids or positions of an empty slot are not 0")
    for name, links in (("successor", ring.successor), ("predecessor", ring.predecessor)):
        at = (links >= 0).nonzero()[:, 0]
        back = ring.predecessor if name == "successor" else ring.successor
        if len(at) and not bool((back[links[at]] == at).all()):
            wrong.append(f"{name}: leads to a block that does not lead back")
        if len(at) and not bool((ring.session[at] == ring.session[links[at]]).all()):
            wrong.append(f"{name}: leads to another session's block")
        if len(at) and not bool(held[links[at]].all()):
            wrong.append(f"{name}: leads to an empty slot")
    counts = {int(s): int((ledger.owner == s).sum()) for s in ledger.owner[held].unique()}
    if counts != {s: n for s, n in ledger._held.items() if n}:
        wrong.append("blocks of the sessions are miscounted")
    for session, slot in ledger._newest.items():
        if slot >= 0 and int(ledger.owner[slot]) != session:
            wrong.append("the newest block of a session is another's")
    return wrong


def saved_rows(folder: str, key: bytes | None) -> tuple[list[Row], list[str]]:
    """Blocks of a folder as its files say, and the names of its sessions."""
    saved = Saved.open(folder, key=key)
    names = {int(e["number"]): str(e["name"]) for e in saved.header["sessions"]}
    tiers = [name for name, _ in saved.header["tiers"]]
    c = saved.columns
    per_block = zip(saved.numbers.tolist(), saved.session.tolist(), c["tier"].tolist(),
                    c["positions"].tolist(), c["token_ids"].tolist(), c["deadline"].tolist(),
                    c["flags"].tolist(), strict=True)  # fmt: skip
    rows = []
    for number, owner, tier, at, ids, deadline, flags in per_block:
        held = [place >= 0 for place in at]
        rows.append(Row(
            number, names.get(owner, f"no session {owner}"), tiers[tier],
            tuple(p for p, h in zip(at, held, strict=True) if h),
            tuple(t for t, h in zip(ids, held, strict=True) if h), deadline, flags > 0,
        ))  # fmt: skip
    return rows, list(names.values())


@contextmanager
def at_time(clock: Any) -> Iterator[None]:
    """`time.time()` is what the clock says inside."""
    import time

    own, time.time = time.time, lambda: clock.now
    try:
        yield
    finally:
        time.time = own
