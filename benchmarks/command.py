"""What the commands that search an attached memory have in common."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks import rows
from benchmarks.common import load_model
from benchmarks.recalling import overrides


def begin(
    parser: argparse.ArgumentParser, **defaults: Any
) -> tuple[argparse.Namespace, Any, Any, dict[str, Any]]:
    """Parse the command line and load the model.

    Args:
        parser: with the arguments that the command has alone; `--seed`, `--threads` and `--set` are
            added.
        defaults: settings for attach that `--set` does not name.

    Returns:
        The arguments with `settings` for attach, the model, its tokenizer, and the conditions.
    """
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="settings for attach")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.settings = {**defaults, **overrides(args.set)}
    model, tokenizer = load_model()
    return args, model, tokenizer, rows.conditions(model, seed=args.seed, settings=args.settings)
