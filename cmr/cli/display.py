"""How the command line shows things: consoles, marks, passages, numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from cmr.cli.talk.excerpts import excerpt, words_of


def console() -> Console:
    """Standard output; plain text without colours when piped."""
    return Console(highlight=False, soft_wrap=False)


@contextmanager
def working(out: Console, doing: str) -> Iterator[None]:
    """A spinner while something takes time; one plain line with the seconds at the end."""
    began, doing = time.perf_counter(), escape(doing)
    if out.is_terminal:
        with out.status(doing):
            yield
    else:
        yield
    out.print(f"[dim]{doing}: {time.perf_counter() - began:.1f} s[/dim]")


@contextmanager
def progress_bar(out: Console, doing: str) -> Iterator[Callable[[int, int], None] | None]:
    """What `memory.read(progress=...)` takes: a bar on a terminal, nothing in a pipe."""
    if not out.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        # Of how many is not known before the first window is read.
        task = bar.add_task(doing, total=None, done="")
        yield lambda done, total: bar.update(
            task, completed=done, total=total, done=f"{done:,} of {total:,} tokens"
        )


def mark(out: Console, right: bool) -> str:
    """A coloured sign for right or wrong, in letters where the encoding has no sign."""
    # In a pipe of another encoding the signs would come out as question marks.
    sign = ("✓", "✗") if out.encoding.lower().startswith("utf") else ("yes", "no")
    return f"[green]{sign[0]}[/green]" if right else f"[red]{sign[1]}[/red]"


def passages(recalled: list[Any], words: Iterable[str] = (), limit: int = 3) -> Table:
    """The recalled passages: where, how sure, how strongly read, and the part about ``words``."""
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("score", "gate")]
    columns = (Column("tokens", no_wrap=True), *numbers, Column("recalled", ratio=1))
    table = Table(*columns, box=None, padding=(0, 1), show_edge=False, header_style="dim")
    for passage in recalled[:limit]:
        table.add_row(
            f"{passage.start:,}–{passage.end:,}",
            f"{float(passage.score):.2f}",
            f"{float(passage.gate):.2f}",
            excerpt(passage.text or f"token ids {list(passage.token_ids)[:12]}", words),
        )
    return table


def answered(
    out: Console,
    question: str,
    text: str,
    recalled: list[Any],
    tokens: int,
    seconds: float,
    more: str = "",
) -> None:
    """Show a question, its answer, what was read for it, and how long its `tokens` took."""
    out.print()
    out.print(Text.assemble(("Q ", "bold cyan"), (question, "bold")))
    out.print(Text.assemble(("A ", "bold green"), text.strip() or "(the model answered nothing)"))
    if recalled:
        out.print(passages(recalled, words_of(question, text)))
    else:
        out.print("[dim]nothing in memory was close enough to be recalled[/dim]")
    speed = tokens / seconds if seconds else 0.0
    out.print(
        f"[dim]{counted(tokens, 'token')} in {seconds:.1f} s "
        f"({speed:.1f} tokens/s with the prompt){more}[/dim]"
    )


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counted(count: int, what: str) -> str:
    """A number and its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def conditions(model: Any) -> str:
    """What the numbers were measured on: dtype, device, threads."""
    # Here, as most of what is shown needs no torch, which takes seconds to load.
    import torch

    dtype = str(model.dtype).removeprefix("torch.")
    device = model.device
    if device.type == "cpu":
        return f"{dtype} on {counted(torch.get_num_threads(), 'CPU thread')}"
    return f"{dtype} on {torch.cuda.get_device_name(device)}"
