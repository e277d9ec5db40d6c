"""The three assistants of `examples/`: what is answered right with memory and without it.

Each one learns, saves its memory, loads it again and is asked its requests, greedily, 16 tokens a
reply. A reply is right when all words of the fact stand in it.

  begun   the program begins the reply, as the examples do
  free    the model begins its reply itself
"""

from __future__ import annotations

import importlib
import sys
import tempfile

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run
from benchmarks.shared.model import begin

ASSISTANTS = ("support_assistant", "writing_copilot", "banking_helper")
WAYS = {"begun": [], "free": ["--free"]}
"""Way to the options of the examples that it means."""


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args, model, tokenizer, conditions = begin(parser, words, budget=8192)
    import cmr

    # The examples find each other as Python lets them: by the folder that they lie in.
    sys.path.insert(0, str(rows.ROOT / "examples"))
    assistant = importlib.import_module("assistant")
    for name in ASSISTANTS:
        module = importlib.import_module(name)
        with tempfile.TemporaryDirectory() as folder:
            with cmr.attach(model, tokenizer=tokenizer, **args.settings) as memory:
                module.learn(model, tokenizer, memory)
                memory.save(folder)
            for way in args.ways:
                options = assistant.arguments("", WAYS[way])
                with cmr.load(folder, model, tokenizer=tokenizer) as memory:
                    found = assistant.ask(model, tokenizer, memory, module.REQUESTS, options)
                rows.append(
                    "assistants", {**conditions, **row(found), "assistant": name, "way": way}
                )


def row(found: list) -> dict:
    """How many of an assistant's requests were answered, and which were not."""
    return {
        "n": len(found),
        "right": sum(each.request.right(each.remembered) for each in found),
        "without": sum(each.request.right(each.without) for each in found),
        "failed": [e.request.text for e in found if not e.request.right(e.remembered)],
    }


if __name__ == "__main__":
    run(main)
