"""Session names, their numbers and their terms."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from cmr.errors import ConfigError, SessionNameError, UnknownSessionError
from cmr.memory.journal import Journal, all_or_nothing
from cmr.memory.seen import Texts

# The number that owns nothing: empty slots carry it and rows without a memory look for it.
NO_SESSION = -1
MAX_NAME, MAX_SESSIONS = 1024, 1 << 20
# Not by Unicode's classes: a name that one version of Python takes is one for all of them.
_NAME = re.compile(f"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{{1,{MAX_NAME}}}")


def fit_name(name: str) -> bool:
    """Whether a text may name a session: 1 to `MAX_NAME` characters that can be shown.

    Without control characters, line ends, characters that turn the order of writing round, and
    halves of characters, which are no valid UTF-8.
    """
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session.

    Attributes:
        name: its name.
        number: what the store's session column holds for it; never given twice.
        position: position that its next token will have.
        ephemeral: whether its blocks stay on the device: they never reach another tier or a file.
        ttl: seconds after which a block of it is forgotten; None: never.
        adapters: names of the model's adapters that were in effect when its text was read; None:
            the model has none.
        uids: random 128 bits as 32 hexadecimal digits, by which it is known again in files whatever
            it is called there, and behind them those of sessions that were merged into it. A copy
            by `fork` has its own, one that was loaded those that it was saved with.
    """

    name: str
    number: int
    position: int = 0
    ephemeral: bool = False
    ttl: float | None = None
    adapters: tuple[str, ...] | None = None
    uids: tuple[str, ...] = ()


class SessionTable:
    """Names of sessions and the numbers that the store's session column holds.

    `limit`: sessions at once; `ttl`: seconds that what they store lives, where they do not say;
    `journal`: what changes are noted in, where others change together with the table;
    `text_keys` gives the keys of texts, none of them twice.
    """

    def __init__(
        self, limit: int | None = None, ttl: float | None = None, journal: Journal | None = None
    ) -> None:
        self.journal = journal or Journal()
        self._limit, self._ttl = limit, ttl
        self._numbers: dict[str, int] = {}
        self._infos: dict[int, SessionInfo] = {}
        self._texts: dict[int, Texts] = {}
        self._next = 0
        self.text_keys = itertools.count()

    def __len__(self) -> int:
        return len(self._numbers)

    def names(self) -> list[str]:
        """Names of all sessions, oldest first."""
        return list(self._numbers)

    def infos(self) -> list[SessionInfo]:
        """What is known of each session, oldest first."""
        return [self._infos[number] for number in self._numbers.values()]

    def find(self, name: str) -> int:
        """The session's number, or `NO_SESSION` when there is no such session."""
        return self._numbers.get(name, NO_SESSION)

    def require(self, name: str) -> int:
        """The session's number; raises `UnknownSessionError` when there is no such session."""
        if name not in self._numbers:
            # None of their names: whoever reads this may be one user of many.
            raise UnknownSessionError(
                f"no session named {name!r} among {len(self._numbers)}. "
                "Reading with sessions=[...] creates one, and so does session(name, create=True); "
                "memory.sessions names them all."
            )
        return self._numbers[name]

    @staticmethod
    def check(*names: str) -> None:
        """Raises `TypeError` or `SessionNameError` for what is no session name."""
        for name in names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"a session name is a non-empty string, got {name!r}")
            if not fit_name(name):
                more = "..." if len(name) > 80 else ""
                raise SessionNameError(
                    f"a session name of at most {MAX_NAME} characters, none of which is a control "
                    f"character or half of one, expected, got {len(name)}: {name[:80]!r}{more}"
                )

    def check_room(self, names: Iterable[str]) -> None:
        """Raises `ConfigError` where making the new ones of these sessions is one too many."""
        new = {name for name in names if name not in self._numbers}
        limit = MAX_SESSIONS if self._limit is None else min(self._limit, MAX_SESSIONS)
        if new and len(self) + len(new) > limit:
            raise ConfigError(
                f"max_sessions: at most {limit} sessions at once, there are {len(self)} and "
                f"{len(new)} more are asked for; end one with forget(session=...)"
            )

    @all_or_nothing
    def create(self, name: str, ephemeral: bool | None = None, ttl: float | None = None) -> int:
        """The session's number; the session is made when there is none of that name.

        Terms that are not given stay as they are; ValueError where it would no longer be ephemeral.
        """
        self.check(name)
        if name not in self._numbers:
            self.check_room([name])
            self.journal.item(self._numbers, name)
            self.journal.item(self._infos, self._next)
            self.journal.attributes(self, "_next")
            # Never a number again, so a slot of an ended session is never read by a later one.
            self._numbers[name] = self._next
            uids = (secrets.token_hex(16),)
            info = SessionInfo(name, self._next, 0, bool(ephemeral), ttl or self._ttl, uids=uids)
            self._infos[self._next] = info
            self._next += 1
            return info.number
        number = self._numbers[name]
        info = self._infos[number]
        if ephemeral is not None and ephemeral != info.ephemeral:
            kind = "ephemeral" if info.ephemeral else "not ephemeral"
            raise ValueError(f"session {name!r} is {kind}, which is settled when it is made")
        if ttl is not None:
            self.journal.item(self._infos, number)
            self._infos[number] = replace(info, ttl=ttl)
        return number

    @all_or_nothing
    def restore(self, info: SessionInfo) -> int:
        """Take in a session that was saved, under a new number; its name must be free."""
        number = self.create(info.name, info.ephemeral, info.ttl)
        uids = info.uids or self._infos[number].uids  # none: saved before there were any
        self._infos[number] = replace(info, number=number, uids=uids)
        return number

    @all_or_nothing
    def rename(self, name: str, to: str) -> None:
        """Give a session another name, which must be free; it keeps its place in the order."""
        number = self.require(name)
        self.check(to)
        if to in self._numbers:
            raise ValueError(f"there is a session named {to!r} already")
        self.journal.attributes(self, "_numbers")
        self.journal.item(self._infos, number)
        self._numbers = {to if n == name else n: v for n, v in self._numbers.items()}
        self._infos[number] = replace(self._infos[number], name=to)

    def name_of(self, number: int) -> str:
        """The name of a live session's number."""
        if number not in self._infos:
            raise UnknownSessionError(f"no session has the number {number}")
        return self._infos[number].name

    def info(self, number: int) -> SessionInfo:
        """What is known of a live session."""
        return self._infos[number]

    def terms(self, number: int) -> tuple[bool, float | None]:
        """Whether a session is ephemeral, and how many seconds what it stores lives."""
        info = self._infos.get(number)
        return (False, None) if info is None else (info.ephemeral, info.ttl)

    def alive(self, numbers: Iterable[int]) -> bool:
        """Whether none of these numbers' sessions has ended."""
        return all(number in self._infos for number in numbers)

    def advance(self, number: int, tokens: int) -> int:
        """Reserve `tokens` positions in the session's text; returns the first of them."""
        info = self._infos[number]
        self.journal.item(self._infos, number)
        self._infos[number] = replace(info, position=info.position + tokens)
        return info.position

    def position(self, number: int) -> int:
        """Position that the session's next token will have."""
        return self._infos[number].position

    def texts(self, number: int) -> Texts:
        """The texts that a session was sent, see `cmr.memory.seen`."""
        return self._texts.get(number, {})

    def note_texts(self, number: int, texts: Texts) -> None:
        """Note what a session was sent, in the place of what was noted before."""
        self.journal.item(self._texts, number)
        self._texts[number] = texts

    def keep_texts_at(self, number: int, positions: torch.Tensor) -> None:
        """Let go of the ids of a session's texts but at some positions `[n]` of its text."""
        if not self.texts(number):
            return
        kept = {key: text.only(positions) for key, text in self.texts(number).items()}
        self.note_texts(number, {key: text for key, text in kept.items() if len(text)})

    def note_adapters(self, number: int, names: tuple[str, ...] | None) -> None:
        """Note the adapters that are in effect when a session's text is read."""
        self.journal.item(self._infos, number)
        self._infos[number] = replace(self._infos[number], adapters=names)

    @all_or_nothing
    def remove(self, name: str, into: int | None = None) -> int:
        """Forget the name; returns the number that it had.

        `into`: the session that it was merged into, which files know by its ids, too, from then on.
        """
        number = self.require(name)
        if into is not None:
            uids = dict.fromkeys(self._infos[into].uids + self._infos[number].uids)
            self.journal.item(self._infos, into)
            self._infos[into] = replace(self._infos[into], uids=tuple(uids))
        # A new table: taken back, the name stands where it stood among the others.
        self.journal.attributes(self, "_numbers")
        self.journal.item(self._infos, number)
        self.journal.item(self._texts, number)
        self._numbers = {known: its for known, its in self._numbers.items() if known != name}
        del self._infos[number]
        self._texts.pop(number, None)
        return number
