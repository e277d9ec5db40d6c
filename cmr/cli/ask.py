"""``cmr ask``: read documents, answer questions about them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from cmr.cli.common import Speaker
from cmr.cli.display import conditions, console, passages, size
from cmr.cli.errors import UsageError
from cmr.cli.input.pipe import PIPE, piped_question
from cmr.cli.opened import opened
from cmr.cli.settings import Settings
from cmr.cli.talk.excerpts import words_of
from cmr.cli.talk.interrupts import stoppable


def run(settings: Settings, documents: list[Path], questions: list[str]) -> None:
    """Check everything a user can get wrong, then load, read, answer and save."""
    if not documents and settings.load is None:
        raise UsageError("nothing to ask about: give --document, or --load a saved memory")
    if not questions and settings.save is None:
        piped = None if PIPE in documents else piped_question()
        if piped is None:
            raise UsageError(
                "nothing to do: give --question, a question through a pipe, "
                "or --save to keep what is read"
            )
        questions = [piped]
    for question in questions:
        if not question.strip():
            raise UsageError("--question: the question is empty")
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
    with stoppable() as stop:
        found = speaker.answer(speaker.encode(question), stop=stop)
    out.print()
    out.print(Text.assemble(("Q ", "bold cyan"), (question, "bold")))
    out.print(
        Text.assemble(("A ", "bold green"), found.text.strip() or "(the model answered nothing)")
    )
    if found.recalled:
        out.print(passages(found.recalled, words_of(question, found.text)))
    else:
        out.print("[dim]nothing in memory was close enough to be recalled[/dim]")
    out.print(
        f"[dim]{len(found.token_ids)} tokens in {found.seconds:.1f} s "
        f"({found.tokens_per_second:.1f} tokens/s with the prompt)"
        f"{', stopped' if found.stopped else ''}[/dim]"
    )
    return found.stopped
