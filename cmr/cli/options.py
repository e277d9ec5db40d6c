"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder, GGUF file or name of a decoder; without it the small one, "
        "SmolLM2-135M-Instruct.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder or name of the model that saved it: its tokenizer gives the text. "
        "Not needed for the small one, SmolLM2-135M-Instruct.",
    ),
]
SessionOption = Annotated[
    str | None,
    typer.Option(
        help="Name of the memory to use: no other one is read. "
        "With --load it may be left out where only one was saved."
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=16, help="Local window, in tokens.", show_default="512, or as saved"),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory beside the model: tokens, or a size such as 2GB.",
        show_default="32768, or as saved",
    ),
]
WorkingBudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory below it, in the computer's main memory.",
        show_default="0, or as saved",
    ),
]
LongTermBudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory below that, in a file, small but slower.",
        show_default="0, or as saved",
    ),
]
WeightOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|0..1",
        help="How strongly memory is read: 'auto' follows how sure retrieval is, 0 is off, "
        "0.5 one joint softmax.",
        show_default="auto, or as saved",
    ),
]
NewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
LoadOption = Annotated[Path | None, typer.Option(help="Folder of a saved memory to start from.")]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder to save the memory to at the end; the one of --load writes only what is new."
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--force", help="Let --save replace a memory that was not loaded.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Encrypts and opens saved memories: a file of 32 bytes, or of a passphrase on one "
        "line. Without it the passphrase in CMR_MEMORY_KEY, if that is set.",
    ),
]
PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the saved memory.")]
OnlySession = Annotated[str | None, typer.Option("--session", help="Only this session.")]
