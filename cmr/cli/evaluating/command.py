"""``cmr evaluate`` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cmr.cli.options import ModelOption

SEVERAL = ("--systems", "--set")


class Several(TyperCommand):
    """A command whose `SEVERAL` options take all the words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Says the option again in front of each further word, which is how click takes several."""
        # People write `--systems memory bm25`, as `--set` of many programs is written.
        spread: list[str] = []
        of = ""
        for word in args:
            if word.startswith("-"):
                of = word if word in SEVERAL else ""
            elif of and spread[-1] != of:
                spread.append(of)
            spread.append(word)
        return super().parse_args(ctx, spread)


def evaluate(
    documents: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|FILE", help="Text files that are asked about, in UTF-8."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines: {"question": "Who?", "answers": ["Ada"], "document": "a.txt"}.',
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Generated documents and questions instead: minutes.")
    ] = False,
    model: ModelOption = None,
    systems: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME …",
            help="Of memory, window, full-context, bm25, passages-as-text, and kvpress or one "
            "of its snapkv, expected-attention, knorm and streaming-llm.",
            show_default="all but those of kvpress; with --quick all but the last",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE …", help="Settings of the memory."),
    ] = None,
    kept: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Tokens of a document that a press of kvpress keeps, or below 1 their share.",
            show_default="memory's window and 192",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Where rows and the report go. Called again with the same folder, it goes on "
            "where it stopped.",
        ),
    ] = Path("cmr-evaluation"),
    judge: Annotated[
        str, typer.Option(help="What the score is: contains, exact or f1.")
    ] = "contains",
    instructed: Annotated[
        bool,
        typer.Option("--instructed", help="Say above a text that is shown what it is for."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    seed: Annotated[int, typer.Option(help="Of what --quick generates.")] = 0,
) -> None:
    """Ask your questions about your documents: memory beside window, full context and BM25.

    Shows how many answers are right, how sure that is, and how long one waits.
    """
    from cmr.cli.evaluating.run import Options, run
    from cmr.evaluation.registry import SYSTEMS

    everything = [name for name in SYSTEMS if not (quick and name == "passages-as-text")]
    run(
        Options(
            documents,
            questions,
            quick,
            model,
            systems or everything,
            settings or [],
            kept,
            out,
            judge,
            instructed,
            max_new_tokens,
            limit,
            seed,
        )
    )
