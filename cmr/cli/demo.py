"""``cmr demo``: a long text, a small window, and the same model with and without memory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

import cmr
from cmr.cli.common import Answer, Speaker, encoded
from cmr.cli.display import conditions, console, mark, passages, progress_bar, size, working
from cmr.cli.talk.excerpts import words_of
from cmr.demo import Document, Question, demo_document, load_smollm2
from cmr.demo.smollm2 import is_cached

Pairs = list[tuple[Question, Answer, Answer]]
"""Questions with their answers, without and with memory."""


def run(tokens: int, window: int, max_new_tokens: int) -> None:
    """Load, plant, read, ask without and with memory, and show what happened."""
    began = time.perf_counter()
    out = console()
    doing = "loading SmolLM2-135M-Instruct"
    if not is_cached():
        doing += " (converting it once, about 20 seconds)"
    with working(out, doing):
        model, tokenizer = load_smollm2()
    document = demo_document(tokenizer, tokens)
    _introduce(out, model, document, window)
    # Room for the whole text, in whole thousands of tokens.
    budget = (document.tokens // 1024 + 1) * 1024
    with cmr.attach(model, tokenizer=tokenizer, window=window, budget=budget) as memory:
        ids = encoded(tokenizer, document.text, verbose=False)
        with progress_bar(out, "reading") as progress:
            report = memory.read(ids, progress=progress or False)
        out.print(
            f"read {report.tokens:,} tokens in {report.seconds:.1f} s "
            f"([bold]{report.tokens_per_second:,.0f} tokens/s[/bold])"
        )
        pairs = []
        speaker = Speaker(model, tokenizer, memory, max_new_tokens)
        for question in document.questions:
            with working(out, f"asking: {question.text}"):
                prompt = speaker.encode(question.text)
                # Paused, so that without memory the model is exactly itself.
                memory.pause()
                without = replace(speaker, memory=None).answer(prompt)
                memory.resume()
                pairs.append((question, without, speaker.answer(prompt)))
        _show(out, pairs, document)
        _sum_up(out, pairs, memory, model, time.perf_counter() - began)


def _introduce(out: Console, model: Any, document: Document, window: int) -> None:
    facts = Table.grid(Column(style="dim", no_wrap=True), Column(), padding=(0, 2))
    facts.add_row("Model", f"SmolLM2-135M-Instruct, {conditions(model)}")
    facts.add_row("Text", document.title)
    facts.add_row(
        "Length",
        f"{document.tokens:,} tokens, read through a window of {window}; "
        f"the model's own limit is {model.config.max_position_embeddings:,}",
    )
    out.print(Panel(facts, title="cmr demo", border_style="cyan"))
    out.print(
        f"{len(document.questions)} invented facts are planted in the text, so that the model "
        "cannot know them from its training:"
    )
    positions = Column(justify="right", no_wrap=True, style="dim")
    table = Table(positions, Column(), box=None, padding=(0, 1), show_header=False)
    for question in document.questions:
        table.add_row(f"at token {question.position:,}", question.fact)
    out.print(table)
    out.print()


def _show(out: Console, pairs: Pairs, document: Document) -> None:
    """The answers side by side, and what was read for them."""
    columns = [Column(name, ratio=4) for name in ("Question", "Without memory", "With memory")]
    title = "The same model, the same question"
    table = Table(*columns, title=title, show_lines=True, expand=True)
    for question, without, with_memory in pairs:
        back = document.tokens - question.position
        asked = Text(question.text)
        asked.append(f"\n{back:,} tokens back", style="dim")
        table.add_row(asked, _cell(out, question, without), _cell(out, question, with_memory))
    out.print()
    out.print(table)
    out.print("[bold]What was recalled[/bold]")
    for question, _, with_memory in pairs:
        out.print(f"[cyan]{question.text}[/cyan] [dim](fact at token {question.position:,})[/dim]")
        if with_memory.recalled:
            out.print(passages(with_memory.recalled, words_of(question.answer), limit=2))
        else:
            out.print("[dim]nothing[/dim]")


def _cell(out: Console, question: Question, found: Answer) -> Text:
    cell = Text.from_markup(mark(out, question.answered_by(found.text)) + " ")
    cell.append(found.text.strip() or "(nothing)")
    return cell


def _sum_up(out: Console, pairs: Pairs, memory: Any, model: Any, seconds: float) -> None:
    """How many answers were right, how fast, and what memory took."""
    questions = [row[0] for row in pairs]
    sides = ([row[1] for row in pairs], [row[2] for row in pairs])

    def right(answers: list[Answer]) -> str:
        count = sum(q.answered_by(a.text) for q, a in zip(questions, answers, strict=True))
        return f"{count} of {len(questions)}"

    def speed(answers: list[Answer]) -> str:
        tokens = sum(len(found.token_ids) for found in answers)
        return f"{tokens / sum(found.seconds for found in answers):.1f}"

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    columns = [Column(f"{which} memory", justify="right") for which in ("without", "with")]
    table = Table(Column(), *columns, box=None, padding=(0, 2), header_style="bold")
    table.add_row("right answers", *map(right, sides))
    table.add_row("answer tokens/s, prompt included", *map(speed, sides))
    table.add_row("tokens held outside the window", "0", f"{memory.tokens:,}")
    table.add_row("memory used", "0 B", size(memory.nbytes))
    out.print()
    out.print(table)
    out.print(
        f"[dim]The model's weights take {size(weights)}. {conditions(model)}; "
        f"everything in {seconds:.0f} s.[/dim]"
    )
