"""Ways in which users go on beside each other: in threads, in tasks, in turns; or alone."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator

import cmr
from benchmarks.users.user import Answer, User

EXPECTED = (cmr.CMRError, ValueError)
"""What an operation may raise; anything else is an error of the library."""


class Outcome:
    """Answers of each user, and what went wrong."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.errors: list[str] = []

    def note(self, user: User, operate: Callable[[], Answer]) -> None:
        """Do an operation and keep its answer; a typed error is an answer, too."""
        try:
            answer = operate()
        except EXPECTED as error:
            answer = [type(error).__name__]
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}"]
            self.errors.append(f"{user.name}: {answer[0]}")
        self.answers.setdefault(user.name, []).append(answer)


def last_of(steps: Iterator[Answer]) -> Answer:
    """What an operation gives in the end."""
    answer: Answer = []
    for answer in steps:  # noqa: B007
        pass
    return answer


def alone(users: list[User], operations: int) -> Outcome:
    """One user after the other, in one thread."""
    out = Outcome()
    for user in users:
        for _ in range(operations):
            out.note(user, lambda user=user: last_of(user.next()))
    return out


def in_threads(users: list[User], operations: int) -> Outcome:
    """A thread a user."""
    out = Outcome()

    def work(user: User) -> None:
        for _ in range(operations):
            out.note(user, lambda: last_of(user.next()))

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def in_tasks(users: list[User], operations: int) -> Outcome:
    """A task a user; every other operation runs in a thread that inherits the task's context."""
    out = Outcome()

    async def work(user: User) -> None:
        with user.memory.session(user.name):
            for number in range(operations):
                await asyncio.sleep(0)
                if number % 2:
                    await asyncio.to_thread(out.note, user, lambda: last_of(user.next()))
                    continue
                steps, answer = user.next(), []
                try:
                    for answer in steps:  # noqa: B007
                        await asyncio.sleep(0)
                except EXPECTED as error:
                    answer = [type(error).__name__]
                out.answers.setdefault(user.name, []).append(answer)

    async def everybody() -> None:
        await asyncio.gather(*(work(user) for user in users))

    asyncio.run(everybody())
    return out


def in_turns(users: list[User], operations: int) -> Outcome:
    """Generators in one thread, each driven by one step in its turn."""
    out = Outcome()

    def work(user: User) -> Iterator[None]:
        for _ in range(operations):
            steps, answer = user.next(), []
            while True:
                try:
                    answer = next(steps)
                except StopIteration:
                    break
                except EXPECTED as error:
                    answer = [type(error).__name__]
                    break
                yield
            out.answers.setdefault(user.name, []).append(answer)

    going = [work(user) for user in users]
    while going:
        for one in list(going):
            try:  # each in a copy of the context, as web frameworks drive them
                contextvars.copy_context().run(next, one)
            except StopIteration:
                going.remove(one)
    return out


MODES = {"threads": in_threads, "tasks": in_tasks, "turns": in_turns}
