"""The commands and their options. What they do stands in modules that are loaded when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmr.cli.errors import friendly
from cmr.cli.evaluating.command import Several, evaluate
from cmr.cli.input.documents import require_there
from cmr.cli.keys import find_key
from cmr.cli.options import (
    BudgetOption,
    KeyFileOption,
    LoadOption,
    LongTermBudgetOption,
    ModelOption,
    NewTokensOption,
    OnlySession,
    PathArgument,
    ReplaceOption,
    SaveOption,
    SessionOption,
    TokenizerOption,
    WeightOption,
    WindowOption,
    WorkingBudgetOption,
)
from cmr.cli.serve_app import plan, serve, serve_key

# Nothing heavy is imported here: help and completion answer at once.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
memory_app = typer.Typer(
    help="Look at, forget from and export saved memories; no model is loaded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(memory_app, name="memory")

# -- the commands --------------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        import cmr

        print(f"cmr {cmr.__version__}")
        raise typer.Exit


@app.callback()
def cmr_itself(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """A memory for any Hugging Face decoder: contextual memory reweaving."""


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
        list[Path] | None,
        typer.Option(
            help="Text file or PDF to read, - for standard input; may be given several times. "
            "With --load none is needed."
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            help="Question; may be given several times, each asked by itself. With --save none is "
            "needed; without both, what comes through a pipe is the question."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask a `cmr serve` that runs, such as http://127.0.0.1:8000: nothing is loaded "
            "here. Its key, if it wants one, is taken from CMR_SERVER_KEY.",
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
    # Before anything else is a local: all options by name, as `Settings` takes them.
    options = dict(locals())
    documents, questions = options.pop("document") or [], options.pop("question") or []
    if options.pop("url") is not None:
        from cmr.cli.talk import remote

        remote.run(str(url), options, documents, questions)
        return
    require_there(documents)
    from cmr.cli.ask import run
    from cmr.cli.settings import Settings

    run(Settings.parse(**options), documents, questions)


@app.command()
@friendly
def chat(
    document: Annotated[
        list[Path] | None,
        typer.Option(help="Text file or PDF to read first; may be given several times."),
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
    # As in `ask`.
    options = dict(locals())
    documents = options.pop("document") or []
    require_there(documents)
    from cmr.cli.chat import run
    from cmr.cli.settings import Settings

    run(Settings.parse(**options), documents)


@app.command()
@friendly
def calibrate(
    model: ModelOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ordinary text of the kind that will be remembered, best of 100,000 characters "
            "or more; without it documentation of Python.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to keep it, for attach(..., calibration=FILE); without it where every "
            "attach of this model finds it.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the text's order.")] = 0,
) -> None:
    """Measure once where a model's memory is best searched: more is found from then on."""
    from cmr.cli.calibrate import run

    run(model, text, out, seed)


@app.command()
@friendly
def info() -> None:
    """Versions, devices, and which implementation of the kernels runs."""
    from cmr.cli.info import run

    run()


@app.command()
@friendly
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Without the small real model.")] = False,
) -> None:
    """Try whether a memory works here; a report to paste where something does not."""
    from cmr.cli.watch.doctor import run

    run(quick)


@app.command()
@friendly
def top(
    url: Annotated[str, typer.Argument(help="Of the server.")] = "http://127.0.0.1:8000",
    once: Annotated[bool, typer.Option("--once", help="Show all since it began, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Watch a running `cmr serve`; a key of scope metrics, if needed, in CMR_SERVER_KEY."""
    from cmr.cli.watch.top import run

    run(url, once, every)


app.command(cls=Several)(friendly(evaluate))
app.command()(friendly(serve))
app.command("serve-key")(friendly(serve_key))
app.command()(friendly(plan))


# -- cmr memory ----------------------------------------------------------------------------------


@memory_app.command()
@friendly
def inspect(
    path: PathArgument,
    session: OnlySession = None,
    tier: Annotated[
        str | None,
        typer.Option(metavar="TIER", help="Only this tier: recent, working or long_term."),
    ] = None,
    contains: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only blocks with this text, in any case.")
    ] = None,
    min_relevance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Only blocks at least so relevant.")
    ] = 0.0,
    order: Annotated[
        str, typer.Option(help="position, relevance, recalled or newest; best first.")
    ] = "position",
    limit: Annotated[int, typer.Option(min=0, help="Most blocks to show; 0 shows all.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    model: TokenizerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Show what is stored, as text with scores and positions."""
    from cmr.cli.inspect import run

    wanted = {
        "session": session,
        "tier": tier,
        "text": contains,
        "min_relevance": min_relevance,
        "order": order,
        "limit": limit or None,
    }
    run(path, wanted, json, model, find_key(key_file))


@memory_app.command()
@friendly
def forget(
    path: PathArgument,
    session: Annotated[
        str | None, typer.Option(help="This session; alone, it ends with all it stored.")
    ] = None,
    id: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="This block, by the number that inspect shows; may be given several times.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="Blocks that hold a part of this text, in any case and line breaks.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Blocks stored longer ago than 90s, 15m, 12h or 30d."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    model: TokenizerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Erase blocks for good: those that fit [bold]all[/bold] that is given. Shows them and asks.

    Whole blocks go, and what was on the disk is overwritten with zeros.

    Memories that were loaded before, and copies of the folder, still have them.
    """
    from cmr.cli.forget import Wanted, run

    run(path, Wanted(session, id or [], text, older_than), yes, model, find_key(key_file))


@memory_app.command()
@friendly
def export(
    path: PathArgument,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=".jsonl: one block a line, with all that is known of it. "
            ".txt: the text alone, session by session, gaps marked.",
        ),
    ],
    session: Annotated[
        list[str] | None, typer.Option(help="Only this session; may be given several times.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    model: TokenizerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Write what is stored to a file that only you may read."""
    from cmr.cli.export import run

    run(path, out, sessions=session or [], force=force, model=model, key=find_key(key_file))
