"""``cmr memory``: look at, forget from and export what was saved, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cmr.cli.errors import friendly
from cmr.cli.options import KeyFileOption, TokenizerOption

app = typer.Typer(
    help="Look at, forget from and export saved memories; no model is loaded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

PathArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder of the saved memory.", show_default=False)
]
OnlySession = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time
    typer.Option("--session", help="Only this session.", show_default=False),
]


@app.command()
@friendly
def inspect(
    path: PathArgument,
    session: OnlySession = None,
    tier: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TIER", help="Only this tier: recent, working or long_term.", show_default=False
        ),
    ] = None,
    contains: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TEXT", help="Only blocks with this text, in any case.", show_default=False
        ),
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
    from cmr.cli.keys import find_key

    run(
        path,
        wanted={
            "session": session,
            "tier": tier,
            "text": contains,
            "min_relevance": min_relevance,
            "order": order,
            "limit": limit or None,
        },
        as_json=json,
        model=model,
        key=find_key(key_file),
    )


@app.command()
@friendly
def forget(
    path: PathArgument,
    session: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="This session; alone, it ends with all it stored.", show_default=False),
    ] = None,
    id: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            metavar="N",
            help="This block, by the number that inspect shows; may be given several times.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="SPAN",
            help="Blocks that hold a part of this text, in any case and line breaks.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="AGE",
            help="Blocks stored longer ago than 90s, 15m, 12h or 30d.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    model: TokenizerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Erase blocks for good: those that fit [bold]all[/bold] that is given. Shows them and asks.

    Whole blocks go, and what was on the disk is overwritten with zeros.

    Memories that were loaded before, and copies of the folder, still have them.
    """
    from cmr.cli.forget import run
    from cmr.cli.keys import find_key

    run(
        path,
        session=session,
        ids=id or [],
        text=text,
        older_than=older_than,
        yes=yes,
        model=model,
        key=find_key(key_file),
    )


@app.command()
@friendly
def export(
    path: PathArgument,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=".jsonl: one block a line, with all that is known of it. "
            ".txt: the text alone, session by session, gaps marked.",
            show_default=False,
        ),
    ],
    session: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this session; may be given several times.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    model: TokenizerOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Write what is stored to a file that only you may read."""
    from cmr.cli.export import run
    from cmr.cli.keys import find_key

    run(path, out, sessions=session or [], force=force, model=model, key=find_key(key_file))
