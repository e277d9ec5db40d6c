"""What a memory does with what it stores: pass it on, forget it, tidy it up, save and load it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cmr.errors import AttachError
from cmr.integration.consolidation import ConsolidationReport, consolidate, lift
from cmr.integration.files.folders import Files
from cmr.integration.first_use import first_use
from cmr.integration.forgetter import ForgetReport, Forgetter
from cmr.integration.memory_view import MemoryView
from cmr.memory.copies import fork, merge
from cmr.memory.store import SaveReport


class MemoryUpkeep(MemoryView):
    """The part of `Memory` that changes what is stored, without the model's forwards."""

    _attached: bool

    # -- parts, made when they are needed --------------------------------------------------------

    @first_use
    def _files(self) -> Files:
        return Files(self._core)

    @first_use
    def _forgetter(self) -> Forgetter:
        return Forgetter(self._core, self._stepper)

    def _require_attached(self) -> None:
        if not self._attached:
            raise AttachError("this memory was detached; attach a new one with cmr.attach(model)")

    # -- whose it is -----------------------------------------------------------------------------

    def rename(self, session: str, to: str) -> None:
        """Give a session another name; the new one must be free."""
        with self._core.lock:
            self._core.table.rename(session, to)

    def fork(self, session: str, to: str) -> int:
        """Make session `to` with a copy of all that another one stores; returns blocks copied.

        Raises:
            UnknownSessionError: there is no session of that name.
            ValueError: `to` exists, or there is no room for the copy; nothing is copied then.
        """
        with self._core.lock:
            return fork(self._core.keeper, self._core.table, session, to)

    def merge(self, session: str, into: str) -> int:
        """Put one session's text behind another one's and end it; returns the blocks that moved.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: the two are one, or only one of them is ephemeral.
        """
        with self._core.lock, self._core.journal.change():
            number = self._core.table.require(session)
            moved = merge(self._core.ring, self._core.table, session, into)
            # Forwards may have recalled blocks under the session's number, which is free now.
            self._forgetter.drop_copies({number})
            return moved

    # -- keeping and forgetting ------------------------------------------------------------------

    def pin(self, ids: Iterable[int] | int, pinned: bool = True) -> None:
        """Let blocks (numbers as `inspect` shows them) never be evicted; `pinned=False` ends it.

        Raises:
            ValueError: a number that no block has, or more than half of a tier would be pinned.
        """
        ledger = self._core.ring.ledger
        with self._core.lock:
            slots = self._forgetter.select(ids=ids)
            if pinned:
                ledger.check_pins(slots)
            ledger.pinned[slots] = pinned

    def forget(
        self,
        session: str | None = None,
        *,
        ids: Iterable[int] | int | None = None,
        text: str | Sequence[int] | None = None,
        older_than: float | None = None,
        files: bool = True,
    ) -> ForgetReport:
        """Zero what is stored, wherever it is, and look that it is gone.

        Whole blocks are forgotten: those that fit everything that is given. A session given alone
        ends. What a model thought of text near a forgotten span may have been coloured by it;
        `neighbours` of the span are blocks of their own and can be named by `ids`.

        Args:
            session: name of a session; None: of all.
            ids: numbers of blocks, as `inspect` shows them.
            text: a span of text (a tokenizer must be known) or of token ids: every block that holds
                a part of one of its occurrences.
            older_than: seconds; blocks stored longer ago.
            files: also forget it in the memories that were saved or loaded here, where they still
                are. They are written anew; what was there is overwritten with zeros.

        Raises:
            UnknownSessionError: there is no such session.
            ValueError: nothing is given, or a number that no block has.
            StoreError: a saved memory could not be changed. What is stored here is gone by then.
        """
        if session is None and ids is None and text is None and older_than is None:
            raise ValueError("forget what? Give session, ids, text or older_than; clear() is all")
        alone = ids is None and text is None and older_than is None
        ending = [session] if session and alone else []
        # A save that is under way ends first: it would bring back what goes.
        with self._files.still() as hold:
            hold.after = self._forgetter.finish
            with self._core.lock:
                slots = self._forgetter.select(session, ids, text, older_than, self.tokenizer)
                numbers = self._core.ring.ledger.number[slots].tolist()
                ended = {name: self._core.table.find(name) for name in ending}
            report, numbers = self._forgetter.forget(numbers, ended)
            if not files:
                return report
            return replace(report, files=self._files.forget(numbers, list(ended.values()), ending))

    def clear(self, session: str | None = None) -> int:
        """Forget a session, or everything, here and not in files; returns the blocks emptied.

        A cache that such a session is still using goes on, and what leaves it is not stored.

        Raises:
            UnknownSessionError: for a name that does not exist.
        """
        core, ledger = self._core, self._core.ring.ledger
        with self._files.still() as hold:
            hold.after = self._forgetter.finish
            with core.lock:
                number = None if session is None else core.table.require(session)
                names = self.sessions if session is None else [session]
                numbers = ledger.number[ledger.slots_of(number)].tolist()
                ending = {name: core.table.find(name) for name in names}
            report, _ = self._forgetter.forget(numbers, ending)
            if session is None:
                with core.lock:
                    # Others may have stored something meanwhile, between two pieces.
                    if not len(ledger.slots_of(None)):
                        core.ring.clear()
        return report.blocks

    def consolidate(self) -> ConsolidationReport:
        """Tidy up: forget what expired, drop near-duplicates, let what is used rise a tier.

        Takes a while for many blocks; others may use the memory meanwhile.
        """
        self._require_attached()
        return consolidate(self._core, self._stepper.alone)

    def lift(self, *sessions: str) -> int:
        """Bring up what these sessions store in lower tiers, for requests that are expected next.

        Every block goes up to where there is room, or where others that were used longest ago can
        sink for it, up to half a tier: those used last first. The most urgent name comes last.
        Which passages a search finds does not change by it. Returns how many times a block
        went up a tier.

        Raises:
            UnknownSessionError: there is no session of that name; nothing is moved then.
        """
        self._require_attached()
        # All names are looked up before the first block moves.
        numbers = [self._core.table.require(name) for name in sessions]
        return sum(lift(self._core, number, self._stepper.alone) for number in numbers)

    # -- files -----------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None = None,
        *,
        key: bytes | str | None = None,
    ) -> SaveReport:
        """Save the memory to a folder, all of it or not at all; what was saved there is replaced.

        Saved again to the same folder, only blocks that are new since then are written. Ephemeral
        sessions are left out. Others may use the memory meanwhile: what is saved is what was stored
        when the save began, and who wants to forget waits for its end. A saved memory is raw user
        data: token ids in the clear, and states from which text can be won back. Give a key, or
        guard the folder.

        Args:
            path: a folder: new, empty, or a saved memory.
            sessions: names of the sessions to save; None: all.
            key: encrypts it: 32 bytes, or a passphrase (needs `pip install 'cmr[crypt]'`).

        Raises:
            UnknownSessionError: there is no such session.
            StoreError: it could not be saved; what was there before still is.
        """
        return self._files.save(path, sessions, key, self.tokenizer)

    def load(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None = None,
        *,
        key: bytes | str | None = None,
    ) -> int:
        """Take saved sessions into this memory; returns the blocks loaded.

        Args:
            path: folder of a saved memory.
            sessions: names of the sessions wanted; None: all.
            key: of an encrypted one.

        Raises:
            StoreError: there is none, it is damaged, of a newer format, or the key is wrong.
            ModelMismatchError: another model or tokenizer saved it, or a session was read with
                other adapters than are in effect.
            UnknownSessionError: it has no such session.
            ConfigError: it stores other layers, or there is no room for it.
            ValueError: a session of that name exists here already.
        """
        self._require_attached()
        return self._files.load(path, sessions, key, self.tokenizer)
