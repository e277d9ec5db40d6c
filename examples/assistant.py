"""An assistant in two processes: one learns and saves, another one loads and is asked.

What the three assistants share. A request is answered with memory paused and with memory, and each
answer is compared with what is right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common import both, load

import cmr

Step = Callable[[Any, Any, cmr.Memory], None]


@dataclass(frozen=True)
class Request:
    """What a user says, and what a right answer has in it.

    Attributes:
        session: whose memory is asked.
        text: the request, as people write it.
        begins: words that the program begins the reply with, as a form letter does: a model of this
            size goes on from them more often than it finds a beginning itself.
        facts: words that are all in a right answer; none of them are in the request.
    """

    session: str
    text: str
    begins: str
    facts: tuple[str, ...]

    def right(self, answer: str) -> bool:
        """Whether an answer has all facts in it."""
        return all(fact.lower() in answer.lower() for fact in self.facts)


@dataclass(frozen=True)
class Answered:
    """A request with its two answers."""

    request: Request
    without: str
    remembered: str


def arguments(about: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line that every assistant has."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="of the saved memory; a temporary one if left out")
    parser.add_argument("--step", choices=("learn", "ask"), help="this one alone; needs --folder")
    parser.add_argument("--only", default="", help="requests with these words in them")
    parser.add_argument("--free", action="store_true", help="the model begins its replies itself")
    args = parser.parse_args(argv)
    if args.step and not args.folder:
        parser.error("--step: a --folder expected, as one step saves what the other one loads")
    return args


def run(
    script: str,
    args: argparse.Namespace,
    learn: Step,
    requests: Sequence[Request],
    last: Callable[[cmr.Memory], None] | None = None,
) -> list[Answered]:
    """Do one step in this process, or both steps in a process each.

    Args:
        script: path of the assistant's program.
        args: of `arguments`.
        learn: reads into a new memory what the assistant is to know.
        requests: what is asked.
        last: what is done with the memory when all is answered.

    Returns:
        The answers, where this process asked.
    """
    if args.step is None:
        with tempfile.TemporaryDirectory() as temporary:
            given = ["--folder", args.folder or temporary, "--only", args.only]
            given += ["--free"] * args.free
            for step in ("learn", "ask"):
                subprocess.run([sys.executable, script, "--step", step, *given], check=True)
        return []
    model, tokenizer = load()
    if args.step == "learn":
        with cmr.attach(model, tokenizer=tokenizer, budget=8192) as memory:
            learn(model, tokenizer, memory)
            memory.save(args.folder)
            print(f"learnt and saved: {memory.tokens} tokens of {', '.join(memory.sessions)}\n")
        return []
    with cmr.load(args.folder, model, tokenizer=tokenizer) as memory:
        found = ask(model, tokenizer, memory, requests, args)
        if last is not None:
            last(memory)
        return found


def ask(
    model: Any,
    tokenizer: Any,
    memory: cmr.Memory,
    requests: Sequence[Request],
    args: argparse.Namespace,
) -> list[Answered]:
    """Answer each request both ways, print what came, and say which ones failed."""
    found = []
    for request in requests:
        if args.only.lower() in request.text.lower():
            begins = "" if args.free else request.begins
            with memory.session(request.session):
                pair = both(model, tokenizer, memory, request.text, begins=begins)
            found.append(Answered(request, *pair))
    right = sum(each.request.right(each.remembered) for each in found)
    known = sum(each.request.right(each.without) for each in found)
    print(f"right with memory: {right} of {len(found)}, without: {known}")
    for each in found:
        if not each.request.right(each.remembered):
            print(f"  failed with memory: {each.request.text}")
    return found
