"""A whole document run through the model under a press of kvpress, which keeps a part of it."""

from __future__ import annotations

from cmr.evaluation.documents import Document
from cmr.evaluation.peers.presses import Presses
from cmr.evaluation.prompts import chat, up_to_question
from cmr.evaluation.systems import Asked, Reply, Spans, System, too_long


class Pressed(System):
    """The whole document before the question; the press does not know what will be asked.

    Args:
        press: of `PRESSES`.
        asked: with what is asked.
    """

    def __init__(self, press: str, asked: Asked) -> None:
        super().__init__(asked)
        self.press, self.there = press, Presses(asked.model)

    def refuses(self, question: str) -> str:
        """Where document, question and reply are longer than the model can take."""
        return too_long(self.asked, self.document, question)

    def open(self, document: Document) -> None:
        """Runs it through the model there, if it can take it."""
        super().open(document)
        if self.refuses(""):
            return
        asked, ids = self.asked, document.token_ids
        self.start = up_to_question(asked.tokenizer, ids, asked.instructed)
        held = self.there.prefill(self.start, {self.press: (self.press, asked.kept)})[self.press]
        self.held = {name: held[name] for name in ("kept_tokens", "kept_bytes")}

    def ask(self, question: str, recalled: Spans | None) -> Reply:
        """The reply of the model there."""
        asked = self.asked
        ids = chat(asked.tokenizer, question, self.document.token_ids, asked.instructed)
        said = self.there.answer(self.press, ids[len(self.start) :], asked.new_tokens)
        more = {**self.held, "shown_tokens": self.held["kept_tokens"], **self.there.versions}
        return Reply(said["text"], said["first_seconds"], said["seconds"], None, more)

    def close(self) -> None:
        """Ends the process."""
        self.there.close()
