"""Steps that bring text: reading, forwards with caches, `generate`, absorbing; and searching."""

from __future__ import annotations

from benchmarks.halfway.oracle_of_text import Change, Kept, Window, pieces
from benchmarks.halfway.steps.actor import Answer
from benchmarks.halfway.steps.ground import BLOCK, NAMES, WINDOW, Ground, Place, ids_as_saved


class TextSteps(Ground):
    """See the module."""

    def op_read(self, place: Place) -> None:
        rng, count = self.rng, self.rng.choice((1, 1, 2, 3))
        names = rng.sample(NAMES, count)
        rows = [self.fresh(rng.randrange(1, 60)) for _ in names]
        repeated = place.texts.get(names[0])
        if repeated is not None and len(repeated.tokens) >= 2 * BLOCK and rng.random() < 0.2:
            at = rng.randrange(len(repeated.tokens) - BLOCK)
            rows[0] = repeated.tokens[at : at + 40]
            self.repeated.append(ids_as_saved(rows[0]))
        if place.pins:
            # There may be no room then. One window of texts that are there is read or is not.
            names = [name for name in names if name in place.texts] or list(place.texts)[:1]
            rows = [row[: 2 * BLOCK] for row in rows[: len(names)]]
        keep = None
        if rng.random() < 0.15:
            keep = [[int(rng.random() < 0.7) for _ in row] for row in rows]
        self.tell(f"{names} {[len(row) for row in rows]}{' with holes' if keep else ''}")
        answer = place.actor.do("read", names, rows, keep, rng.random() < 0.3)
        fits = self.fits(place, names)
        if not self.went(place, answer, may_refuse=not fits or not place.attached or place.pins):
            return
        if not fits or not place.attached:
            self.fail("refused", "a read that must be refused went through")
        new = []
        for row, name in enumerate(names):
            text, kept = self.made(place, name), None if keep is None else keep[row]
            new += pieces(text, rows[row], BLOCK, self.clock.now, kept)
        self.settle(place, Change(new, writes=True, fills=True))

    def op_forward(self, place: Place) -> None:
        """A prompt, or some more tokens into a cache."""
        rng = self.rng
        key = rng.choice(list(place.windows)) if place.windows and rng.random() < 0.75 else None
        if key is None:
            self._begin(place)
            return
        window = place.windows[key]
        ended = any(text.ended for text in window.texts)
        names = [text.name for text in window.texts]
        said = None if ended or rng.random() < 0.4 or not place.attached else names
        count = rng.choice((1, 1, 2, 5, 12, 30))
        rows = [self.fresh(count) for _ in names]
        self.tell(f"cache {key} of {names}{' (ended)' if ended else ''}, {count} tokens")
        answer = place.actor.do("forward", key, said, rows)
        self._fed(place, key, window, rows, answer)

    def _begin(self, place: Place) -> None:
        rng = self.rng
        unnamed = rng.random() < 0.2
        names = ["0", "1"] if unnamed else [n for n in rng.sample(NAMES, 2) if n in place.texts]
        names = names[: rng.choice((1, 2))]
        if not names or not place.attached:
            return
        rows = [self.fresh(length) for length in [rng.randrange(1, 70)] for _ in names]
        self._next += 1
        key = self._next
        self.tell(f"new cache {key} of {names}, {len(rows[0])} tokens")
        answer = place.actor.do("forward", key, None if unnamed else names, rows)
        if not place.active:
            place.actor.do("drop", key)
            self.settle(place)
            return
        if not self.went(place, answer, may_refuse=not self.fits(place, names) or place.pins):
            return
        texts = [self.made(place, name) for name in names]
        # As `WindowLayer` says it: whole blocks leave, once the window holds more than it may.
        window = Window(texts, place.sinks, place.sinks + WINDOW, BLOCK, [[] for _ in names])
        place.windows[key] = window
        self._fed(place, key, window, rows, answer)

    def _fed(
        self, place: Place, key: int, window: Window, rows: list[list[int]], answer: Answer
    ) -> None:
        if not self.went(place, answer, may_refuse=place.pins):
            self._drop(place, key)
            return
        window.followed &= place.attached and place.active
        window.followed &= not any(text.ended for text in window.texts)
        if place.attached and place.active:
            self.recalled(window.texts, answer.value)
        new = self._left(place, window, rows)
        self.settle(place, Change(new, writes=True, fills=True))
        if len(window.fed[0]) > 200 or len(place.windows) > 3:
            self._drop(place, key)

    def _left(self, place: Place, window: Window, rows: list[list[int]]) -> list[Kept]:
        """The blocks of what leaves a window behind a forward of these rows."""
        left = zip(window.texts, window.step(rows), strict=True)
        if not window.followed:
            return []
        found = [
            kept for text, tokens in left for kept in pieces(text, tokens, BLOCK, self.clock.now)
        ]
        return found[-place.slots :]  # of more at once than there are slots, the last ones

    def _drop(self, place: Place, key: int) -> None:
        place.windows.pop(key, None)
        place.actor.do("drop", key)

    def op_generate(self, place: Place) -> None:
        rng = self.rng
        names = [name for name in rng.sample(NAMES, 2) if name in place.texts]
        if not names or not place.attached:
            return
        count, more = rng.randrange(2, 60), rng.choice((1, 2, 4, 9))
        rows = [self.fresh(count) for _ in names]
        self.tell(f"{names}, {count} tokens and {more}")
        answer = place.actor.do("generate", names, rows, more, rng.randrange(1 << 30))
        if not self.went(place, answer, may_refuse=place.pins):
            return
        said, recalled = answer.value
        if not place.active:
            self.settle(place)
            return
        texts = [place.texts[name] for name in names]
        window = Window(texts, place.sinks, place.sinks + WINDOW, BLOCK, [[] for _ in names])
        # A long prompt is fed half a window at a time, counted from its end.
        ends = [*range(count - WINDOW, 0, -(WINDOW // 2))][::-1]
        steps = [(a, b) for a, b in zip([0, *ends], [*ends, count], strict=True) if a < b]
        whole = [[*row, *tail] for row, tail in zip(rows, said, strict=True)]
        steps += [(at, at + 1) for at in range(count, count + more - 1)]
        new = []
        for start, stop in steps:
            new += self._left(place, window, [row[start:stop] for row in whole])
        self.settle(place, Change(new, writes=True, fills=True))
        self.recalled(texts, recalled)

    def op_absorb(self, place: Place) -> None:
        if not place.windows:
            return
        key = self.rng.choice(list(place.windows))
        window = place.windows[key]
        alive = window.followed and not any(text.ended for text in window.texts)
        self.tell(f"cache {key}")
        answer = place.actor.do("absorb", key)
        refusing = not alive or not place.attached
        rest = window.rest()
        self._drop(place, key)
        if not self.went(place, answer, may_refuse=refusing or place.pins):
            return
        if refusing:
            self.fail("refused", "a cache that must be refused was absorbed")
        new = []
        for text, tokens in zip(window.texts, rest, strict=True):
            new += pieces(text, tokens, BLOCK, self.clock.now)
        self.settle(place, Change(new, writes=True, fills=True))

    def op_search(self, place: Place) -> None:
        text = self.some(place)
        if text is None or not place.attached:
            return
        answer = place.actor.do("search", text.name, self.fresh(self.rng.randrange(1, 12)))
        if self.went(place, answer, may_refuse=False):
            self.settle(place)
            self.recalled([text], answer.value)
