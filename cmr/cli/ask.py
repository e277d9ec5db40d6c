"""``cmr ask``: read documents, answer questions about them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from cmr.cli.common import Speaker
from cmr.cli.display import conditions, console, passages, size
from cmr.cli.errors import UsageError
from cmr.cli.opened import opened
from cmr.cli.settings import Settings


def run(settings: Settings, documents: list[Path], questions: list[str]) -> None:
    """Check everything a user can get wrong, then load, read, answer and save."""
    if not documents and settings.load is None:
        raise UsageError("nothing to ask about: give --document, or --load a saved memory")
    if not questions and settings.save is None:
        raise UsageError("nothing to do: give --question, or --save to keep what is read")
    for question in questions:
        if not question.strip():
            raise UsageError("--question: the question is empty")
    out = console()
    with opened(out, settings, documents, may_begin=False) as speaker:
        memory = speaker.memory
        for question in questions:
            _ask(out, speaker, question)
        room = memory.stats()["capacity_tokens"]
        if questions:
            out.print()
        out.print(
            f"[dim]{memory.tokens:,} tokens in memory (room for {room:,}: "
            f"{size(memory.nbytes)}) · {conditions(speaker.model)}[/dim]"
        )


def _ask(out: Console, speaker: Speaker, question: str) -> None:
    found = speaker.answer(speaker.encode(question))
    out.print()
    out.print(Text.assemble(("Q ", "bold cyan"), (question, "bold")))
    out.print(
        Text.assemble(("A ", "bold green"), found.text.strip() or "(the model answered nothing)")
    )
    if found.recalled:
        out.print(passages(found.recalled))
    else:
        out.print("[dim]nothing in memory was close enough to be recalled[/dim]")
    out.print(
        f"[dim]{len(found.token_ids)} tokens in {found.seconds:.1f} s "
        f"({found.tokens_per_second:.1f} tokens/s with the prompt)[/dim]"
    )
