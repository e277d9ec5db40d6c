"""The way of a token through the project's files.

A tiny random model does what users do while `sys.setprofile` watches. Counted are the project's
own files and functions that run, and the hops: calls of a function whose nearest caller inside the
project stands in another file (calls that come from outside, by way of torch, count from the file
that called torch last). The fewer there are, the shorter is the way that a reader has to follow.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import cmr
from benchmarks.shared import decoding, rows
from benchmarks.shared.command import Parser, run

PACKAGE = str(Path(cmr.__file__).parent)
READ, STORED, STEPS = 300, 400, 12
BARS = {
    "step_with_search": {"files": 25, "hops": 150},
    "step": {"files": 15},
    "attach": {"files": 35},
    "read": {"hops": 800},
    "save": {"files": 20},
    "load": {"files": 40},
}
"""What each way is held to."""


class Trace:
    """Counts what runs while it is entered.

    Attributes:
        files: of the project, in which a function ran.
        functions: that ran.
        hops: calls from one of these files into another.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.functions: set[tuple[str, str]] = set()
        self.hops = 0

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE):
            return
        self.files.add(file)
        name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # from Python 3.11 on
        self.functions.add((file, name))
        # Frames of torch and transformers lie between two files of ours: they are passed over, so
        # that a hook called by a layer counts as a call from the file that called the model.
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != file:
            self.hops += 1

    def __enter__(self) -> Trace:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def counts(self) -> dict[str, int]:
        """Files, functions and hops."""
        return {"files": len(self.files), "functions": len(self.functions), "hops": self.hops}

    def names(self) -> list[str]:
        """The files, as they stand in the package."""
        return sorted(file.removeprefix(PACKAGE + "/") for file in self.files)


def traced(act: Callable[[], Any]) -> tuple[Trace, Any]:
    """What `act` counts to, and what it gives."""
    with Trace() as trace:
        given = act()
    return trace, given


@torch.inference_mode()
def ways() -> dict[str, Trace]:
    """Every way, counted in a process that has attached a memory before."""
    model = decoding.tiny_model(layers=6)
    vocabulary = model.config.vocab_size
    text = decoding.some_text(STORED, vocabulary)
    settings: dict[str, Any] = {**decoding.SETTINGS, "window": 64, "refresh": 4}
    # What only the first memory of a process does is no part of a way: modules that are imported
    # late, operations that are registered, caches that fill.
    cmr.attach(model, **settings).detach()
    found: dict[str, Trace] = {}
    found["attach"], memory = traced(lambda: cmr.attach(model, **settings))
    with tempfile.TemporaryDirectory() as folder:
        memory.read(text)
        found["read"], _ = traced(lambda: memory.read(decoding.some_text(READ, vocabulary, seed=2)))
        run = decoding.begin(model, decoding.some_text(48, vocabulary, seed=1))
        for _ in range(STEPS):
            before = memory.stats()["searches"]
            trace, _ = traced(lambda: run.steps(1))
            searched = memory.stats()["searches"] > before
            found["step_with_search" if searched else "step"] = trace
        found["save"], _ = traced(lambda: memory.save(Path(folder) / "saved"))
        memory.detach()
        found["load"], memory = traced(lambda: cmr.load(Path(folder) / "saved", model))
        memory.detach()
    return found


def missed(found: dict[str, Trace]) -> list[str]:
    """What is more than its bar, a line each."""
    return [
        f"{way}: {count} {what}, at most {bars[what]} wanted"
        for way, bars in BARS.items()
        for what, count in found[way].counts().items()
        if count > bars.get(what, count)
    ]


def main(words: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--files", metavar="WAY", choices=BARS, help="list a way's files, no row")
    parser.add_argument("--label", default="", help="what the row is called")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    args = parser.parse_args(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ways()
    if args.files:
        print("\n".join(found[args.files].names()))
        return 0
    for name, bars in BARS.items():
        counts = found[name].counts()
        bar = ", ".join(f"at most {most} {what}" for what, most in bars.items())
        print(f"{name:17}" + "".join(f"{n:6} {what}" for what, n in counts.items()) + f"   ({bar})")
    row = {"label": args.label, **{name: found[name].counts() for name in BARS}}
    rows.append("hops", {**rows.conditions(), **row})
    more = missed(found)
    print("\n".join(["", *more]) if more else "every bar is kept")
    return int(args.check and bool(more))


if __name__ == "__main__":
    run(main)
