"""``cmr evaluate``: memory beside what else could answer, on a user's documents and questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from cmr.cli.common import load_model, require_writable
from cmr.cli.display import conditions, console, working
from cmr.cli.errors import UsageError
from cmr.evaluation.documents import find_documents, read_documents
from cmr.evaluation.judging import JUDGES
from cmr.evaluation.questions import Question, read_questions
from cmr.evaluation.report.plots import points
from cmr.evaluation.settings import overrides


@dataclass(frozen=True)
class Options:
    """What was asked for; `documents` and `questions` are None where they are generated."""

    documents: Path | None
    questions: Path | None
    quick: bool
    model: str | None
    systems: Sequence[str]
    settings: Sequence[str]
    kept: float | None
    out: Path
    judged: str
    instructed: bool
    new_tokens: int
    limit: int | None
    seed: int


def run(options: Options) -> None:
    """Check everything a user can get wrong, then ask, show and write."""
    if options.quick == (options.documents is not None or options.questions is not None):
        raise UsageError("either --documents and --questions expected, or --quick")
    if not options.quick and (options.documents is None or options.questions is None):
        missing = "--documents" if options.documents is None else "--questions"
        raise UsageError(f"{missing}: missing; both are needed, or --quick")
    if options.judged not in JUDGES:
        raise UsageError(f"--judge: one of {', '.join(JUDGES)} expected, got {options.judged!r}")
    try:
        settings = overrides(options.settings)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out {options.out}: is a file, a folder is expected")
    # The folder is made when there is something to write: a mistake below leaves none behind.
    require_writable(f"--out {options.out}", options.out)
    given = None if options.quick else _given(options)
    from cmr.evaluation.checks import check_kept, check_questions, named
    from cmr.evaluation.run import evaluate

    # Before the model is loaded: these tell of wrong names.
    named(options.systems, settings, {})
    check_kept(options.kept)
    if given is not None:
        check_questions(*given)
    screen = console()
    with working(screen, f"loading {options.model or 'SmolLM2-135M-Instruct'}"):
        model, tokenizer = load_model(options.model)
    documents, questions = given or _generated(tokenizer, options)
    screen.print(f"[dim]{len(questions)} questions, {conditions(model)}[/dim]")
    with _bar(screen) as progress:
        found = evaluate(
            model, tokenizer, documents, questions, systems=options.systems, settings=settings,
            new_tokens=options.new_tokens, instructed=options.instructed, kept=options.kept,
            folder=options.out, progress=progress,
        )  # fmt: skip
    page = found.write(options.out, options.judged)
    _show(screen, found.summary(options.judged))
    screen.print(f"[dim]{escape(str(page))} has plots and every reply; rows lie beside it[/dim]")


def _given(options: Options) -> tuple[dict[str, str], list[Question]]:
    assert options.documents is not None and options.questions is not None
    files = find_documents(options.documents)
    questions = read_questions(options.questions, files)[: options.limit]
    return read_documents(files, (question.document for question in questions)), questions


def _generated(tokenizer: Any, options: Options) -> tuple[dict[str, str], list[Question]]:
    from cmr.evaluation.quick import quick

    documents, questions = quick(tokenizer, seed=options.seed)
    return documents, questions[: options.limit]


@contextmanager
def _bar(screen: Console) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar of replies on a terminal; in a pipe a line for each system."""
    if not screen.is_terminal:
        # A bar would be a line for every reply there.
        told: set[str] = set()

        def line(done: int, total: int, doing: str) -> None:
            system = doing.partition(":")[0]
            if system not in told:
                told.add(system)
                screen.print(f"[dim]{done} of {total} replies; {escape(system)}[/dim]")

        yield line
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("asking", total=None)
        yield lambda done, total, doing: bar.update(
            task, completed=done, total=total, description=escape(doing)
        )


def _show(screen: Console, summary: list[dict[str, Any]]) -> None:
    names = ("score, % [95 %]", "to memory", "evidence, %", "first, s", "next, s")
    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(Column("system", no_wrap=True), *numbers, box=None, padding=(0, 1))
    refused = []
    for row in summary:
        if row["refused"]:
            refused.append(f"{row['system']}: {row['refused']} questions could not be asked")
        if not row["asked"]:
            table.add_row(row["system"], "–", "", "", "", "")
            continue
        low, high = (100 * end for end in row["interval"])
        table.add_row(
            row["system"], f"{100 * row['score']:.0f} [{low:.0f}, {high:.0f}]",
            difference(row["difference"]),
            "" if row["found"] is None else f"{100 * row['found']:.0f}",
            f"{row['first_answer_seconds']:.1f}", f"{row['first_token_seconds']:.2f}",
        )  # fmt: skip
    screen.print(table)
    screen.print(
        "[dim]evidence: how much of it was shown; first: until the first token of the first reply "
        "about a document, reading included; next: of a reply[/dim]"
    )
    for line in refused:
        screen.print(f"[dim]{escape(line)}[/dim]")


def difference(row: dict[str, Any] | None) -> str:
    """A difference in points with its interval, if there is one."""
    if row is None:
        return ""
    # Rich takes what stands in brackets for a style, hence the backslash.
    mean, interval = points(row["mean"]), row["interval"]
    return f"{mean} \\[{', '.join(map(points, interval))}]" if interval else mean
