"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cmr.cli.errors import friendly

app = typer.Typer(
    help="A memory for any Hugging Face decoder: contextual memory reweaving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time
    typer.Option(
        "--model",
        help="Folder or name of a decoder; without it the small one, SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
WindowOption = Annotated[int, typer.Option(min=16, help="Local window, in tokens.")]
BudgetOption = Annotated[int, typer.Option(min=32, help="Memory's size, in tokens.")]
WeightOption = Annotated[
    str,
    typer.Option(
        help="'auto' follows how sure retrieval is; 0 is off, 0.5 one joint softmax, up to 1.",
    ),
]
NewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
SessionOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Name of the memory to use; kept while the command runs."),
]


@app.command()
@friendly
def demo(
    tokens: Annotated[int, typer.Option(min=2_000, help="Length of the text to read.")] = 24_000,
    window: WindowOption = 512,
    max_new_tokens: NewTokensOption = 24,
) -> None:
    """Read a long text with a small real model; ask with and without memory."""
    from cmr.cli.demo import run

    run(tokens=tokens, window=window, max_new_tokens=max_new_tokens)


@app.command()
@friendly
def ask(
    document: Annotated[
        list[Path], typer.Option(help="Text file to read; may be given several times.")
    ],
    question: Annotated[list[str], typer.Option(help="Question; may be given several times.")],
    model: ModelOption = None,
    session: SessionOption = None,
    window: WindowOption = 512,
    budget: BudgetOption = 32_768,
    memory_weight: WeightOption = "auto",
    max_new_tokens: NewTokensOption = 64,
) -> None:
    """Read documents of any length into memory and answer questions about them."""
    from cmr.cli.ask import run
    from cmr.cli.session import Settings

    settings = Settings.parse(model, session, window, budget, memory_weight, max_new_tokens)
    run(settings, documents=document, questions=question)


@app.command()
@friendly
def chat(
    model: ModelOption = None,
    document: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Text file to read first; may be given several times."),
    ] = None,
    session: SessionOption = None,
    window: WindowOption = 512,
    budget: BudgetOption = 32_768,
    memory_weight: WeightOption = "auto",
    max_new_tokens: NewTokensOption = 256,
) -> None:
    """Chat without a limit: what leaves the window becomes memory. /quit /stats /recalled."""
    from cmr.cli.chat import run
    from cmr.cli.session import Settings

    settings = Settings.parse(model, session, window, budget, memory_weight, max_new_tokens)
    run(settings, documents=document or [])


@app.command()
@friendly
def info() -> None:
    """Versions, devices, and which implementation of the kernels runs."""
    from cmr.cli.info import run

    run()
