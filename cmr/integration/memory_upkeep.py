"""What a memory does with what it stores: pass it on, forget it, tidy it up, save and load it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cmr._warning import warn
from cmr.config import checks as check
from cmr.errors import AttachError
from cmr.integration.ahead import run_ahead
from cmr.integration.consolidation import Between, ConsolidationReport, consolidate, lift, no_wait
from cmr.integration.files.demand import Demand
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
            text: a span of text (a tokenizer must be known), in any case and line breaks, or of
                token ids: every block that holds a part of one of its occurrences.
            older_than: seconds; blocks stored longer ago.
            files: also forget it in the memories that were saved or loaded here, where they still
                are, blocks that were evicted here included. They are written anew; what was there
                is overwritten with zeros. What somebody else has saved there since counts where it
                is a session of this memory, whatever it is called there.

        Returns:
            What was done. Where a saved memory could not be changed, as somebody reads it or it is
            damaged, `outstanding` says so: it is a note in that folder by then, nobody who opens it
            sees what was forgotten, and every later call tries again, this one by the same name
            included.

        Warns:
            CMRWarning: something is outstanding.

        Raises:
            UnknownSessionError: there is no such session, and nothing of that name is outstanding.
            ValueError: nothing is given, or a number that no block has, here or in such a file.
        """
        if session is None and ids is None and text is None and older_than is None:
            raise ValueError("forget what? Give session, ids, text or older_than; clear() is all")
        ends = session is not None and ids is None and text is None and older_than is None
        core, folders = self._core, self._files
        ledger = core.ring.ledger
        span = text if text is None or isinstance(text, str) else [int(token) for token in text]
        # A save that is under way ends first: it would bring back what goes.
        with folders.still() as hold:
            hold.after = self._forgetter.finish
            ended_before = session is not None and core.table.find(session) < 0
            if files and ended_before and folders.owes(str(session)):
                return self._with_files(ForgetReport(0, 0, 0))
            with core.lock:
                asked = Demand.of(
                    core,
                    session,
                    ends=ends,
                    ids=ids if ids is None else frozenset({ids} if isinstance(ids, int) else ids),
                    span=span,
                    tokenizer=self.tokenizer,
                    born_by=None if older_than is None else time.time() - older_than,
                )
                every = [info.number for info in core.table.infos()]
                meant = every if asked.number is None else [asked.number]
                slots = self._forgetter.select(
                    session,
                    asked.ids,
                    span,
                    older_than,
                    self.tokenizer,
                    (lambda: folders.fitting(asked)) if files else tuple,
                )
                numbers = set(ledger.number[slots].tolist())
            if files and not ends:
                if span is not None:
                    # An occurrence may be whole in a file alone, and half of it be here.
                    numbers |= folders.fitting(asked)
                with core.lock:
                    asked = asked.with_blocks(core, numbers)
            if not files:
                return self._forgetter.forget(sorted(numbers), asked.ended, meant=meant)[0]

            def over() -> None:
                # Interrupted after it has begun, it is owed to files and finished here.
                if self._forgetter.begun:
                    folders.owe(asked)
                self._forgetter.finish()

            def tell() -> None:
                folders.owe(asked)
                folders.tell()

            hold.after = over
            report, _ = self._forgetter.forget(sorted(numbers), asked.ended, tell, meant)
            return self._with_files(report)

    def _with_files(self, report: ForgetReport) -> ForgetReport:
        """What was forgotten here, and now in files; warns of what is outstanding there."""
        report = replace(report, files=self._files.settle(), outstanding=self._files.outstanding)
        if report.outstanding:
            left = "; ".join(f"{where} ({why})" for where, why in report.outstanding.items())
            warn(
                f"what was forgotten is still in {left}: whoever opens it sees nothing of it, and "
                "it is erased by the next forget, clear, save, load, consolidate or inspect that "
                "can (see memory.outstanding)"
            )
        return report

    def clear(self, session: str | None = None) -> int:
        """Forget a session, or everything, here and not in files; returns the blocks emptied.

        What an earlier `forget` left outstanding in files is tried again.

        A cache that such a session is still using goes on, and what leaves it is not stored.

        Raises:
            UnknownSessionError: for a name that does not exist.
        """
        core, ledger = self._core, self._core.ring.ledger
        with self._files.still() as hold:
            hold.after = self._forgetter.finish
            self._files.settle()
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

    def consolidate(self, between: Between = no_wait) -> ConsolidationReport:
        """Tidy up: forget what expired, drop near-duplicates, let what is used rise a tier.

        What expired goes from the memories that were saved or loaded here, too. Takes a while for
        many blocks; others may use the memory meanwhile. `between` is called in front of each short
        piece of it: it may wait there until nobody wants the memory, and ends it by False.
        """
        self._require_attached()
        self._files.tidy()
        return consolidate(self._core, self._stepper.alone, between)

    def lift(self, *sessions: str, between: Between = no_wait) -> int:
        """Bring up what these sessions store in lower tiers, for requests that are expected next.

        Every block goes up to where there is room, or where others that were used longest ago can
        sink for it, up to half a tier: those used last first. The most urgent name comes last.
        Which passages a search finds does not change by it. Returns how many times a block
        went up a tier. `between` is called in front of each block, as for `consolidate`.

        Raises:
            UnknownSessionError: there is no session of that name; nothing is moved then.
        """
        self._require_attached()
        # All names are looked up before the first block moves.
        numbers = [self._core.table.require(name) for name in sessions]
        return sum(lift(self._core, number, self._stepper.alone, between) for number in numbers)

    def prepare(self, *sessions: str, passages: int = 32, between: Between = no_wait) -> int:
        """Run passages of these sessions that keep no states through the model, ahead of requests.

        What a tier holds as token ids alone (`store="tokens"`, `long_term_store="tokens"`) is run
        through the model again when it is recalled. What was run ahead is read at once, until as
        many passages as are kept were read or run since. Nothing moves, and what a search finds
        does not change. Of a session those next in its text to what was last recalled come first.

        Args:
            *sessions: names, the most urgent first.
            passages: of each session at most, 1 or more; so many of each are kept.
            between: called in front of each passage, as for `consolidate`.

        Returns:
            The number of passages that were run.

        Raises:
            UnknownSessionError: there is no session of that name; nothing is run then.
            ConfigError: `passages` is no such number.
        """
        self._require_attached()
        core, most = self._core, check.integer("passages", passages, 1)
        numbers = [core.table.require(name) for name in sessions]
        core.recomputed.most = max(core.recomputed.most, most * len(numbers))
        alone = self._stepper.alone
        return sum(run_ahead(core, n, most, alone, between) for n in numbers)

    # -- files -----------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        sessions: Sequence[str] | None = None,
        *,
        key: bytes | str | None = None,
        replace: bool = False,
    ) -> SaveReport:
        """Save the memory to a folder, all of it or not at all; what was saved there is replaced.

        Saved again to the same folder, only blocks that are new since then are written, and files
        with blocks that are not stored any more. Where somebody else has saved or forgotten there
        since, it is refused: that would be lost without a word. The folder holds what was saved
        and nothing else. Ephemeral
        sessions are left out. Others may use the memory meanwhile: what is saved is what was stored
        when the save began, and who wants to forget waits for its end. A saved memory is raw user
        data: token ids in the clear, and states from which text can be won back. Give a key, or
        guard the folder.

        Args:
            path: a folder: new, empty, or a saved memory.
            sessions: names of the sessions to save; None: all.
            key: encrypts it: 32 bytes, or a passphrase (needs `pip install 'cmr[crypt]'`).
            replace: also what somebody else has saved to a folder that this memory was saved to or
                loaded from.

        Raises:
            UnknownSessionError: there is no such session.
            StoreError: it could not be saved, or somebody else has saved there since; what was
                there before still is. Of its kinds `StoreBusyError`: somebody is saving there at
                this moment, or reads what is to be erased.
        """
        return self._files.save(path, sessions, key, self.tokenizer, replace)

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
            SessionNameError: a session of that name exists here already.
        """
        self._require_attached()
        return self._files.load(path, sessions, key, self.tokenizer)
