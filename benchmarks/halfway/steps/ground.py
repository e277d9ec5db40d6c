"""What every step stands on: places with memories, folders, and how the oracle is asked."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.halfway.oracle_of_text import (
    Change,
    Content,
    Gone,
    Kept,
    Shelf,
    Stored,
    Text,
    Window,
)
from benchmarks.halfway.steps.actor import VOCABULARY, Actor, Answer, saved_rows
from benchmarks.halfway.steps.remote import Remote
from benchmarks.halfway.steps.traces import left_in_tensors

BLOCK, WINDOW = 8, 24
NAMES = ("0", "1", "anna", "ben", "carl", "dora", "emil")
FOLDERS = ("a", "b", "sealed")
KEY = bytes(range(32))
SHORTEST = 5
"""Tokens that tell a block from any other by their bytes."""


class Failure(Exception):
    """The library did what the oracle does not know: a kind, and words for it."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class Clock:
    """What `time.time` says."""

    now = 1_000_000.0


class Place:
    """A memory with what the oracle knows of it.

    Attributes:
        name: of the place.
        strange: whether its model has other weights: folders are read by the same ones alone.
        actor: does what is told, here or in another process.
        here: whether that is this process.
        windows: of the caches in use.
        slots: blocks of all tiers together.
    """

    def __init__(self, name: str, strange: bool, actor: Any, settings: dict[str, Any]) -> None:
        self.name, self.strange, self.actor, self.settings = name, strange, actor, settings
        self.sinks, self.here = settings["sinks"], isinstance(actor, Actor)
        # Where everything that leaves a tier is exactly as much as comes, and nothing else may.
        self.stored = Stored(
            fills=settings["cleanup_threshold"] == 1.0 and settings["session_budget"] is None
        )
        self.windows: dict[int, Window] = {}
        tiers = ("budget", "working_budget", "long_term_budget")
        self.slots = sum(settings[name] for name in tiers) // BLOCK
        self.attached = self.active = True

    @property
    def texts(self) -> dict[str, Text]:
        """Its sessions."""
        return self.stored.texts

    @property
    def blocks(self) -> dict[int, Kept]:
        """What it stores."""
        return self.stored.blocks

    @property
    def pins(self) -> bool:
        """Whether something is pinned: then there may be no room."""
        return any(kept.pinned for kept in self.blocks.values())


def drawn_settings(rng: random.Random) -> dict[str, Any]:
    """Settings of a memory with small tiers."""

    def blocks(*choices: int) -> int:
        return BLOCK * rng.choice(choices)

    return {
        "window": WINDOW, "block_size": BLOCK, "left_context": 8, "recall_context": 16,
        "threshold": 0.0, "refresh": 2, "blocks": 3, "sinks": rng.choice((0, 4)), "sink_guard": 0,
        "store": rng.choice(("kv", "kv", "states", "tokens")),
        "budget": blocks(8, 12, 20, 60), "working_budget": blocks(0, 6, 12),
        "long_term_budget": blocks(0, 8, 16), "long_term_store": rng.choice(("tokens", "kv")),
        "eviction_strategy": rng.choice(("oldest", "lru_relevance", "lru", "relevance")),
        "cleanup_threshold": rng.choice((1.0, 1.0, 0.75)),
        "session_budget": rng.choice((None, None, 8 * BLOCK)),
        "max_sessions": rng.choice((None, None, 5)), "ttl": rng.choice((None, None, 500.0)),
        "cache_size": rng.choice((None, 4)),
    }  # fmt: skip


class Ground:
    """Places with memories on their models, and folders that all of them save to and load from.

    Args:
        seed: of all that is drawn.
        models: two of the same weights and one of others.
        folder: an empty folder.
        far: does what is told in another process, on a model of the same weights; None: nobody.

    Attributes:
        refused: how often each operation was refused, by its name and the error's.
        log: the last operations.
        files: whether folders may be changed.
    """

    def __init__(
        self, seed: str, models: Sequence[Any], folder: Path, far: Remote | None = None
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.clock, self.folder = Clock(), folder
        self.refused: Counter[str] = Counter()
        self.log: list[str] = []
        self.files = True
        self._next = 0
        self.settings = settings = drawn_settings(rng)
        # The second one may have other tiers, so that blocks loaded there get other slots.
        tiers = {name: drawn_settings(rng)[name] for name in ("budget", "working_budget")}
        self.places = [
            Place(name, number > 1, Actor(models[number], own), own)
            for number, (name, own) in enumerate(
                (("first", settings), ("second", settings | tiers), ("other", settings))
            )
        ]
        if far is not None:
            far.begin(self.clock, settings)
            self.places.append(Place("far", False, far, settings))
        self.shelves = {name: Shelf() for name in FOLDERS}
        self.contents: dict[tuple[int, ...], Content] = {}
        self._seen: dict[int, Content] = {}
        self.repeated: list[bytes] = []

    def close(self) -> None:
        """Take all memories off."""
        for place in self.places:
            place.actor.do("detach")

    def begin(self, place: Place, kind: str) -> None:
        """Note which operation is next."""
        self.log = [*self.log[-60:], f"{place.name}: {kind}"]

    # -- help ------------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """Note what is being done."""
        self.log[-1] += f" {what}"

    def fail(self, kind: str, what: str) -> None:
        """It is wrong."""
        raise Failure(kind, what)

    def fresh(self, count: int) -> list[int]:
        """Tokens that stand nowhere else in this order."""
        return [self.rng.randrange(1, VOCABULARY) for _ in range(count)]

    def some(self, place: Place) -> Text | None:
        """A session of it."""
        return self.rng.choice(list(place.texts.values())) if place.texts else None

    def free_name(self, place: Place) -> str:
        """A name that no session of it has."""
        names = [name for name in NAMES if name not in place.texts]
        self._next += 1
        return self.rng.choice(names) if names else f"new{self._next}"

    def made(self, place: Place, name: str, **terms: Any) -> Text:
        """The session of a name, made as the library makes one."""
        if name not in place.texts:
            self._next += 1
            text = Text(name, self._next, ttl=place.settings["ttl"])
            place.texts[name] = text
        text = place.texts[name]
        for term, value in terms.items():
            if value is not None:
                setattr(text, term, value)
        return text

    def fits(self, place: Place, names: Iterable[str]) -> bool:
        """Whether sessions of these names can be there at once."""
        most = place.settings["max_sessions"]
        new = set(names) - set(place.texts)
        return most is None or not new or len(place.texts) + len(new) <= most

    def went(self, place: Place, answer: Answer, may_refuse: bool) -> bool:
        """Whether it was done; where it was refused, all must be as it was."""
        if not answer.error:
            return True
        self.refused[f"{self.log[-1].split()[1]}: {answer.error}"] += 1
        self.tell(f"-> {answer.error}: {answer.said[:160]}")
        if not may_refuse:
            self.fail("refused", f"{answer.error}: {answer.said}")
        self.settle(place)
        return False

    def settle(self, place: Place, change: Change | None = None) -> None:
        """Hold a memory against the oracle after an operation."""
        known = set(place.blocks)
        answer = place.actor.do("state")
        for kind, what in place.stored.agree(answer.value, change or Change(), self.clock.now):
            self.fail(kind, what)
        new = [number for number in place.blocks if number not in known]
        if new:
            found = place.actor.do("samples", new).value
            for number in new:
                self.see(place.blocks[number].content, found[number])

    def see(self, content: Content, samples: dict[str, bytes]) -> None:
        """Take note of the bytes of a block; what was seen of it before must be the same."""
        self.contents.setdefault(content.tokens, content)
        self._seen[id(content)] = content
        for name, raw in samples.items():
            if content.samples.setdefault(name, raw) != raw:
                self.fail("foreign", f"{name} is that of another block")

    def recalled(self, texts: Sequence[Text], found: list[Any]) -> None:
        """Rows read their own session's text alone, word for word, and nothing forgotten."""
        for text, passages in zip(texts, found, strict=True):
            for session, start, end, tokens in passages:
                at = set(range(start, end)) - text.holes
                mine = tuple(text.tokens[p] for p in sorted(at) if p < len(text.tokens))
                right = session == text.name and tokens == mine and not at & text.forgotten
                if text.ended or not right:
                    words = f"{text.name!r} recalls {session!r} {start} to {end}"
                    self.fail("foreign", f"{words}: {tokens}, not {mine}")

    def key(self, folder: str) -> bytes | None:
        """What encrypts a folder."""
        return KEY if folder == "sealed" else None

    def look_at_folders(self, place: Place, gone: Gone | None) -> None:
        """Hold all folders against the oracle; those that a memory knows may have changed."""
        for name, shelf in self.shelves.items():
            if place.name in shelf.known or gone is None:
                self.look_at_folder(name, gone)
            else:
                unsure = replace(gone, sure=False) if place.name in shelf.before else None
                self.look_at_folder(name, unsure)

    def look_at_folder(self, name: str, gone: Gone | None = None) -> None:
        """One folder: what its files say."""
        shelf = self.shelves[name]
        if not shelf.there:
            return
        rows, names = saved_rows(str(self.folder / name), self.key(name))
        for kind, what in shelf.agree(rows, names, gone, self.clock.now):
            self.fail(kind, f"{name}: {what}")

    def look_at_everything(self) -> None:
        """All memories and folders, slot by slot and byte by byte."""
        for place in self.places:
            self.settle(place)
            for wrong in place.actor.do("wrong_slots").value:
                self.fail("slots", f"{place.name}: {wrong}")
            found = place.actor.do("samples", list(place.blocks)).value
            for number, kept in place.blocks.items():
                self.see(kept.content, found[number])
        for name, shelf in self.shelves.items():
            self.look_at_folder(name)
            if shelf.there and name != "sealed":
                self._look_at_files(name, shelf)

    def _look_at_files(self, name: str, shelf: Shelf) -> None:
        """Files hold ids and states of what the oracle knows in them, and of nothing else."""
        raw = [path.read_bytes() for path in (self.folder / name).rglob("*") if path.is_file()]
        # As they lie side by side: text that was read twice may stand across two blocks.
        there = ids_as_saved([token for kept in shelf.blocks for token in kept.content.tokens])
        for tokens in self.contents:
            needle = ids_as_saved(tokens)
            if sum(t > 0 for t in tokens) < SHORTEST or needle in there:
                continue
            if any(needle in data for data in raw):
                self.fail("resurrected", f"{name}: ids of a block that is not in it")
        origins = {kept.content.origin for kept in shelf.blocks}
        # Text that was read twice in the same surroundings has the same states.
        held = {states_of(kept.content) for kept in shelf.blocks}
        for content in self._seen.values():
            states = states_of(content)
            if content.origin in origins or not states or states in held:
                continue
            if any(states in data for data in raw):
                self.fail("resurrected", f"{name}: states of a block that is not in it")

    def look_at_tensors(self) -> None:
        """No tensor of this process holds ids or states of what was forgotten everywhere here."""
        here = [place for place in self.places if place.here]
        contents = [kept.content for place in here for kept in place.blocks.values()]
        stored = {content.origin for content in contents}
        held = {states_of(content) for content in contents}
        needles = {}
        for content in self._seen.values():
            if content.evicted or not content.forgotten or content.origin in stored:
                continue
            ids = struct.pack(f"<{len(content.tokens)}q", *content.tokens)
            # The last block of a text is filled up behind its tokens.
            said = ids_as_saved(content.tokens).rstrip(bytes(1))
            again = any(said in text for text in self.repeated)
            if sum(t > 0 for t in content.tokens) >= SHORTEST and not again:
                needles[ids] = "ids"
            states = states_of(content)
            if states and states not in held:
                needles[states] = "states"
        if found := left_in_tensors(needles):
            self.fail("resurrected", f"{found[0]} of a forgotten block are in a tensor")


def ids_as_saved(tokens: Sequence[int]) -> bytes:
    """Token ids as they stand in a file."""
    return struct.pack(f"<{len(tokens)}i", *tokens)


def states_of(content: Content) -> bytes:
    """A token's values (or states, or keys) at the last layer, which tell it from any other."""
    # At the first layer they would be those of the same token anywhere.
    names = sorted(name for name in content.samples if name.startswith(("keys.", "values.")))
    return content.samples[names[-1]] if names else b""
