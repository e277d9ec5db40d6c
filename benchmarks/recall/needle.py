"""The public needle in a haystack: its essays, its needle, its question; lengths x depths.

Systems: `window` (the end of the text fills the window), `full` (the whole text in the prompt,
where it fits the model) and `memory` (the text read once, then only the question). The needle goes
in after the last full stop before the depth, as in the original. A cell is `full` when the reply
names both the sandwich and Dolores Park, `named` for one of them. The store is made large enough
for the text, because what was evicted cannot be recalled.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import WINDOW, described, load_model
from benchmarks.texts.needle import QUESTION, NeedleText
from cmr.evaluation.answers import answer, ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.words import normalise

SYSTEMS = ("window", "full", "memory")
LENGTHS = [2_000, 8_000, 32_000, 100_000]
DEPTHS = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
NEW_TOKENS = 48
ROOM = 192  # tokens of a full prompt kept for the template, the question and the reply


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


def ask_everywhere(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every length x depth x system, a row each, appended as it comes."""
    model, tokenizer = load_model(args.model)
    haystack = NeedleText(tokenizer, max(args.tokens))
    limit = model.config.max_position_embeddings
    systems = [s for s in SYSTEMS if s in args.systems]
    out = []
    for length in args.tokens:
        memory = None
        if "memory" in systems:
            import cmr

            room = {"budget": -(-length // 4096) * 4096 + 4096} | args.settings
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


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(WINDOW), nargs="+", default=LENGTHS)
    parser.add_argument("--depths", type=float, nargs="+", default=DEPTHS, help="in percent")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_model()
    parser.add_threads()
    parser.add_settings()
    ask_everywhere(parser.parse_args(words))


if __name__ == "__main__":
    run(main)
