"""Steps that save and load."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.halfway.oracle_of_text import Change
from benchmarks.halfway.steps.ground import FOLDERS, Ground, Place


class FolderSteps(Ground):
    """See the module."""

    def op_save(self, place: Place) -> None:
        rng, folder = self.rng, self.rng.choice(FOLDERS)
        names = None
        if rng.random() < 0.4 and place.texts:
            names = rng.sample(list(place.texts), min(2, len(place.texts)))
        self.tell(f"{folder} {names}")
        answer = place.actor.do("save", str(self.folder / folder), names, self.key(folder))
        shelf = self.shelves[folder]
        # Somebody else may have saved or forgotten there since.
        others = shelf.there and shelf.known | shelf.before != {place.name}
        if not self.went(place, answer, may_refuse=others):
            self.look_at_folder(folder)
            return
        self.settle(place)
        chosen = [t.name for t in place.texts.values() if not t.ephemeral]
        if names is not None:
            chosen = [name for name in chosen if name in names]
        shelf.put(place.stored, chosen, self.clock.now)
        shelf.before |= shelf.known - {place.name}
        shelf.known = {place.name}
        shelf.strange = place.strange
        self.look_at_folder(folder)

    def op_load(self, place: Place) -> None:
        rng, folder = self.rng, self.rng.choice(FOLDERS)
        shelf = self.shelves[folder]
        names = None
        if rng.random() < 0.6 and shelf.texts:
            names = [rng.choice(list(shelf.texts))]
        self.tell(f"{folder} {names}")
        answer = place.actor.do("load", str(self.folder / folder), names, self.key(folder))
        wanted = list(shelf.texts) if names is None else names
        clash = any(name in place.texts for name in wanted) or not self.fits(place, wanted)
        foreign = shelf.there and shelf.strange != place.strange
        refusing = not shelf.there or foreign or clash or not place.attached
        # There may be no room for it.
        if not self.went(place, answer, may_refuse=True):
            if not refusing and "room for" not in answer.said:
                self.fail("refused", f"{answer.error}: {answer.said}")
            return
        if refusing:
            self.fail("foreign", "a folder that must be refused was loaded")
        new = []
        for name in wanted:
            saved = shelf.texts[name]
            text = saved.copied()
            place.texts[name] = text
            # Whose time is over is left out of a folder that is opened.
            mine = [k for k in shelf.blocks if k.text is saved and k.deadline > self.clock.now]
            new += [replace(kept, text=text) for kept in mine]
        shelf.known.add(place.name)
        self.settle(place, Change(new, writes=True))
