"""A forked process goes on with what is stored here, and what it reads is never here."""

from __future__ import annotations

import os
import traceback

from benchmarks.halfway.steps.ground import Failure, Ground, Place

CHILD = 6
"""Operations of a forked process."""


class ProcessSteps(Ground):
    """See the module."""

    def op_child(self, place: Place) -> None:
        lower = {
            one.name: {r.number for r in one.actor.do("state").value.rows if r.tier == "long_term"}
            for one in self.places
            if one.here
        }
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os._exit(self._live_on(theirs, lower))
        os.close(theirs)
        # Beside it: whatever the two share would show in one of them.
        for _ in range(2):
            self.go_on()
        with os.fdopen(ours) as said:
            words = said.read()
        os.waitpid(child, 0)
        if words != "well":
            kind, _, what = words.partition(": ")
            self.fail(kind, f"in a forked process: {what}")
        for one in self.places:
            self.settle(one)

    def _live_on(self, pipe: int, lower: dict[str, set[int]]) -> int:
        """What the child does; tells in one line how it went."""
        said = "well"
        try:
            # What the other process does to folders meanwhile, nobody here knows.
            self.files, self.shelves = False, {}
            self.rng.seed(self.rng.random())
            self.places = [place for place in self.places if place.here]
            for place in self.places:
                self._without_dropped(place, lower[place.name])
            for _ in range(CHILD):
                self.go_on()
            self.look_at_everything()
        except Failure as failure:
            said = f"{failure.kind}: {failure} ({self.log[-1]})"
        except BaseException:
            said = "crash: " + " / ".join(traceback.format_exc(limit=-4).splitlines())
        with os.fdopen(pipe, "w") as told:
            told.write(said)
        return 0

    def _without_dropped(self, place: Place, lower: set[int]) -> None:
        """A child may be without what lay in the file of the last tier: all of it, or none."""
        there = {row.number for row in place.actor.do("state").value.rows}
        missing = set(place.blocks) - there
        if missing and missing != lower:
            self.fail("lost", f"of {len(lower)} blocks in the last tier {len(missing)} are gone")
        for number in missing:
            del place.blocks[number]

    def go_on(self) -> None:
        """One more operation, of those that change no folder."""
        raise NotImplementedError
