"""A memory in another process, which does what it is told as one here does."""

from __future__ import annotations

import multiprocessing
import traceback
from typing import Any

import torch

from benchmarks.halfway.steps.actor import Actor, Answer, at_time, tiny


class _Clock:
    now = 0.0


class Remote:
    """A process with a model; its memory begins anew at each `begin`.

    Args:
        seed: of the model's weights.
    """

    def __init__(self, seed: int) -> None:
        # Forked before anything is attached here: it shares nothing but the folders.
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, seed), daemon=True)
        self._process.start()
        theirs.close()
        self._clock: Any = None

    def begin(self, clock: Any, settings: dict[str, Any]) -> None:
        """Another memory with these settings, at the times of a clock."""
        self._clock = clock
        self.do("begin", settings)

    def do(self, command: str, *args: Any) -> Answer:
        """Run a command there.

        Raises:
            RuntimeError: it raised what is no typed error there.
        """
        self._pipe.send((self._clock.now, command, args))
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"in the other process: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        # Said, as the other process holds this end of the pipe, too, and would never see it closed.
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Any, seed: int) -> None:
    torch.set_num_threads(1)
    model, actor, clock = tiny(seed), None, _Clock()
    with at_time(clock):
        while True:
            asked = pipe.recv()
            if asked is None:
                return
            clock.now, command, args = asked
            try:
                if command == "begin":
                    actor, answer = Actor(model, *args), Answer()
                else:
                    assert actor is not None
                    answer = actor.do(command, *args)
            except Exception:
                answer = traceback.format_exc(limit=-6)
            pipe.send(answer)
