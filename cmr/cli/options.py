"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

ModelOption = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time
    typer.Option(
        "--model",
        help="Folder or name of a decoder; without it the small one, SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        help="Folder or name of the model that saved it: its tokenizer gives the text. "
        "Not needed for the small one, SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
SessionOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Name of the memory to use: no other one is read. "
        "With --load it may be left out where only one was saved.",
        show_default=False,
    ),
]
WindowOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=16, help="Local window, in tokens.", show_default="512, or as saved"),
]
BudgetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory beside the model: tokens, or a size such as 2GB.",
        show_default="32768, or as saved",
    ),
]
WorkingBudgetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory below it, in the computer's main memory.",
        show_default="0, or as saved",
    ),
]
LongTermBudgetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory below that, in a file, small but slower.",
        show_default="0, or as saved",
    ),
]
WeightOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="auto|0..1",
        help="How strongly memory is read: 'auto' follows how sure retrieval is, 0 is off, "
        "0.5 one joint softmax.",
        show_default="auto, or as saved",
    ),
]
NewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
LoadOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of a saved memory to start from.", show_default=False),
]
SaveOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Folder to save the memory to at the end; the one of --load writes only what is new.",
        show_default=False,
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--force", help="Let --save replace a memory that was not loaded.")
]
KeyFileOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FILE",
        help="Encrypts and opens saved memories: a file of 32 bytes, or of a passphrase on one "
        "line. Without it the passphrase in CMR_MEMORY_KEY, if that is set.",
        show_default=False,
    ),
]
