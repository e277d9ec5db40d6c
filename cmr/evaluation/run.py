"""An evaluation: questions about documents, asked of one system after the other, row by row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmr.config import CMRConfig
from cmr.errors import EvaluationError
from cmr.evaluation import rows
from cmr.evaluation.checks import check_kept, check_questions, named
from cmr.evaluation.documents import Document
from cmr.evaluation.evaluation import Evaluation
from cmr.evaluation.machine import described, machine
from cmr.evaluation.passages import tokens_of
from cmr.evaluation.peers.presses import PRESSES
from cmr.evaluation.peers.weights import weights_digest
from cmr.evaluation.questions import Question
from cmr.evaluation.registry import MAKERS, SYSTEMS
from cmr.evaluation.rows import Row
from cmr.evaluation.systems import UNTOLD, Asked, System

Progress = Callable[[int, int, str], None]
REPLIES = "replies.jsonl"
"""The file of a folder that replies are appended to; a later call reads it again."""
NEW_TOKENS = 32


def evaluate(
    model: Any,
    tokenizer: Any,
    documents: Mapping[str, str],
    questions: Sequence[Question],
    *,
    systems: Sequence[str] = SYSTEMS,
    settings: Mapping[str, Any] | None = None,
    configurations: Mapping[str, Mapping[str, Any]] | None = None,
    new_tokens: int = NEW_TOKENS,
    instructed: bool = False,
    kept: float | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask questions about documents of several systems, and judge what they answer.

    Replies are greedy, by the model's stock `generate`, one question at a time. Each document is
    alone: a memory is emptied before it reads the next one.

    Args:
        model: a decoder without a memory; it is without one again at the end.
        tokenizer: its tokenizer.
        documents: texts by name.
        questions: what is asked, each about one of the documents.
        systems: of `SYSTEMS` and the presses of kvpress; their order does not matter.
        settings: for `cmr.attach`.
        configurations: further memories by name, each with settings that go before `settings`.
        new_tokens: of a reply, at most.
        instructed: whether systems that show text say above it what it is for.
        kept: how many tokens of a text a press keeps, or below 1 which share of them; None: the
            window and 192, about what memory reads with the question.
        folder: where replies are kept as they come, and taken from where all conditions are equal;
            None: they are not kept.
        progress: called with replies done, replies in all, and what is being done.

    Returns:
        The rows, judged, in the order of the questions, system by system. The others are compared
        with `memory`, or where that is not asked with the first of them.

    Raises:
        EvaluationError: a name is unknown, a question is about no document or its evidence does
            not stand in it, a package is missing, or the folder cannot be used.
        ConfigError: a setting is unknown or out of its range.
    """
    systems_named = named(systems, settings or {}, configurations or {})
    check_questions(documents, questions)
    if new_tokens < 1:
        raise EvaluationError(f"new_tokens: at least 1 expected, got {new_tokens}")
    check_kept(kept)
    window = CMRConfig().with_overrides(**(settings or {})).window
    run = _Run(
        Asked(model, tokenizer, new_tokens, instructed, window, {}, kept or window + UNTOLD),
        {
            name: Document.of(tokenizer, name, documents[name])
            for name in dict.fromkeys(question.document for question in questions)
        },
        questions,
        None if folder is None else _prepare(Path(folder)),
        progress,
        len(systems_named) * len(questions),
    )
    found: list[Row] = []
    for name, (system, own) in systems_named.items():
        found += run.replies(name, system, own)
    beside = "memory" if "memory" in systems_named else next(iter(systems_named))
    return Evaluation.of(tokenizer, run.documents, questions, found, beside)


def _prepare(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPLIES).touch()
    except OSError as error:
        raise EvaluationError(f"{folder}: {error.strerror or error}") from None
    return folder / REPLIES


@dataclass
class _Run:
    """What all systems of an evaluation are asked with, and how far it has come."""

    asked: Asked
    documents: dict[str, Document]
    questions: Sequence[Question]
    path: Path | None
    progress: Progress | None
    total: int
    done: int = 0
    recalled: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {row["key"]: row for row in (rows.load(self.path) if self.path else [])}
        self.conditions: Row = {
            **machine(),
            **described(self.asked.model),
            "weights": weights_digest(self.asked.model),
            "new_tokens": self.asked.new_tokens,
            "instructed": self.asked.instructed,
        }

    def replies(self, name: str, system: str, settings: dict[str, Any]) -> list[Row]:
        """The rows of one system in the questions' order; what is known is not asked again."""
        keys = [self._key(number, system, settings) for number in range(len(self.questions))]
        # By document: to read one takes longer than to answer about it.
        waiting: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            if key not in self.known:
                waiting.setdefault(self.questions[number].document, []).append(number)
        self._tell(sum(key in self.known for key in keys), name)
        if waiting:
            # Only where something is left to ask: to attach a memory takes seconds.
            speaker = MAKERS[system](replace(self.asked, settings=settings))
            try:
                for document, numbers in waiting.items():
                    for number, row in self._asked(speaker, name, document, numbers):
                        self._keep({"key": keys[number], "system": system, **row}, settings)
                        self._tell(1, f"{name}: {document}")
            finally:
                # Also after Ctrl-C: the model is as it was.
                speaker.close()
        found = [
            {**self.known[key], "system": name, "question": number}
            for number, key in enumerate(keys)
        ]
        # A configuration beside it is called otherwise: nobody shows as much as that one read.
        if name == "memory":
            self.recalled = {row["question"]: row["shown"] for row in found}
        return found

    def _key(self, number: int, system: str, settings: dict[str, Any]) -> str:
        """What a reply depends on; those of other systems not on settings of memory's search."""
        # Right answers are no conditions: they are looked at when rows are judged.
        question = self.questions[number]
        own: dict[str, Any] = {"memory": settings, "window": self.asked.window}
        own |= dict.fromkeys(("bm25", "passages-as-text"), self.recalled.get(number))
        own |= dict.fromkeys(PRESSES, self.asked.kept)
        return rows.key_of(
            **self.conditions, system=system, own=own.get(system), asked=question.text,
            document=rows.digest(self.documents[question.document].text),
        )  # fmt: skip

    def _asked(
        self, speaker: System, name: str, document: str, numbers: list[int]
    ) -> Iterator[tuple[int, Row]]:
        """Opens a document and asks about it; the first reply has the seconds of both."""
        text = self.documents[document]
        self._tell(0, f"{name}: reading {document}")
        began = time.perf_counter()
        speaker.open(text)
        prepared = time.perf_counter() - began
        about = {"document": document, "document_tokens": len(text.token_ids)}
        for number in numbers:
            row: Row = {**about, "asked": self.questions[number].text}
            why = speaker.refuses(self.questions[number].text)
            if why:
                # A row, too: who is not asked is not wrong.
                yield number, {**row, "reply": None, "why": why, "shown": []}
                continue
            reply = speaker.ask(self.questions[number].text, self.recalled.get(number))
            yield number, {
                **row, "reply": reply.text,
                "shown": None if reply.shown is None else [list(span) for span in reply.shown],
                "shown_tokens": len(tokens_of(reply.shown or [])),
                "prepare_seconds": round(prepared, 3),
                "first_token_seconds": round(reply.first_seconds, 3),
                "seconds": round(reply.seconds, 3),
                **reply.more,
            }  # fmt: skip

    def _keep(self, row: Row, settings: dict[str, Any]) -> None:
        row |= {"settings": settings, "window": self.asked.window, **self.conditions}
        if self.path is not None:
            rows.append(self.path, row)
        self.known[row["key"]] = row

    def _tell(self, more: int, doing: str) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total, doing)
