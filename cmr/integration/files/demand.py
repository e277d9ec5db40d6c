"""What one call wants forgotten, as it is told again in a folder that may be somebody else's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cmr.errors import CorruptMemoryError
from cmr.integration.core import Core
from cmr.integration.files.known import Known, sessions_in, there, uids_in
from cmr.memory.spans import standing
from cmr.memory.store import Saved
from cmr.memory.store.outstanding import Note


@dataclass(frozen=True)
class Demand:
    """What one call wants forgotten.

    Attributes:
        name: of the session that is meant; None: of all.
        number: its number here; None: of all.
        uids: its ids, or those of all sessions.
        others: numbers of the sessions that stay, where one is meant.
        other_uids: their ids.
        ends: whether the session is forgotten whole, and ends.
        ids: numbers here of the blocks that are meant; None: of any.
        span: text or token ids that they must hold a part of; None: any.
        born_by: when they must have been stored, in seconds since the epoch; None: whenever.
        found: numbers here of the blocks that fit.
        texts: of each of their rows of token ids a digest: nothing of a text is kept.
    """

    name: str | None
    number: int | None
    uids: frozenset[str]
    others: frozenset[int] = frozenset()
    other_uids: frozenset[str] = frozenset()
    ends: bool = False
    ids: frozenset[int] | None = None
    span: str | Sequence[int] | None = None
    tokenizer: Any = field(default=None, repr=False)
    born_by: float | None = None
    found: frozenset[int] = frozenset()
    texts: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, core: Core, session: str | None, **wanted: Any) -> Demand:
        """A demand for a session that there is, or all; whoever holds `core.lock` makes it."""
        table = core.table
        number = None if session is None else table.require(session)
        stay = [i for i in table.infos() if number is not None and i.number != number]
        meant = [i for i in table.infos() if number in (None, i.number)]
        return cls(
            name=session,
            number=number,
            uids=_uids_of(meant),
            others=frozenset(i.number for i in stay),
            other_uids=_uids_of(stay),
            **wanted,
        )

    @property
    def ended(self) -> dict[str, int]:
        """The session that ends, by name; empty where none does."""
        if not self.ends or self.name is None or self.number is None:
            return {}
        return {self.name: self.number}

    def with_blocks(self, core: Core, numbers: Collection[int]) -> Demand:
        """The same with the numbers of the blocks here that fit; `core.lock` is held."""
        ledger = core.ring.ledger
        slots = ledger.slots_of(self.number)
        slots = slots[torch.isin(ledger.number[slots], _numbers(numbers))]
        texts = _digests(core.ring.about(slots)["token_ids"])
        return replace(self, found=frozenset(numbers), texts=frozenset(texts))

    def there(self, saved: Saved, known: Known) -> tuple[torch.Tensor, dict[int, set[str]]]:
        """What it means in a folder: which blocks, `[n]` bool, and the sessions that end.

        Those by number with their ids. CorruptMemoryError where the folder has no such columns.
        """
        inside = self._sessions(saved, known)
        within = torch.isin(saved.session, _numbers(inside))
        if self.ends:
            return within, inside
        gone, ours = within.clone(), saved.id in known.ids
        if not inside and not ours:
            return gone, {}  # nothing of it is this memory's, if it is one at all
        if self.ids is not None:
            gone &= torch.isin(saved.numbers, there(self.ids if ours else (), known.blocks))
        if self.born_by is not None:
            gone &= _column(saved, "time") <= self.born_by
        if self.span is not None:
            at = within.nonzero()[:, 0]
            columns = {
                name: _column(saved, name)[at] for name in ("token_ids", "positions", "before")
            }
            columns["session"] = saved.session[at]
            held = torch.zeros_like(gone)
            held[at[standing(columns, saved.numbers[at], self.span, self.tokenizer)]] = True
            gone &= held
        if ours:
            gone |= torch.isin(saved.numbers, there(self.found, known.blocks))
        elif self.texts:
            alike = [text in self.texts for text in _digests(_column(saved, "token_ids"))]
            gone |= within & torch.tensor(alike, dtype=torch.bool)
        return gone, {}

    def note(self, saved: Saved, known: Known) -> Note | None:
        """What is to be written down in a folder of it; None: nothing there is meant."""
        gone, ended = self.there(saved, known)
        gone &= ~torch.isin(saved.session, _numbers(ended))
        # Rows that no block has, in folders of older versions, may be what was to be forgotten.
        if not bool(gone.any()) and not ended and not saved.has_unnamed_rows:
            return None
        uids = self.uids.union(*ended.values()) if self.ends else ()
        return Note(saved.id, known.then, saved.numbers[gone].tolist(), sorted(ended), sorted(uids))

    def blind_note(self, known: Known) -> Note:
        """The same for a folder that cannot be opened now, by what was known of it."""
        numbers = there(self.found.union(self.ids or ()), known.blocks).tolist()
        return Note(
            known.id,
            known.then,
            [] if self.ends else numbers,
            there(self.ended.values(), known.sessions).tolist(),
            sorted(self.uids) if self.ends else [],
        )

    def _sessions(self, saved: Saved, known: Known) -> dict[int, set[str]]:
        """Numbers there of the sessions that are meant, with their ids."""
        ours, found = saved.id in known.ids, {}
        meant = set(there([] if self.number is None else [self.number], known.sessions).tolist())
        stay = set(there(self.others, known.sessions).tolist())
        for entry in sessions_in(saved.header):
            number, uids = int(entry["number"]), uids_in(entry)
            if ours and number in meant | stay:
                # Two that were loaded from one are alike in their ids: here their numbers tell.
                fits = number in meant
            elif not uids:
                # As old folders are: names are all that is left where somebody else has saved.
                own = known.sessions is None or number in known.sessions.values()
                fits = self.number is None and own if ours else entry["name"] == self.name
            elif self.number is None:
                fits = bool(uids & (known.uids | self.uids))
            else:
                # One of that name that ended here and stayed there is meant as well.
                before = entry["name"] == self.name and uids & known.uids - self.other_uids
                fits = bool(uids & self.uids or before)
            if fits:
                found[number] = uids
        return found


def _digests(token_ids: torch.Tensor) -> list[bytes]:
    """Of each row of token ids, on the CPU, a digest that tells it from others."""
    rows = token_ids.to(torch.int32).contiguous().numpy()
    return [hashlib.sha256(row.tobytes()).digest() for row in rows]


def _uids_of(infos: Iterable[Any]) -> frozenset[str]:
    return frozenset(uid for info in infos for uid in info.uids)


def _numbers(sessions: Iterable[int]) -> torch.Tensor:
    return torch.tensor(sorted(sessions), dtype=torch.int64)


def _column(saved: Saved, name: str) -> torch.Tensor:
    column = saved.columns.get(name)
    wanted = 2 if name in ("token_ids", "positions") else 1
    if column is None or column.ndim != wanted:
        got = None if column is None else list(column.shape)
        raise CorruptMemoryError(
            f"{saved.path}: a column {name!r} of {wanted} dimensions expected, got {got}"
        )
    return column
