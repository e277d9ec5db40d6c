"""A service loop: requests of many users in padded batches, each answered from its user's memory.

Users are sessions. A batch takes the oldest requests, one of a user at most, and names its rows'
sessions; rows never see each other's memory. Between two runs of the service the sessions lie in a
folder, from which a new process goes on.

    python examples/batch_service.py --users 6 --requests 12 --batch 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from common import answers, load

import cmr

NAMES = ("anna", "ben", "carl", "dora", "emil", "fara", "gus", "hana", "ivo", "juno")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
NOTES = """Notes of a visitor of the town library, taken over by the service when it was moved to
the new machines. The visitor likes to be told when a book that was asked for has come back, and
comes by on foot, mostly in the afternoon. The visitor's shelf for orders is shelf {shelf}, on the
left side. The visitor's usual day is {day}, and nothing is ever sent by post.
"""
QUESTIONS = {
    "shelf": "What is the visitor's shelf for orders?",
    "day": "What is the visitor's usual day?",
}


def facts(user: int) -> dict[str, str]:
    """What the service knows about a user."""
    return {"shelf": str(12 + 7 * user), "day": DAYS[user % len(DAYS)]}


def next_batch(waiting: deque[tuple[int, str]], size: int) -> list[tuple[int, str]]:
    """The oldest requests, one of a user at most: two rows cannot write one session at once."""
    batch: dict[int, str] = {}
    for user, kind in list(waiting):
        if len(batch) < size and user not in batch:
            batch[user] = kind
            waiting.remove((user, kind))
    return list(batch.items())


def serve(
    model: Any, tokenizer: Any, memory: cmr.Memory, waiting: deque[tuple[int, str]], size: int
) -> list[tuple[int, str, str]]:
    """Answer all requests batch by batch; returns (user, kind, answer)."""
    done = []
    while waiting:
        batch = next_batch(waiting, size)
        began = time.perf_counter()
        with memory.session(*(NAMES[user] for user, _ in batch)):
            texts = answers(model, tokenizer, [QUESTIONS[kind] for _, kind in batch])
        print(f"batch of {len(batch)}, {time.perf_counter() - began:.1f} s")
        for (user, kind), text in zip(batch, texts, strict=True):
            right = "right" if facts(user)[kind] in text else "wrong"
            print(f"  {NAMES[user]:5} {kind:6} {right}: {text}")
            done.append((user, kind, text))
    return done


def main(argv: Sequence[str] | None = None) -> dict[str, list[tuple[int, str, str]]]:
    """Read, serve, save, load, serve; returns what was answered without and with memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=6, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args(argv)
    kinds = list(QUESTIONS)
    requests = [(i % args.users, kinds[i // args.users % len(kinds)]) for i in range(args.requests)]
    model, tokenizer = load()
    tokenizer.padding_side = "left"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        with cmr.attach(model, tokenizer=tokenizer, budget=16_384) as memory:
            notes = [NOTES.format(**facts(user)) for user in range(args.users)]
            texts = tokenizer(notes, return_tensors="pt", padding=True)
            names = NAMES[: args.users]
            report = memory.read(texts.input_ids, texts.attention_mask, sessions=names)
            print(f"read {report.tokens} tokens of {args.users} users in {report.seconds:.1f} s")
            memory.pause()
            print("\nwithout memory, the first requests:")
            with memory.session(*names):
                found["without"] = serve(
                    model, tokenizer, memory, deque(requests[: args.batch]), args.batch
                )
            memory.resume()
            saved = memory.save(folder)
            print(f"\nsaved {len(memory.sessions)} sessions, {saved.blocks} blocks")
        began = time.perf_counter()
        with cmr.load(folder, model, tokenizer=tokenizer) as memory:
            print(f"loaded in {time.perf_counter() - began:.2f} s\n\nwith memory:")
            found["memory"] = serve(model, tokenizer, memory, deque(requests), args.batch)
    return found


if __name__ == "__main__":
    main()
