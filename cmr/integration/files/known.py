"""What is known of a folder that this memory was saved to or loaded from."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cmr.memory.store import Saved

Key = bytes | str | None


@dataclass
class Known:
    """A folder that this memory was saved to or loaded from.

    Attributes:
        id: of the save that was in it; with another one it is somebody else's.
        key: what opens it.
        forgotten: how often something was forgotten when the folder was last written.
        uids: ids of the sessions there that were this memory's.
        due: when the time of the first block there is over; `inf`: never.
        sessions: number of a session here to its number there; None: the same.
        blocks: the same of blocks; None: a later save can go on from what is there.
        then: the save's id once it is without what was noted to be forgotten there.
    """

    id: str
    key: Key
    forgotten: int
    uids: frozenset[str]
    due: float
    sessions: Mapping[int, int] | None = None
    blocks: Mapping[int, int] | None = None
    then: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def ids(self) -> tuple[str, str]:
        """Ids of the saves that may be there without somebody else having saved."""
        return self.id, self.then

    def renew(self, saved: Saved) -> None:
        """What is there is now without what was to be forgotten."""
        self.due, self.then = saved.due, secrets.token_hex(16)

    def behind(self, before: Known, saved: Saved) -> Known:
        """The same where the folder was known before: what was this memory's there still is."""
        sessions, blocks = before.sessions, before.blocks
        if sessions is None:
            sessions = {n: n for n in (int(entry["number"]) for entry in sessions_in(saved.header))}
        if blocks is None:
            blocks = {number: number for number in saved.numbers.tolist()}
        return replace(
            self,
            uids=self.uids | before.uids,
            sessions={**sessions, **(self.sessions or {})},
            blocks=None if self.blocks is None else {**blocks, **self.blocks},
        )

    def here(self, numbers: torch.Tensor) -> set[int]:
        """The numbers here of blocks that have these there."""
        if self.blocks is None:
            return set(numbers.tolist())
        wanted = set(numbers.tolist())
        return {here for here, there in self.blocks.items() if there in wanted}


def sessions_in(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions that a header has, as far as they are any."""
    entries = header.get("sessions")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("number"), int)
        and isinstance(entry.get("name"), str)
    ]


def uids_in(entry: Mapping[str, Any]) -> set[str]:
    """The ids of a session in a header; none in folders of older versions."""
    uids = entry.get("uids")
    return {uid for uid in uids if isinstance(uid, str)} if isinstance(uids, list) else set()


def there(numbers: Iterable[int], known: Mapping[int, int] | None) -> torch.Tensor:
    """What numbers of here are there, `[n]` int64, as far as they are known."""
    if known is not None:
        numbers = [known[number] for number in numbers if number in known]
    return torch.tensor(sorted(numbers), dtype=torch.int64)
