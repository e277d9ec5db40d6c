"""Session names and their numbers."""

from __future__ import annotations

from collections.abc import Iterable

from cmr.errors import UnknownSessionError

NO_SESSION = -1
"""The number that owns nothing: empty slots carry it and rows without a memory look for it."""


class SessionTable:
    """Names of sessions and the numbers that the ring buffer's session column holds.

    A number is never given twice, so a slot of an ended session can never be read by a later one
    of the same name.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._positions: dict[int, int] = {}
        self._next = 0

    def names(self) -> list[str]:
        """Names of all sessions, oldest first."""
        return list(self._numbers)

    def find(self, name: str) -> int:
        """The session's number, or `NO_SESSION` when there is no such session."""
        return self._numbers.get(name, NO_SESSION)

    def require(self, name: str) -> int:
        """The session's number; raises `UnknownSessionError` when there is no such session."""
        if name not in self._numbers:
            known = ", ".join(repr(n) for n in self._numbers) or "none yet"
            raise UnknownSessionError(
                f"no session named {name!r}; known sessions: {known}. "
                "Reading with sessions=[...] creates one, and so does session(name, create=True)."
            )
        return self._numbers[name]

    @staticmethod
    def check(*names: str) -> None:
        """Raises `TypeError` for what is no session name."""
        for name in names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"a session name is a non-empty string, got {name!r}")

    def create(self, name: str) -> int:
        """The session's number; the session is made when there is none of that name."""
        self.check(name)
        if name not in self._numbers:
            self._numbers[name] = self._next
            self._positions[self._next] = 0
            self._next += 1
        return self._numbers[name]

    def name_of(self, number: int) -> str:
        """The name of a live session's number."""
        for name, value in self._numbers.items():
            if value == number:
                return name
        raise UnknownSessionError(f"no session has the number {number}")

    def alive(self, numbers: Iterable[int]) -> bool:
        """Whether none of these numbers' sessions has ended."""
        return all(number in self._positions for number in numbers)

    def advance(self, number: int, tokens: int) -> int:
        """Reserve `tokens` positions in the session's text; returns the first of them."""
        first = self._positions[number]
        self._positions[number] = first + tokens
        return first

    def position(self, number: int) -> int:
        """Position that the session's next token will have."""
        return self._positions[number]

    def remove(self, name: str) -> int:
        """Forget the name; returns the number that it had."""
        number = self.require(name)
        del self._numbers[name]
        del self._positions[number]
        return number
