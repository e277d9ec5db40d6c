"""Recall of planted facts that lie in each tier, and what a token costs there.

The questions are those of `benchmarks.recall`; only where the text is kept differs. Before a
question counts, the tier that its fact's blocks are in is looked up.
"""

from __future__ import annotations

import time
from statistics import mean, median
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.documents import (
    SHORTEST,
    Document,
    asked_about,
    chosen,
    coverage,
    grade,
    make_documents,
    rank_of,
)
from cmr.evaluation.answers import ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import minus, share, wilson

ROOM = 8_192
TIERS: dict[str, dict[str, Any]] = {
    "recent": {"budget": ROOM},
    "working": {"budget": 64, "working_budget": ROOM},
    "long_term": {"budget": 64, "long_term_budget": ROOM},
    "long_term_kv": {"budget": 64, "long_term_budget": ROOM, "long_term_store": "kv"},
}


def ask_tier(
    model: Any, tokenizer: Any, tier: str, documents: list[Document], asked: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Detail rows of all questions with the text in one tier, and the memory's figures."""
    import cmr

    details = []
    with cmr.attach(model, tokenizer=tokenizer, strict=True, **TIERS[tier]) as memory:
        for doc in documents:
            memory.clear()
            memory.read(torch.tensor(doc.token_ids))
            for fact in doc.facts:
                held = memory.inspect(start=fact.start, end=fact.end)
                where = sorted({block.tier for block in held})
                for wording in sorted(asked.get((doc.id, fact.id), ())):
                    question = fact.questions[wording]
                    begun = time.perf_counter()
                    text, passages = ask(model, tokenizer, memory, chat(tokenizer, question.text))
                    details.append({
                        "tier": tier, "fact": fact.id, "wording": wording, "in_tiers": where,
                        "right": grade(text, question), "answer": text,
                        "expected": question.answers[0], "rank": rank_of(fact, passages),
                        "covered": round(coverage(fact, passages), 3),
                        "seconds": round(time.perf_counter() - begun, 3),
                    })  # fmt: skip
            right = sum(row["right"] for row in details)
            print(f"{tier}: {doc.id}: {right} of {len(details)} right so far", flush=True)
        stats = {**memory.stats()["tiers"], "settings": described(memory)}
    return details, stats


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), default=5_000)
    parser.add_argument("--questions", type=whole(), help="only the first N of 96")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_model()
    parser.add_seed(2)
    parser.add_threads()
    args = parser.parse_args(words)
    model, tokenizer = load_model(args.model)
    documents = make_documents(tokenizer, args.tokens, args.seed)
    asked = chosen(documents, args.questions)
    documents = asked_about(documents, asked)
    conditions = rows.conditions(model, args.seed, tokens=args.tokens)
    found: dict[str, list[dict[str, Any]]] = {}
    for tier in args.tiers:
        found[tier], stats = ask_tier(model, tokenizer, tier, documents, asked)
        mine = found[tier]
        home = tier.removesuffix("_kv")
        hits, first = sum(row["right"] for row in mine), sum(row["rank"] == 1 for row in mine)
        row = {
            **conditions, "tokens": args.tokens, "tier": tier, "n": len(mine), "right": hits,
            "wilson": wilson(hits, len(mine)), "found_first": first / len(mine),
            "covered": mean(r["covered"] for r in mine),
            "in_this_tier": mean(r["in_tiers"] == [home] for r in mine),
            "seconds": median(r["seconds"] for r in mine),
            "bytes_per_token": stats[home]["bytes_per_token"], "memory": stats["settings"],
        }  # fmt: skip
        if tier != "recent" and "recent" in found:
            row["minus_recent"], row["minus_recent_interval"] = minus(
                [r["right"] for r in mine],
                [r["right"] for r in found["recent"]],
                [r["fact"] for r in mine],
            )
        rows.append("tiers", row)
        rows.append("tiers_details", *({"run": conditions["run"], **r} for r in mine))
        print(
            f"{tier}: {share(hits, len(mine))} right, {row['bytes_per_token']:,.0f} bytes a token"
        )


if __name__ == "__main__":
    run(main)
