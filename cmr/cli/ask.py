"""``cmr ask``: read documents, answer questions about them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cmr.cli.common import Speaker
from cmr.cli.display import answered, conditions, console, size
from cmr.cli.errors import UsageError
from cmr.cli.input.questions import checked
from cmr.cli.opened import opened
from cmr.cli.settings import Settings
from cmr.cli.talk.interrupts import stoppable


def run(settings: Settings, documents: list[Path], questions: list[str]) -> None:
    """Check everything a user can get wrong, then load, read, answer and save."""
    if not documents and settings.load is None:
        raise UsageError("nothing to ask about: give --document, or --load a saved memory")
    questions = checked(questions, documents, needed=settings.save is None)
    out = console()
    with opened(out, settings, documents, may_begin=False) as speaker:
        memory = speaker.memory
        # Who stops an answer wants no further one, and yet what was read is saved.
        stopped = any(_ask(out, speaker, question) for question in questions)
        room = memory.stats()["capacity_tokens"]
        if questions:
            out.print()
        out.print(
            f"[dim]{memory.tokens:,} tokens in memory (room for {room:,}: "
            f"{size(memory.nbytes)}) · {conditions(speaker.model)}[/dim]"
        )
    if stopped:
        raise KeyboardInterrupt


def _ask(out: Console, speaker: Speaker, question: str) -> bool:
    """Answer a question and show it; whether Ctrl-C stopped the answer."""
    asking = f"asking: {escape(question)}"
    with out.status(asking) if out.is_terminal else nullcontext(), stoppable() as stop:
        found = speaker.answer(speaker.encode(question), stop=stop)
    count, more = len(found.token_ids), ", stopped" if found.stopped else ""
    answered(out, question, found.text, found.recalled, count, found.seconds, more)
    return found.stopped
