"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cmr.cli.errors import friendly
from cmr.cli.memory_app import app as memory_app
from cmr.cli.options import (
    BudgetOption,
    KeyFileOption,
    LoadOption,
    LongTermBudgetOption,
    ModelOption,
    NewTokensOption,
    ReplaceOption,
    SaveOption,
    SessionOption,
    WeightOption,
    WindowOption,
    WorkingBudgetOption,
)

app = typer.Typer(
    help="A memory for any Hugging Face decoder: contextual memory reweaving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(memory_app, name="memory")


@app.command()
@friendly
def demo(
    tokens: Annotated[int, typer.Option(min=2_000, help="Length of the text to read.")] = 24_000,
    window: Annotated[int, typer.Option(min=16, help="Local window, in tokens.")] = 512,
    max_new_tokens: NewTokensOption = 24,
) -> None:
    """Read a long text with a small real model; ask with and without memory."""
    from cmr.cli.demo import run

    run(tokens=tokens, window=window, max_new_tokens=max_new_tokens)


@app.command()
@friendly
def ask(
    document: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="Text file to read; may be given several times. With --load none is needed.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Question; may be given several times. With --save none is needed.",
            show_default=False,
        ),
    ] = None,
    load: LoadOption = None,
    save: SaveOption = None,
    force: ReplaceOption = False,
    key_file: KeyFileOption = None,
    model: ModelOption = None,
    session: SessionOption = None,
    window: WindowOption = None,
    budget: BudgetOption = None,
    working_budget: WorkingBudgetOption = None,
    long_term_budget: LongTermBudgetOption = None,
    memory_weight: WeightOption = None,
    max_new_tokens: NewTokensOption = 64,
) -> None:
    """Read documents of any length into memory and answer questions about them."""
    from cmr.cli.ask import run
    from cmr.cli.settings import Settings

    settings = Settings.parse(
        model=model,
        session=session,
        max_new_tokens=max_new_tokens,
        load=load,
        save=save,
        force=force,
        key_file=key_file,
        memory_weight=memory_weight,
        window=window,
        budget=budget,
        working_budget=working_budget,
        long_term_budget=long_term_budget,
    )
    run(settings, documents=document or [], questions=question or [])


@app.command()
@friendly
def chat(
    document: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="Text file to read first; may be given several times.", show_default=False
        ),
    ] = None,
    load: LoadOption = None,
    save: SaveOption = None,
    force: ReplaceOption = False,
    key_file: KeyFileOption = None,
    model: ModelOption = None,
    session: SessionOption = None,
    window: WindowOption = None,
    budget: BudgetOption = None,
    working_budget: WorkingBudgetOption = None,
    long_term_budget: LongTermBudgetOption = None,
    memory_weight: WeightOption = None,
    max_new_tokens: NewTokensOption = 256,
) -> None:
    """Chat without a limit: what leaves the window becomes memory. /quit /stats /recalled."""
    from cmr.cli.chat import run
    from cmr.cli.settings import Settings

    settings = Settings.parse(
        model=model,
        session=session,
        max_new_tokens=max_new_tokens,
        load=load,
        save=save,
        force=force,
        key_file=key_file,
        memory_weight=memory_weight,
        window=window,
        budget=budget,
        working_budget=working_budget,
        long_term_budget=long_term_budget,
    )
    run(settings, documents=document or [])


@app.command()
@friendly
def info() -> None:
    """Versions, devices, and which implementation of the kernels runs."""
    from cmr.cli.info import run

    run()
