"""The model that is measured, and how the commands that attach a memory to it begin."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError

WINDOW = 512
"""Tokens of memory's window, and of a forward that it is compared with."""


def load_model(name: str = "smollm2") -> tuple[Any, Any]:
    """A real model on the CPU, in what that is quicker in, and its tokenizer.

    Args:
        name: "smollm2", the demo's model; "qwen", which `benchmarks.models` brings; else a folder
            or name of transformers.

    Raises:
        UsageError: there is no such model.
        FileNotFoundError: "qwen" has not been brought, with the command that does.
    """
    if name == "smollm2":
        from cmr.demo.smollm2 import load_smollm2

        model, tokenizer = load_smollm2()
    elif name == "qwen":
        from benchmarks.models import qwen

        model, tokenizer = qwen.load()
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from cmr.demo.conversion import quick_dtype

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=quick_dtype())
        except OSError as error:
            why = str(error).strip().splitlines()[0]
            raise UsageError(f"--model: a model expected, got {name!r}: {why}") from error
    return model.eval(), tokenizer


def begin(
    parser: Parser, words: list[str] | None = None, **defaults: Any
) -> tuple[argparse.Namespace, Any, Any, dict[str, Any]]:
    """Parses the command line and loads the model.

    Args:
        parser: with the arguments that the command has alone; `--model`, `--seed`, `--threads` and
            `--set` are added.
        words: of the command line, without the program; None: those of this process.
        defaults: settings for attach that `--set` does not name.

    Returns:
        The arguments with `settings` for attach, the model, its tokenizer, and the conditions.
    """
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    # A failure that is left out of an answer would be taken for what memory says.
    args.settings = {"strict": True, **defaults, **args.settings}
    model, tokenizer = load_model(args.model)
    return args, model, tokenizer, rows.conditions(model, seed=args.seed, settings=args.settings)


def described(memory: Any) -> dict[str, Any]:
    """The memory's whole configuration as a dictionary, for the rows."""
    config = getattr(memory, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}
