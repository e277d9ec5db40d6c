"""Operations broken off at a point, and everything that is looked at afterwards."""

from __future__ import annotations

import contextvars
import gc
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cmr
from benchmarks.halfway import oracle
from benchmarks.halfway.afterwards import PROBE, Answers, bare, dressed, in_a_thread, said, unnamed
from benchmarks.halfway.scenes import SCENES, SETTINGS, Scene, Stage, begin
from benchmarks.halfway.told import TOLD, unlike_told
from benchmarks.halfway.trap import Place, Trap
from benchmarks.users.stress import tiny
from cmr.integration.memory import ATTACHED
from cmr.integration.requests.scope import OPEN
from cmr.memory.store import Saved

State = tuple[oracle.View, oracle.Frozen]


class Point(NamedTuple):
    """Where an operation is broken off, and by what; `kind` and `error` as for `Trap`."""

    operation: str
    kind: str
    at: int
    error: str


class Failure(NamedTuple):
    """What was wrong after an operation was broken off at a point."""

    point: Point
    place: Place | None
    wrong: tuple[str, ...]


class World:
    """The model, what is stored at first, and what is to be expected of each operation.

    A context manager: inside, nothing that was there before is looked at for what was forgotten.

    Args:
        folder: an empty one, for everything that is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        self._undisturbed = contextvars.copy_context()
        self.model = tiny()
        with self._attached() as memory:  # what a process makes once is there from here on
            memory.read(PROBE)
        self._plain = self.model(PROBE, use_cache=False).logits
        self._bare = dressed(self.model)
        with self._attached() as memory:
            begin(memory)
            self._stored = oracle.Frozen(memory)
            self._needles = {name: oracle.needles(memory, name) for name in memory.sessions}
            memory.save(folder / "template")
        self._states: dict[str, list[State]] = {}
        self._answers: dict[tuple[str, int], dict[str, Any]] = {}

    def __enter__(self) -> World:
        gc.collect()
        gc.freeze()
        self._hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__()
        sys.unraisablehook = self._hook
        gc.unfreeze()

    def counted(
        self, operations: Sequence[str], kinds: Sequence[str]
    ) -> dict[tuple[str, str], list[Place]]:
        """The points that each operation comes by, of each kind."""
        found = {}
        for operation in operations:
            for kind in kinds:
                with self._new_folder() as folder:
                    stage, trap = self._stage(SCENES[operation], folder), Trap(kind)
                    made = trap.run(partial(SCENES[operation].call, stage))
                    (stage.memory or made).detach()
                found[operation, kind] = trap.places
        return found

    def broken_off(self, point: Point) -> list[Failure]:
        """Breaks an operation off, and looks at what is left: a failure, or none."""
        # In a context of its own: what is left of one point must not be seen in the next one.
        trap = Trap(point.kind, point.at, point.error)
        try:
            wrong = contextvars.copy_context().run(self._looked_at, point, trap)
        except Exception as error:  # so far gone that it cannot even be looked at
            wrong = [f"it cannot be looked at: {said(error)}"]

        self._tidy()
        return [Failure(point, trap.hit, tuple(wrong))] if wrong else []

    # -- inside ----------------------------------------------------------------------------------

    def _ask(self, memory: cmr.Memory, folder: Path, whole: bool = True) -> Answers:
        return Answers(self.model, self._plain, self._bare).of(memory, folder / "after", whole)

    def _tidy(self) -> None:
        """Lets nothing that is left of one point come into the next one."""
        OPEN.clear()
        if hasattr(self.model, ATTACHED) or dressed(self.model) != self._bare:
            self.model = tiny()

    def _attached(self) -> cmr.Memory:
        return cmr.attach(self.model, **SETTINGS)

    @contextmanager
    def _new_folder(self) -> Iterator[Path]:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def _stage(self, scene: Scene, folder: Path) -> Stage:
        """All that an operation needs, up to where it begins."""
        there = folder / "saved"
        if scene.begins != "stored":
            shutil.copytree(self._folder / "template", there)
        if scene.begins == "none":
            return Stage(self.model, None, there)
        memory = self._attached()
        if scene.begins == "stored":
            self._stored.thaw(memory)
        if scene.begins == "folder":
            memory.load(there)
        stage = Stage(self.model, memory, there)
        if scene.prepare is not None:
            scene.prepare(stage)
        return stage

    def seen(self, operation: str) -> list[State]:
        """The states that others may see while an operation runs undisturbed."""
        if operation not in self._states:
            scene = SCENES[operation]
            with self._new_folder() as folder:
                stage = self._stage(scene, folder)
                with oracle.watched(stage.memory) as seen:
                    scene.call(stage)
                stage.memory.detach()
            wrong = [what for view, _ in seen for what in unlike_told(view, TOLD[operation], False)]
            wrong += unlike_told(seen[-1][0], TOLD[operation], True)
            if wrong:
                raise RuntimeError(f"{operation}, undisturbed: {wrong[:5]}")
            self._states[operation] = seen

            # They hold what was forgotten, and are none of the memory's tensors.
            gc.collect()
            gc.freeze()
        return self._states[operation]

    def _expected(self, operation: str, number: int) -> dict[str, Any]:
        """What a memory that came to one of these states undisturbed gives to all that follow."""
        key = operation, number
        if key not in self._answers:
            state = self.seen(operation)[number][1]

            def ask() -> Answers:
                with self._new_folder() as folder, self._attached() as memory:
                    state.thaw(memory)
                    return self._ask(memory, folder)

            asked = self._undisturbed.copy().run(ask)
            if asked.wrong:
                raise RuntimeError(f"{operation}, state {number}, undisturbed: {asked.wrong}")
            self._answers[key] = asked.given
        return self._answers[key]

    def _looked_at(self, point: Point, trap: Trap) -> list[str]:
        scene = SCENES[point.operation]
        self.seen(point.operation if scene.begins != "none" else "pin")
        with self._new_folder() as folder:
            stage, raised = self._stage(scene, folder), None
            try:
                made = trap.run(partial(scene.call, stage))
            except BaseException as error:
                made, raised = None, error
            if trap.hit is None:  # the call was over before
                (stage.memory or made).detach()
                return [] if raised is None else [f"undisturbed: {said(raised)}"]
            whole = raised is None
            del raised  # it holds the frames that broke, with what they had at hand
            return self._left(point, scene, stage, made, whole, folder)

    def _left(
        self,
        point: Point,
        scene: Scene,
        stage: Stage,
        made: Any,
        whole: bool,
        folder: Path,
    ) -> list[str]:
        """What is wrong once an operation was broken off; `whole`: it went on all the same."""
        memory, wrong = stage.memory, list[str]()
        again = partial(scene.call, stage)
        if memory is None:
            return self._left_of_attaching(made, again, folder)
        try:
            if point.at % 2:
                in_a_thread(lambda: memory.tokens)
            _ = memory.tokens
        except Exception as error:
            return [f"a harmless call: {said(error)}"]
        seen = self.seen(point.operation)
        wrong += oracle.unaccounted(memory)
        now = oracle.view(memory)
        known = [number for number, state in enumerate(seen) if state[0] == now]
        if not known:
            nearest = min((now.apart(state[0]) for state in seen), key=len)
            wrong.append(f"a state that nobody was to see: {nearest}")
        elif whole and known[-1] != len(seen) - 1:
            wrong.append("it seems to be done, and is not")
        if memory._core.lock.mine:
            wrong.append("the lock is held")
        if scene.again and not whole:
            done = bool(known) and known[-1] == len(seen) - 1
            try:
                again()
            except (cmr.CMRError, ValueError) as error:
                if not done:
                    wrong.append(f"the same call again: {said(error)}")
            except Exception as error:
                wrong.append(f"the same call again: {said(error)}")
            known = [len(seen) - 1]
            difference = oracle.view(memory).apart(seen[-1][0])
            if difference != "nothing":
                wrong.append(f"the same call again is not what was to be: {difference}")
            wrong += [f"{what}, after the same call again" for what in oracle.unaccounted(memory)]
        if scene.forgets and (scene.again or known[-1:] == [len(seen) - 1]):
            wrong += self._not_forgotten(self._needles[scene.forgets], stage, scene)
        if scene.writes:
            new = scene.begins != "folder"
            wrong += self._written(stage.folder / "new" if new else stage.folder)
        if not memory.attached:
            wrong += bare(self.model, self._plain, self._bare)
            memory.reattach()
        asked = self._ask(memory, folder, whole=point.at % 3 == 0)
        wrong += asked.wrong
        self._tidy()
        if known:
            wrong += _unlike(asked.given, self._expected(point.operation, known[-1]))
        return list(dict.fromkeys(wrong))

    def _left_of_attaching(self, made: Any, again: Callable[[], Any], folder: Path) -> list[str]:
        """What is wrong once an attaching was broken off: nothing, or all of it is there."""
        memory = made or getattr(self.model, ATTACHED, None)
        if memory is not None:
            memory.detach()
        wrong = bare(self.model, self._plain, self._bare)
        try:
            memory = again()
        except Exception as error:
            return [*wrong, f"the same call again: {said(error)}"]
        if not memory.sessions:
            self._stored.thaw(memory)
        asked = self._ask(memory, folder)

        # The first state of a scene that begins with what is stored at first.
        self._tidy()
        return wrong + asked.wrong + _unlike(asked.given, self._expected("pin", 0))

    def _not_forgotten(self, needles: dict[bytes, str], stage: Stage, scene: Scene) -> list[str]:
        wrong = [f"forgotten, and in a tensor: {what}" for what in oracle.in_tensors(needles)[:1]]
        if scene.begins == "folder":
            left = oracle.in_files(needles, stage.folder)
            if left:  # the next opening may finish it
                Saved.open(stage.folder)
                left = oracle.in_files(needles, stage.folder)
            wrong += [f"forgotten, and in a file: {what}" for what in left[:1]]
        return wrong

    def _written(self, folder: Path) -> list[str]:
        try:
            Saved.open(folder).verify()
        except cmr.CMRError as error:
            return [f"what was saved: {said(error)}"]
        return ["a folder holds more than it names"] if unnamed(folder) else []


def _unlike(given: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"afterwards, {name}: {str(found)[:90]}"
        for name, found in given.items()
        if found != expected.get(name)
    ]
