"""Answers by each way of reading what is stored, numbers and names apart.

Systems: `attention` (the default: layers read through their own attention), `knn` (next-token
memory alone), `both`, `residual` (stored states blended into what enters the layers), `none` (the
question alone). Each is asked the questions of `benchmarks.recall` about the same documents, which
are read once a kind of store. No system is shown any of the text. Take `--seed 1`: the next-token
memory's settings were chosen on the texts of seed 0.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.recall.report import difference, summarise
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin
from benchmarks.texts.documents import (
    SHORTEST,
    Document,
    asked_about,
    chosen,
    grade,
    make_documents,
)
from cmr.evaluation.answers import ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import share

SYSTEMS: dict[str, dict[str, Any]] = {
    "attention": {"knn": False},
    "knn": {"knn": True, "memory_weight": 0},
    "both": {"knn": True},
    "residual": {"method": "weighted_sum"},
    "none": {"memory_weight": 0},
}
"""What each sets, beside the settings that are the same for all."""


def _opened(model: Any, tokenizer: Any, doc: Document, settings: dict[str, Any], at: Path) -> Any:
    """A memory with these settings that holds the document: loaded where it was read before."""
    import cmr

    if at.exists():
        return cmr.load(at, model, tokenizer=tokenizer, **settings)
    memory = cmr.attach(model, tokenizer=tokenizer, **settings)
    memory.read(torch.tensor(doc.token_ids))
    memory.save(at)
    return memory


def answered(
    model: Any, tokenizer: Any, doc: Document, system: str, wanted: Any, args: Any, folder: Path
) -> list[dict[str, Any]]:
    """Detail rows of one system about one document; `wanted` are (fact, wording) pairs."""
    settings = {**args.settings, **SYSTEMS[system]}
    kind = "states" if system == "residual" else "kv"
    memory = _opened(model, tokenizer, doc, settings, folder / f"{doc.id}-{kind}")
    out = []
    try:
        for fact, wording in wanted:
            question = fact.questions[wording]
            before = memory.stats()["next_token"]
            begun = time.perf_counter()
            text, passages = ask(model, tokenizer, memory, chat(tokenizer, question.text))
            seconds = round(time.perf_counter() - begun, 3)
            after = memory.stats()["next_token"]
            out.append({
                "tokens": len(doc.token_ids), "system": system, "fact": fact.id,
                "kind": fact.kind, "group": fact.group, "wording": wording,
                "question": question.text, "expected": question.answers[0],
                "answer": text, "right": grade(text, question), "seconds": seconds,
                "recalled": [(p.start, p.end) for p in passages],
                "asked": after["tokens"] - before["tokens"],
                "fitted": after["fitted"] - before["fitted"],
            })  # fmt: skip
    finally:
        memory.detach()
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), default=5_000)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--questions", type=whole(), help="only the first N of 96")
    args, model, tokenizer, conditions = begin(parser, words)
    documents = make_documents(tokenizer, args.tokens, args.seed)
    asked = chosen(documents, args.questions)
    details: list[dict[str, Any]] = []
    for doc in asked_about(documents, asked):
        wanted = [(f, w) for f in doc.facts for w in sorted(asked.get((doc.id, f.id), ()))]
        with tempfile.TemporaryDirectory() as folder:
            for system in args.systems:
                got = answered(model, tokenizer, doc, system, wanted, args, Path(folder))
                details += got
                rows.append("readings_details", *({"run": conditions["run"], **r} for r in got))
        right = {s: sum(r["right"] for r in details if r["system"] == s) for s in args.systems}
        print(f"{doc.id}: right so far: {right}", flush=True)
    from rich.console import Console
    from rich.table import Table

    console, out = Console(width=118), []
    table = Table(title=f"documents of {args.tokens:,} tokens")
    for column in ("system", "right [95 %]", "numbers", "names", "tokens fitted", "s"):
        table.add_column(column)
    for system in args.systems:
        row = summarise(details, system)
        mine = [r for r in details if r["system"] == system]
        row["fitted"] = sum(r["fitted"] for r in mine) / max(1, sum(r["asked"] for r in mine))
        row["asked"] = {**SYSTEMS[system]}
        others = [r for r in details if r["system"] == "attention"]
        row["against"] = {"attention": difference(mine, others)}
        out.append({**conditions, **row})
        group = {k: f"{a}/{b}" for k, (a, b) in row["group"].items()}
        table.add_row(
            system, share(row["right"], row["n"]), group.get("number", ""), group.get("name", ""),
            f"{row['fitted']:.3f}", f"{row['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    rows.append("readings", *out)


if __name__ == "__main__":
    run(main)
