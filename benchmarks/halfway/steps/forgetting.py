"""Steps by which something goes: forgetting, time that passes, tidying up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.halfway.oracle_of_text import Change, Content, Gone, Kept, Text
from benchmarks.halfway.steps.ground import Ground, Place


class ForgetSteps(Ground):
    """See the module."""

    def op_forget(self, place: Place) -> None:
        rng, text = self.rng, self.some(place)
        if text is None:
            return
        what: dict[str, Any] = {"files": self.files and rng.random() < 0.8}
        if rng.random() < 0.7:
            what["session"] = text.name
        kinds = ("ids", "text", "older_than")
        chosen = [kind for kind in kinds if rng.random() < 0.4]
        if "session" not in what and not chosen:
            chosen = [rng.choice(kinds)]
        among = place.stored.of(text) if "session" in what else dict(place.blocks)
        alone = not chosen
        fits: list[Callable[[Kept], bool]] = []
        others = [other for other in place.texts.values() if other is not text]

        def meant(other: Text, sure: bool) -> bool:
            """Whether a text in a folder may be, or may be part of, the one that is forgotten."""
            if "session" not in what or other.uid in text.uids:
                return True
            if sure and any(other.uid == stays.uid for stays in others):
                return False
            # One of that name that ended here and stayed there is meant, too.
            living = {uid for stays in (text, *others) for uid in stays.uids}
            before = other.name == text.name and not other.is_of(living)
            return other.is_of(text.uids) or before

        if "ids" in chosen:
            if not among:
                return
            numbers = set(rng.sample(list(among), min(3, len(among))))
            what["ids"] = sorted(numbers)
            among = {n: kept for n, kept in among.items() if n in numbers}
            these = {kept.content.origin for kept in among.values()}
            fits.append(lambda kept: kept.content.origin in these)
        whole: set[Kept] = set()
        if "text" in chosen:
            span = self._span(text)
            what["text"] = span
            if what["files"]:
                whole = self._whole_in_folders(place, text if "session" in what else None, span)
            parts = {(kept.content.origin, kept.text.uid) for kept in whole}
            among = {
                n: k
                for n, k in among.items()
                if _touches(k, place.stored.of(k.text).values(), span)
                or any(k.content.origin is of and k.text.is_of([uid]) for of, uid in parts)
            }
        if "older_than" in chosen:
            what["older_than"] = rng.choice((0.0, 5.0, 60.0))
            before = self.clock.now - what["older_than"]
            among = {n: kept for n, kept in among.items() if kept.born <= before}
            fits.append(lambda kept: kept.born <= before)
        self.tell(str({k: v if k != "text" else len(v) for k, v in what.items()}))
        answer = place.actor.do("forget", what)
        # Blocks whose time is over may be gone by now.
        over = any(kept.deadline <= self.clock.now for kept in place.blocks.values())
        if not self.went(place, answer, may_refuse="ids" in what and over):
            return
        ended: set[int] = set()
        if alone:
            place.stored.end(text)
            ended = text.uids
        gone = set(among)
        of_content: dict[object, set[int]] = {}
        for kept in among.values():
            of_content.setdefault(kept.content.origin, set()).update(kept.text.uids)
        for kept in among.values():
            self.forgotten(kept)
        self.settle(place, Change(gone=gone))
        if not what["files"]:
            return

        # What stands twice in a text, as a merged copy does, was meant in one of the places.
        left = {(k.content.origin, uid) for k in place.blocks.values() for uid in k.text.uids}

        # Of a session that was loaded twice a folder alone says which of the two is in it.
        twice = {other.uid for other in others} if "session" in what else set()
        ended -= twice

        def must(kept: Kept) -> bool:
            origin, own = kept.content.origin, kept.text.uid
            if own in twice:
                return False
            here = set() if (origin, own) in left else of_content.get(origin, set())
            old = "older_than" not in what or kept.born <= before
            return own in ended | here or (kept in whole and "ids" not in what and old)

        def may(kept: Kept, sure: bool) -> bool:
            if must(kept):
                return True
            alike = "ids" not in what and all(fit(kept) for fit in fits)
            return meant(kept.text, sure) and (alike or kept.content.origin in of_content)

        def may_end(other: Text, sure: bool) -> bool:
            return alone and meant(other, sure)

        self.look_at_folders(place, Gone(must, may, frozenset(ended), may_end))

    def forgotten(self, kept: Kept) -> None:
        """Take note of what must not come back."""
        kept.text.forgotten.update(kept.positions)
        kept.content.forgotten = True

    def _whole_in_folders(self, place: Place, text: Text | None, span: Sequence[int]) -> set[Kept]:
        """Blocks of a text in known folders that an occurrence lies in: half of it may be gone."""
        shelves = [shelf for shelf in self.shelves.values() if place.name in shelf.known]
        return {
            kept
            for shelf in shelves
            for kept in shelf.blocks
            if (text is None or kept.text.uid in text.uids)
            and _touches(kept, [other for other in shelf.blocks if other.text is kept.text], span)
        }

    def _span(self, text: Text) -> list[int]:
        if not text.tokens or self.rng.random() < 0.1:
            return self.fresh(4)
        at = self.rng.randrange(len(text.tokens))
        return text.tokens[at : at + self.rng.choice((3, 6, 12))]

    def op_clear(self, place: Place) -> None:
        if self.rng.random() < 0.7:
            return  # rarely, or there would never be much
        text = self.some(place) if self.rng.random() < 0.7 else None
        self.tell("all" if text is None else text.name)
        answer = place.actor.do("clear", None if text is None else text.name)
        if not self.went(place, answer, may_refuse=False):
            return
        among = dict(place.blocks) if text is None else place.stored.of(text)
        for kept in among.values():
            self.forgotten(kept)
        for one in list(place.texts.values()) if text is None else [text]:
            place.stored.end(one)
        self.settle(place, Change(gone=set(among)))

    def op_wait(self, place: Place) -> None:
        self.clock.now += self.rng.choice((1.0, 5.0, 30.0, 200.0))

    def op_inspect(self, place: Place) -> None:
        """What people are shown is what is stored, and nothing whose time is over."""
        text = self.some(place) if self.rng.random() < 0.5 else None
        answer = place.actor.do("inspect", None if text is None else text.name)
        if not self.went(place, answer, may_refuse=False):
            return
        self.settle(place)
        self._none_over(place)
        shown = {number: (name, start, ids) for number, name, start, ids in answer.value}
        mine = place.blocks if text is None else place.stored.of(text)
        want = {n: (k.text.name, k.positions[0], k.tokens) for n, k in mine.items()}
        if shown != want:
            self.fail("lost", f"inspect shows {sorted(set(shown) ^ set(want))[:4]} or other words")

    def _none_over(self, place: Place) -> None:
        over = [n for n, kept in place.blocks.items() if kept.deadline <= self.clock.now]
        if over:
            self.fail("resurrected", f"blocks {over[:4]} are there, and their time is over")

    def op_consolidate(self, place: Place) -> None:
        if not place.attached:
            return
        answer = place.actor.do("consolidate")
        if not self.went(place, answer, may_refuse=False):
            return
        before, dropped = dict(place.blocks), []

        def repeated(number: int, kept: Kept) -> bool:
            dropped.append(kept)
            return True

        self.settle(place, Change(may_go=repeated))
        self._none_over(place)
        for kept in dropped:
            if not _stands_again(kept, before.values()):
                self.fail("lost", f"{kept.text.name} {kept.positions[:2]} stands nowhere else")
        if len(dropped) != answer.value[1]:
            self.fail("lost", f"{len(dropped)} were dropped for others, {answer.value[1]} told")
        self._made_anew(place)

    def op_lift(self, place: Place) -> None:
        text = self.some(place)
        if text is None or not place.attached:
            return
        if self.went(place, place.actor.do("lift", text.name), may_refuse=False):
            self.settle(place)
            self._made_anew(place)

    def _made_anew(self, place: Place) -> None:
        """What rose from where only codes or ids are is made anew: it has other bytes."""
        if not place.settings["long_term_budget"]:
            return
        found = place.actor.do("samples", list(place.blocks)).value
        for number, kept in place.blocks.items():
            fresh = Content(kept.content.tokens, found[number], kept.content.origin)
            known = kept.content.samples
            if any(known.get(name) != raw for name, raw in found[number].items()):
                place.blocks[number] = replace(kept, content=fresh)


def _touches(kept: Kept, others: Iterable[Kept], span: Sequence[int]) -> bool:
    """Whether an occurrence of a span has a token in a block; of blocks of one text."""
    stored = {
        at: token
        for other in others
        for at, token in zip(other.positions, other.tokens, strict=True)
    }
    first, last = kept.positions[0] - len(span) + 1, kept.positions[-1]
    return any(
        all(stored.get(start + i) == token for i, token in enumerate(span))
        and not set(kept.positions).isdisjoint(range(start, start + len(span)))
        for start in range(first, last + 1)
    )


def _stands_again(kept: Kept, others: Iterable[Kept]) -> bool:
    """Whether all tokens of a block stand in their order somewhere else in the session's text."""
    mine = [o for o in others if o.text is kept.text and o.positions != kept.positions]
    if any(other.tokens == kept.tokens for other in mine):  # with the same gaps, or others
        return True
    text = {
        at: token for other in mine for at, token in zip(other.positions, other.tokens, strict=True)
    }
    run = [text.get(at, -1) for at in range(min(text, default=0), max(text, default=-1) + 1)]
    wanted = list(kept.tokens)
    return any(run[at : at + len(wanted)] == wanted for at in range(len(run) - len(wanted) + 1))
