"""Facts before they are planted: templates filled so that no two tell of the same entity."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.texts.entities import (
    DESCRIBED,
    FAMILIES,
    OF_FAMILIES,
    OTHERS,
    POOLS,
    REPEATED,
    WOMEN,
)
from benchmarks.texts.facts import Kind, with_numbers
from benchmarks.texts.haystack_facts import Told

RECURRING = 8  # family names that recur over the kinds of a haystack


@dataclass(frozen=True)
class MadeFact:
    """A fact before it is planted; `fill` are the values of its template's slots."""

    kind: Kind | Told
    sentence: str
    value: str
    accepted: tuple[str, ...]
    fill: dict[str, str]
    number: int  # of its kind in all haystacks of the length: which wording is asked


class FactDrawer:
    """Fills templates for one haystack: no entity and no answer twice within a kind."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.families = tuple(rng.sample(FAMILIES, RECURRING))
        self.used: dict[tuple[str, str], list[str]] = {}
        self.people: set[str] = set()

    def _one(self, kind: str, slot: str) -> str:
        pool = POOLS[slot]
        if slot == "last":
            pool = self.families if kind in OF_FAMILIES else OTHERS
        used = self.used.setdefault((kind, slot), [])
        if slot in REPEATED:
            again = used and self.rng.random() < 0.5
            value = used[-1] if again else self.rng.choice(pool)
        else:
            value = self.rng.choice([v for v in pool if v not in used])
        return value

    def _filled(self, kind: str, template: str) -> dict[str, str]:
        """Values for the slots of a template; people with the pronouns that go with them."""
        names = [slot for slot in POOLS if "{" + slot + "}" in template]
        while True:
            fill = {slot: self._one(kind, slot) for slot in names}
            person = f"{fill['first']} {fill['last']}" if "last" in fill else None
            if person is None or person not in self.people:
                break
        self.people.add(person or "")
        for slot, value in fill.items():
            self.used[kind, slot].append(value)
        if person is not None:
            woman = fill["first"] in WOMEN
            she, her = ("she", "her") if woman else ("he", "his")
            fill.update(she=she, She=she.title(), her=her, Her=her.title())
        return fill

    def make(self, kind: Kind | Told, number: int) -> MadeFact:
        """A fact of the kind."""
        fill = self._filled(kind.name, kind.sentence)
        told = self.used.setdefault((kind.name, "answer"), [])
        while True:
            value = kind.value.format(**self._filled(f"answer {kind.name}", kind.value))
            value = with_numbers(value, self.rng)
            if value not in told:
                break
        told.append(value)
        others = getattr(kind, "accepted", ())
        accepted = (value, *(a.format(*value.split()) for a in others))
        sentence = kind.sentence.format(value=value, **fill)
        for slot, names in DESCRIBED.items():
            if slot in fill:
                fill[f"other_{slot}"] = names.get(fill[slot], fill[slot])
        return MadeFact(kind, sentence, value, accepted, fill, number)
