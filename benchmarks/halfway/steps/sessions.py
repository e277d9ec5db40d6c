"""Steps about sessions, and about a memory as a whole."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.halfway.oracle_of_text import Change, Kept
from benchmarks.halfway.steps.ground import NAMES, Ground, Place


class SessionSteps(Ground):
    """See the module."""

    def op_session(self, place: Place) -> None:
        rng, name = self.rng, self.rng.choice(NAMES)
        ephemeral, ttl = (
            rng.choice((None, None, True, False)),
            rng.choice((None, None, 50.0, 900.0)),
        )
        there = place.texts.get(name)
        differs = there is not None and ephemeral is not None and ephemeral != there.ephemeral
        self.tell(f"{name} {ephemeral} {ttl}")
        answer = place.actor.do("session", name, ephemeral, ttl)
        refusing = differs or not self.fits(place, [name]) or not place.attached
        if not self.went(place, answer, may_refuse=refusing):
            return
        if refusing:
            self.fail("refused", "terms that must be refused were taken")
        if there is None:
            self.made(place, name, ephemeral=bool(ephemeral), ttl=ttl)
        elif ttl is not None:
            there.ttl = ttl
        self.settle(place)

    def op_rename(self, place: Place) -> None:
        text = self.some(place)
        if text is None:
            return
        to = self.rng.choice((self.free_name(place), self.rng.choice(NAMES)))
        taken = to in place.texts
        self.tell(f"{text.name} {to}")
        if self.went(place, place.actor.do("rename", text.name, to), may_refuse=taken):
            place.stored.rename(text, to)
            self.settle(place)

    def op_fork(self, place: Place) -> None:
        text = self.some(place)
        if text is None:
            return
        to = self.free_name(place)
        self.tell(f"{text.name} {to}")
        held = place.stored.of(text)
        answer = place.actor.do("fork", text.name, to)
        # No room: what is there may be pinned, or nobody's above a fair share.
        if not self.went(place, answer, may_refuse=True):
            return
        copy = self.made(place, to)
        copy = place.texts[to] = text.copied(name=to, uid=copy.uid)
        copy.merged = set()  # what became part of the original has not become part of this one
        new = [
            Kept(copy, k.positions, k.tokens, k.content, k.born,
                 min(k.deadline, k.born + copy.lasts))
            for k in held.values()
        ]  # fmt: skip
        self.settle(place, Change(new, writes=True))

    def op_merge(self, place: Place) -> None:
        text, into = self.some(place), self.some(place)
        if text is None or into is None:
            return
        refusing = text is into or text.ephemeral != into.ephemeral
        self.tell(f"{text.name} {into.name}")
        answer = place.actor.do("merge", text.name, into.name)
        if not self.went(place, answer, may_refuse=refusing):
            return
        if refusing:
            self.fail("refused", "two sessions that must stay apart became one")
        place.stored.merge(text, into)
        self.settle(place)

    def op_pin(self, place: Place) -> None:
        if not place.blocks:
            return
        numbers = self.rng.sample(list(place.blocks), min(2, len(place.blocks)))
        pinned = self.rng.random() < 0.4
        self.tell(f"{numbers} {pinned}")
        # A full half of a tier, and blocks whose time is over and that are gone by now.
        if not self.went(place, place.actor.do("pin", numbers, pinned), may_refuse=True):
            return
        for number in numbers:
            place.blocks[number] = replace(place.blocks[number], pinned=pinned)
        self.settle(place)

    def op_detach(self, place: Place) -> None:
        if self.rng.random() < 0.5 and place.attached:
            return
        place.actor.do("detach" if place.attached else "reattach")
        place.attached = not place.attached
        self.settle(place)

    def op_pause(self, place: Place) -> None:
        if not place.attached or (place.active and self.rng.random() < 0.5):
            return
        place.actor.do("pause" if place.active else "resume")
        place.active = not place.active
        self.settle(place)
