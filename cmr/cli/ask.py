"""``cmr ask``: read documents, answer questions about them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

import cmr
from cmr.cli import session as shared
from cmr.cli.display import conditions, console, passages, progress_bar, size, working
from cmr.cli.errors import UsageError


def run(settings: shared.Settings, documents: list[Path], questions: list[str]) -> None:
    """Check everything a user can get wrong, then load, read and answer."""
    for question in questions:
        if not question.strip():
            raise UsageError("--question: the question is empty")
    texts = {path: shared.read_document(path) for path in shared.unique(documents)}
    out = console()
    with working(out, f"loading {settings.model or 'SmolLM2-135M-Instruct'}"):
        model, tokenizer = shared.load_model(settings.model)
    with cmr.attach(model, tokenizer=tokenizer, **settings.overrides) as memory:
        name = settings.session
        with memory.session(name, create=True) if name else nullcontext():
            read_all(out, memory, tokenizer, texts)
            for question in questions:
                _ask(out, model, tokenizer, memory, question, settings.max_new_tokens)
        out.print(
            f"[dim]{memory.tokens:,} tokens in memory (room for {settings.budget:,}: "
            f"{size(memory.nbytes)}) · "
            f"{conditions(model)}[/dim]"
        )


def read_all(out: Console, memory: Any, tokenizer: Any, texts: dict[Path, str]) -> None:
    """Read every document into the memory, saying how fast."""
    for path, text in texts.items():
        ids = shared.encode_document(tokenizer, text)
        with progress_bar(out, f"reading {path.name}") as progress:
            report = memory.read(ids, progress=progress or False)
        out.print(
            f"[dim]read {path.name}: {report.tokens:,} tokens in {report.seconds:.1f} s "
            f"({report.tokens_per_second:,.0f} tokens/s)[/dim]"
        )


def _ask(
    out: Console, model: Any, tokenizer: Any, memory: Any, question: str, max_new_tokens: int
) -> None:
    ids = shared.encode_question(tokenizer, question)
    found = shared.answer(model, tokenizer, memory, ids, max_new_tokens)
    out.print()
    out.print("[bold cyan]Q[/bold cyan]", question, style="bold", markup=True)
    out.print("[bold green]A[/bold green]", end=" ")
    out.print(found.text or "(the model answered nothing)", markup=False)
    if found.recalled:
        out.print(passages(found.recalled))
    else:
        out.print("[dim]nothing in memory was close enough to be recalled[/dim]")
    out.print(
        f"[dim]{len(found.token_ids)} tokens in {found.seconds:.1f} s "
        f"({found.tokens_per_second:.1f} tokens/s with the prompt)[/dim]"
    )
