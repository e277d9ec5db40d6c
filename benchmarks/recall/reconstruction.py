"""What reading only a part of what was recalled costs in answers.

The documents and questions are those of `benchmarks.recall`, one wording of each fact unless
`--questions` says otherwise. A document is read once; every setting loads the same stored memory.
`kept` is the share of questions whose fact was read, every token of it, alone or in a sum.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
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
    grade,
    make_documents,
)
from cmr.config import RECONSTRUCTION_METHODS
from cmr.evaluation.answers import ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import minus, share, wilson

LIMITS: dict[str, dict[str, Any]] = {
    "ratio 0.5": {"compression_ratio": 0.5},
    "ratio 0.25": {"compression_ratio": 0.25},
    "128 tokens": {"max_memory_tokens": 128},
    "64 tokens": {"max_memory_tokens": 64},
}


def settings_of(methods: list[str], limits: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, limit and the settings for attach; all that was recalled first."""
    found: list[tuple[str, str, dict[str, Any]]] = [("none", "ratio 1", {})]
    if "recompute" in methods:
        found.append(("recompute", "ratio 1", {"reconstruction_method": "recompute"}))
    for limit in limits:
        for method in methods:
            found.append((method, limit, {"reconstruction_method": method, **LIMITS[limit]}))
    return found


def ask_all(
    model: Any, tokenizer: Any, saved: list[tuple[Document, Path]], asked: Any, settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A detail row for each question, and the memory's settings."""
    import cmr

    details, config = [], {}
    for doc, folder in saved:
        with cmr.attach(model, tokenizer=tokenizer, **settings) as memory:
            memory.load(folder)
            config = described(memory)
            for fact in doc.facts:
                for wording in sorted(asked.get((doc.id, fact.id), ())):
                    question = fact.questions[wording]
                    prompt = chat(tokenizer, question.text)
                    with torch.inference_mode():
                        model(torch.tensor([prompt]))
                    passages = memory.recalled[0]
                    read = {at for p in passages for at in p.positions}
                    recall = memory._stepper.last.recall
                    begun = time.perf_counter()
                    text, _ = ask(model, tokenizer, memory, prompt)
                    details.append({
                        "fact": fact.id, "wording": wording, "answer": text,
                        "expected": question.answers[0], "right": grade(text, question),
                        "kept": set(range(fact.start, fact.end)) <= read,
                        "recalled": len(recall.mask[0].nonzero()) if recall else 0,
                        "read": sum(p.read for p in passages),
                        "bytes": recall.nbytes if recall else 0,
                        "seconds": round(time.perf_counter() - begun, 3),
                    })  # fmt: skip
    return details, config


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), default=5_000)
    parser.add_argument("--questions", type=whole(), default=24, help="the first N of 96")
    parser.add_argument(
        "--methods", nargs="+", choices=RECONSTRUCTION_METHODS, default=list(RECONSTRUCTION_METHODS)
    )
    parser.add_argument("--limits", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    args = parser.parse_args(words)
    import cmr

    model, tokenizer = load_model(args.model)
    documents = make_documents(tokenizer, args.tokens, args.seed)
    asked = chosen(documents, args.questions)
    documents = asked_about(documents, asked)
    conditions = rows.conditions(model, args.seed, tokens=args.tokens, questions=args.questions)
    plain: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        saved = []
        for doc in documents:
            with cmr.attach(model) as memory:
                memory.read(torch.tensor(doc.token_ids))
                memory.save(Path(folder) / doc.id)
            saved.append((doc, Path(folder) / doc.id))
        for method, limit, settings in settings_of(args.methods, args.limits):
            details, config = ask_all(model, tokenizer, saved, asked, settings)
            hits = sum(row["right"] for row in details)
            plain = plain or details
            less, interval = minus(
                [r["right"] for r in details],
                [r["right"] for r in plain],
                [r["fact"] for r in details],
            )
            row = {
                **conditions, "tokens": args.tokens, "method": method, "limit": limit,
                "n": len(details), "right": hits, "wilson": wilson(hits, len(details)),
                "minus_all": less, "minus_all_interval": interval,
                "kept": mean(r["kept"] for r in details),
                "recalled": mean(r["recalled"] for r in details),
                "read": mean(r["read"] for r in details),
                "most_read": max(r["read"] for r in details),
                "bytes": mean(r["bytes"] for r in details),
                "seconds": median(r["seconds"] for r in details), "memory": config,
            }  # fmt: skip
            rows.append("reconstruction", row)
            print(
                f"{method}, {limit}: {share(hits, len(details))} right, fact read "
                f"{100 * row['kept']:.0f} %, {row['read']:.0f} of {row['recalled']:.0f} tokens, "
                f"{row['bytes']:,.0f} bytes",
                flush=True,
            )


if __name__ == "__main__":
    run(main)
