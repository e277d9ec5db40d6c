"""The model that is measured, and how the commands that attach a memory to it begin."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError

WINDOW = 512
"""Tokens of memory's window, and of a forward that it is compared with."""


def load_model() -> tuple[Any, Any]:
    """The small real model in bfloat16 on the CPU and its tokenizer.

    `CMR_MODEL` names another model (a folder or a name); otherwise the demo's model is loaded.

    Raises:
        UsageError: there is no such model.
    """
    other = os.environ.get("CMR_MODEL")
    if other:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(other)
            model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
        except OSError as error:
            why = str(error).strip().splitlines()[0]
            raise UsageError(f"CMR_MODEL: a model expected, got {other!r}: {why}") from error
    else:
        from cmr.demo.smollm2 import load_smollm2

        model, tokenizer = load_smollm2()
    return model.eval(), tokenizer


def begin(
    parser: Parser, words: list[str] | None = None, **defaults: Any
) -> tuple[argparse.Namespace, Any, Any, dict[str, Any]]:
    """Parses the command line and loads the model.

    Args:
        parser: with the arguments that the command has alone; `--seed`, `--threads` and `--set` are
            added.
        words: of the command line, without the program; None: those of this process.
        defaults: settings for attach that `--set` does not name.

    Returns:
        The arguments with `settings` for attach, the model, its tokenizer, and the conditions.
    """
    parser.add_seed()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    args.settings = {**defaults, **args.settings}
    model, tokenizer = load_model()
    return args, model, tokenizer, rows.conditions(model, seed=args.seed, settings=args.settings)


def described(memory: Any) -> dict[str, Any]:
    """The memory's whole configuration as a dictionary, for the rows."""
    config = getattr(memory, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}
