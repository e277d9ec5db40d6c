"""Whose text is stored where, in lists and numbers alone: what a memory must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.halfway.steps.actor import Row, State


@dataclass(eq=False)
class Content:
    """What stands in a block, wherever copies of it lie.

    Attributes:
        tokens: its token ids as they are stored, 0 where one was not kept, up to the block's end.
        samples: some bytes of its parts by name, as they were first seen.
        origin: the same for what was made anew of it, with other bytes.
        forgotten: whether a copy of it was ever to be forgotten.
        evicted: whether a copy was evicted: whoever recalled it before may hold it.
    """

    tokens: tuple[int, ...]
    samples: dict[str, bytes] = field(default_factory=dict)
    origin: object = field(default_factory=object)
    forgotten: bool = False
    evicted: bool = False


@dataclass(eq=False)
class Text:
    """A session's text; `uid` is the same for what was saved of it and loaded again.

    `merged` are those of sessions that became part of it, `holes` positions whose tokens were never
    to be stored, and `forgotten` those of what was.
    """

    name: str
    uid: int
    ephemeral: bool = False
    ttl: float | None = None
    tokens: list[int] = field(default_factory=list)
    merged: set[int] = field(default_factory=set)
    holes: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    ended: bool = False

    @property
    def lasts(self) -> float:
        """Seconds until what it stores is forgotten."""
        return math.inf if self.ttl is None else self.ttl

    @property
    def uids(self) -> set[int]:
        """Its own and those of what became part of it."""
        return {self.uid, *self.merged}

    def copied(self, **other: Any) -> Text:
        """The same, and something else of it."""
        names = ("tokens", "merged", "holes", "forgotten")
        return replace(self, **{name: copy(getattr(self, name)) for name in names}, **other)

    def is_of(self, uids: Iterable[int]) -> bool:
        """Whether it is, or has in it, one of these."""
        return not self.uids.isdisjoint(uids)


@dataclass(frozen=True, eq=False)
class Kept:
    """A block that is stored: of which text, which positions and tokens of it."""

    text: Text
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    content: Content
    born: float
    deadline: float = math.inf
    pinned: bool = False


def pieces(
    text: Text, tokens: Sequence[int], size: int, now: float, keep: Sequence[int] | None = None
) -> list[Kept]:
    """The blocks that new tokens of a text become; the text is longer by them."""
    first, found = len(text.tokens), []
    text.tokens.extend(tokens)
    kept = [1] * len(tokens) if keep is None else keep
    text.holes.update(first + i for i, stored in enumerate(kept) if not stored)
    for start in range(0, len(tokens), size):
        at = [i for i in range(start, min(start + size, len(tokens))) if kept[i]]
        if not at:
            continue
        stored = tuple(
            tokens[i] if i < len(tokens) and kept[i] else 0 for i in range(start, start + size)
        )
        found.append(
            Kept(
                text,
                tuple(first + i for i in at),
                tuple(tokens[i] for i in at),
                Content(stored),
                now,
                now + text.lasts,
            )
        )
    return found


@dataclass(eq=False)
class Window:
    """What a cache holds of its rows: the sinks and the newest tokens.

    Attributes:
        texts: of the rows.
        fed: tokens that each row was given.
        left: tokens that left behind the sinks.
        followed: whether what leaves is stored.
    """

    texts: list[Text]
    sinks: int
    most: int
    block: int
    fed: list[list[int]]
    left: int = 0
    followed: bool = True

    def step(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens of each row that leave behind a forward of these."""
        for fed, row in zip(self.fed, rows, strict=True):
            fed.extend(row)
        over = len(self.fed[0]) - self.left - self.most
        if over <= 0:
            return [[] for _ in rows]
        count = -(-over // self.block) * self.block
        at = slice(self.sinks + self.left, self.sinks + self.left + count)
        self.left += count
        return [fed[at] for fed in self.fed]

    def rest(self) -> list[list[int]]:
        """What has not left, with the sinks where nothing has."""
        first = self.sinks + self.left if self.left else 0
        return [fed[first:] for fed in self.fed]


@dataclass(frozen=True)
class Change:
    """What an operation must have done.

    Attributes:
        new: blocks that came.
        gone: numbers of blocks that went, and must be nowhere.
        may_go: of a stored block, whether it may have been dropped for a copy of it.
        writes: whether others may have been evicted for what came.
        fills: whether no tier has room left where that was so.
    """

    new: list[Kept] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    may_go: Callable[[int, Kept], bool] = lambda number, kept: False
    writes: bool = False
    fills: bool = False


class Stored:
    """A memory as the oracle knows it.

    Attributes:
        texts: of its sessions, by name, in the order in which they were made.
        blocks: by number.
        fills: whether no more is evicted than has to be, of sessions that may sink.
    """

    def __init__(self, fills: bool) -> None:
        self.texts: dict[str, Text] = {}
        self.blocks: dict[int, Kept] = {}
        self.fills = fills
        self._evicted = self._expired = 0

    def of(self, text: Text) -> dict[int, Kept]:
        """The blocks of a text."""
        return {n: kept for n, kept in self.blocks.items() if kept.text is text}

    def rename(self, text: Text, to: str) -> None:
        """It keeps its place in the order."""
        self.texts = {to if t is text else name: t for name, t in self.texts.items()}
        text.name = to

    def end(self, text: Text) -> None:
        """No such session any more."""
        del self.texts[text.name]
        text.ended = True

    def merge(self, text: Text, into: Text) -> None:
        """One text behind another."""
        shift = len(into.tokens)
        for number, kept in self.of(text).items():
            moved = tuple(at + shift for at in kept.positions)
            self.blocks[number] = replace(kept, text=into, positions=moved)
        into.holes |= {at + shift for at in text.holes}
        into.forgotten |= {at + shift for at in text.forgotten}
        into.tokens += text.tokens
        into.merged |= text.uids
        self.end(text)

    def agree(self, state: State, change: Change, now: float) -> Iterator[tuple[str, str]]:
        """Takes over what is stored; gives kinds of what is wrong and words for it."""
        yield from self._sessions(state)
        before, there = self.blocks, {row.number: row for row in state.rows}
        if len(there) != len(state.rows):
            yield "foreign", "a number twice"
        waiting = {(kept.text.name, kept.positions): kept for kept in change.new}
        self.blocks = {}
        for number, row in there.items():
            kept = before.get(number) or waiting.pop((row.session, row.positions), None)
            if kept is None:
                yield "foreign", f"{_shown(row)} was never stored"
                continue
            self.blocks[number] = kept
            if number in change.gone:
                yield "resurrected", f"{_shown(row)} was forgotten"
            if (row.session, row.positions, row.tokens) != (
                kept.text.name, kept.positions, kept.tokens
            ):  # fmt: skip
                yield "foreign", f"{_shown(row)} is not {kept.text.name} {kept.positions[:2]}"
            if row.deadline != kept.deadline or row.pinned != kept.pinned:
                yield "lost", f"{_shown(row)}: terms {kept.deadline}, {kept.pinned} expected"
        yield from self._chains(state)
        missing = [(n, k) for n, k in before.items() if n not in there and n not in change.gone]
        in_time = [(n, k) for n, k in missing if k.deadline > now]
        out = [(n, k) for n, k in in_time if not change.may_go(n, k)]
        over = len(missing) - len(in_time)
        evicted, expired = state.evicted - self._evicted, state.expired - self._expired
        self._evicted, self._expired = state.evicted, state.expired
        unborn = list(waiting.values())
        for _, kept in missing:
            kept.content.evicted = True
        if any(kept.pinned for _, kept in out):
            yield "lost", "a block that is pinned is gone"
        if len(out) + over + len(unborn) != evicted + expired or expired > over + len(unborn):
            yield (
                "lost",
                (
                    f"{len(out)} and {over} over time are gone and {len(unborn)} did not come, "
                    f"{evicted} evicted and {expired} expired are counted"
                ),
            )
        if evicted and not change.writes:
            yield "lost", f"{evicted} were evicted for nothing"
        fills = (
            change.fills and self.fills and not any(text.ephemeral for text in self.texts.values())
        )
        if evicted and fills and any(state.free.values()):
            yield "lost", f"{evicted} were evicted with room left: {state.free}"

    def _chains(self, state: State) -> Iterator[tuple[str, str]]:
        """What is read behind a block is what stands behind it in the text."""
        for row in state.rows:
            if not row.after:
                continue
            one, other = self.blocks.get(row.number), self.blocks.get(row.after)
            if one is None or other is None or one.text is not other.text:
                yield "foreign", f"{_shown(row)} leads to another session's block, or to none"
            elif not set(range(row.positions[-1] + 1, other.positions[0])) <= one.text.holes:
                yield "foreign", f"{_shown(row)} leads to {other.positions[0]}"
            elif other.positions[0] <= row.positions[-1]:
                yield "foreign", f"{_shown(row)} leads back to {other.positions[0]}"

    def _sessions(self, state: State) -> Iterator[tuple[str, str]]:
        mine = [(t.name, len(t.tokens), t.ephemeral, t.ttl) for t in self.texts.values()]
        if state.sessions != mine:
            theirs = set(state.sessions)
            yield "lost", f"sessions {sorted(theirs ^ set(mine), key=str)[:4]} or their order"


@dataclass(frozen=True, eq=False)
class Gone:
    """What was forgotten and must be in no folder that knows of it.

    Attributes:
        must: of a saved block, whether it must be gone.
        may: whether it may be, as `sure` is.
        ended: the sessions that ended, by uid.
        may_end: of a session that was saved, whether it may have ended there, as `sure` is.
        sure: False where somebody else has saved over what the memory knew of a folder: then all
            of it may be gone, and nothing must be.
    """

    must: Callable[[Kept], bool]
    may: Callable[[Kept, bool], bool]
    ended: frozenset[int]
    may_end: Callable[[Text, bool], bool]
    sure: bool = True


class Shelf:
    """A folder as the oracle knows it.

    Attributes:
        texts: its sessions as they were saved.
        blocks: likewise.
        known: to which memories, by their places.
        before: to which it was before somebody else saved over it.
        there: whether anything was ever saved in it.
        strange: whether by a model of other weights.
    """

    def __init__(self) -> None:
        self.texts: dict[str, Text] = {}
        self.blocks: list[Kept] = []
        self.known: set[str] = set()
        self.before: set[str] = set()
        self.there = self.strange = False

    def put(self, stored: Stored, names: Sequence[str], now: float) -> None:
        """What a memory saves of these sessions."""
        texts = {name: stored.texts[name] for name in stored.texts if name in names}
        saved = {text: text.copied() for text in texts.values()}
        self.texts = {name: saved[text] for name, text in texts.items()}
        self.blocks = [
            replace(kept, text=saved[kept.text])
            for kept in stored.blocks.values()
            if kept.text in saved and kept.deadline > now
        ]
        self.there = True

    def agree(
        self, rows: list[Row], names: list[str], gone: Gone | None, now: float
    ) -> Iterator[tuple[str, str]]:
        """The same as for a memory; what may or may not have gone is taken as it is."""
        if gone is not None:
            self.texts = {
                name: text
                for name, text in self.texts.items()
                if (name in names and (not gone.sure or text.uid not in gone.ended))
                or not (text.uid in gone.ended or gone.may_end(text, gone.sure))
            }
        if sorted(names) != sorted(self.texts):
            yield "lost", f"sessions {sorted(self.texts)} expected in a folder, got {names}"
        waiting = {(kept.text.name, kept.positions): kept for kept in self.blocks}
        self.blocks = []
        for row in rows:
            kept = waiting.pop((row.session, row.positions), None)
            if kept is None or kept.tokens != row.tokens:
                yield "foreign", f"{_shown(row)} in a folder was never saved there"
                continue
            self.blocks.append(kept)
            if gone is not None and gone.sure and gone.must(kept):
                yield "resurrected", f"{_shown(row)} was forgotten and is in a folder"
            if row.deadline != kept.deadline or row.pinned != kept.pinned:
                yield "lost", f"{_shown(row)} in a folder: other terms"
        for kept in waiting.values():
            if kept.deadline > now and not (gone is not None and gone.may(kept, gone.sure)):
                yield "lost", f"{kept.text.name} {kept.positions[:2]} is gone from a folder"


def _shown(row: Row) -> str:
    return f"block {row.number} of {row.session!r} at {row.positions[0]} ({row.tier})"
