"""The public needle in a haystack: its essays, its needle, its question; lengths x depths.

Systems: `window` (the end of the text fills the window), `full` (the whole text in the prompt,
where it fits the model) and `memory` (the text read once, then only the question).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks import rows
from benchmarks.common import WINDOW, answer, chat, encode, load_model
from benchmarks.documents import normalise
from benchmarks.essays import raw_essays
from benchmarks.recalling import ask, described, overrides

NEEDLE = (
    "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park "
    "on a sunny day.\n"
)
QUESTION = "What is the best thing to do in San Francisco?"
SYSTEMS = ("window", "full", "memory")
LENGTHS = [2_000, 8_000, 32_000, 100_000]
DEPTHS = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
NEW_TOKENS = 48
ROOM = 192  # tokens of a full prompt kept for the template, the question and the reply


class Haystack:
    """The essays as tokens, one after the other by name, repeated where they are too short."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.needle = encode(tokenizer, NEEDLE)
        self.periods = {encode(tokenizer, "a" + end)[-1] for end in (".", ".\n", ".\n\n")}
        self.tokens: list[int] = []
        while len(self.tokens) < longest:
            for _, text in raw_essays():
                self.tokens += encode(tokenizer, text)
                if len(self.tokens) >= longest:
                    break

    def text(self, length: int, depth: float) -> tuple[list[int], int]:
        """`length` tokens with the needle after the last full stop before `depth` %.

        Returns:
            The token ids and the position of the needle's first token.
        """
        hay = self.tokens[: length - len(self.needle)]
        at = len(hay) if depth >= 100 else int(len(hay) * depth / 100)
        while 0 < at < len(hay) and hay[at - 1] not in self.periods:
            at -= 1
        return hay[:at] + self.needle + hay[at:], at


def named(text: str) -> str:
    """`full` when both the sandwich and Dolores Park are named, `named` for one, else `none`."""
    said = normalise(text)
    parts = ("sandwich" in said, "dolores park" in said)
    return "full" if all(parts) else "named" if any(parts) else "none"


def cell(
    system: str, model: Any, tokenizer: Any, memory: Any, ids: list[int], at: int, needle: int
) -> dict[str, Any]:
    """One cell: the reply of one system about one text."""
    row: dict[str, Any] = {}
    if system == "memory":
        memory.resume()
        memory.clear()
        begun = time.perf_counter()
        memory.read(torch.tensor(ids))
        row["read_seconds"] = round(time.perf_counter() - begun, 2)
        row["stored_tokens"] = int(memory.tokens)
        begun = time.perf_counter()
        text, passages = ask(model, tokenizer, memory, chat(tokenizer, QUESTION), NEW_TOKENS)
        memory.pause()
        places = [i for i, p in enumerate(passages, 1) if p.start < at + needle and p.end > at]
        row["rank"] = places[0] if places else None
        row["recalled"] = [(p.start, p.end, round(p.score, 4)) for p in passages]
    else:
        shown = ids
        if system == "window":
            shown = ids[len(chat(tokenizer, QUESTION, [])) - WINDOW :]
        begun = time.perf_counter()
        text = answer(model, tokenizer, chat(tokenizer, QUESTION, shown), NEW_TOKENS)
    row["seconds"] = round(time.perf_counter() - begun, 2)
    return row | {"answer": text, "named": named(text)}


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every length x depth x system, a row each, appended as it comes."""
    model, tokenizer = load_model()
    haystack = Haystack(tokenizer, max(args.tokens))
    limit = model.config.max_position_embeddings
    systems = [s for s in SYSTEMS if s in args.systems]
    wanted = overrides(args.set)
    out = []
    for length in args.tokens:
        memory = None
        if "memory" in systems:
            import cmr

            room = {"budget": -(-length // 4096) * 4096 + 4096} | wanted
            memory = cmr.attach(model, tokenizer=tokenizer, **room)
            memory.pause()
        try:
            conditions = rows.conditions(model, 0, memory=described(memory))
            for depth in args.depths:
                ids, at = haystack.text(length, depth)
                for system in systems:
                    if system == "full" and length + ROOM > limit:
                        continue
                    got = cell(system, model, tokenizer, memory, ids, at, len(haystack.needle))
                    head = {"system": system, "tokens": length, "depth": depth, "needle": at}
                    out.append(head | got)
                    rows.append("needle", {**conditions, **out[-1]})
                    print(f"{length:>7} {depth:>4} % {system:7} {got['named']:6} "
                          f"{got['answer'][:70]!r}", flush=True)  # fmt: skip
        finally:
            if memory is not None:
                memory.detach()
    for system in systems:
        mine = [r for r in out if r["system"] == system]
        both = sum(r["named"] == "full" for r in mine)
        some = sum(r["named"] != "none" for r in mine)
        print(f"{system:7} cells {len(mine)}: needle named {some}, both parts {both}")
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--depths", type=float, nargs="+", default=DEPTHS)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="settings for attach")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()
