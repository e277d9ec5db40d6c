"""What each strategy finds, and how fast: hits among the first 1, 2 and 4 passages.

Haystacks of four lengths, 108 questions of each of four kinds (`haystack.py`). A text is read by an
attached memory whose layers end at the index layer, questions are asked in the chat template, and
every strategy is given the same questions. Beside them BM25 and a dense retriever over the same
passages of 64 tokens starting every 32. A fact counts as found when all its tokens stand in the
passages, as they are (`exact`) or with the block before and behind that memory reads along
(`read`), by memory no further than the lines go on; BM25 and the dense retriever show both whole.
Of two facts that are needed, the share that is found counts. With `--wrapped` each question is
asked once more inside everyday talk (`texts.everyday`), each kind as one of its own, with a mean of
their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.retrieval.remembered import Ranked, Remembered, Shown, around, share_found
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin
from benchmarks.texts.everyday import WRAPPED
from benchmarks.texts.haystack import (
    ASKED_KINDS,
    SHORTEST,
    Haystack,
    make_haystacks,
    with_wrapped,
)
from cmr.config import known_strategies
from cmr.evaluation.statistics import clustered

LENGTHS = (5_000, 30_000, 100_000, 1_000_000)
STRATEGIES = (
    "default",  # semantic similarity with its own rule of which passages to read
    "semantic_similarity",  # this and the others: simply those that score best
    "contextual_relevance",
    "multi_criteria",
    "hierarchical",
    "task_specific",
    "hybrid_ensemble",
)
TEXTUAL = ("bm25", "dense")
TAKEN = (1, 2, 4)
DEPTHS = 8
"""Parts of a text that hits are counted in, by where the first fact needed stands."""


def textual(name: str, tokenizer: Any, haystack: Haystack) -> Callable[[int], Ranked]:
    """The same of a retriever over the passages' text."""
    from benchmarks.baselines.dense import Dense
    from benchmarks.baselines.lexical import Lexical
    from benchmarks.baselines.passages import best_passages, passage_texts

    texts = passage_texts(tokenizer, haystack.token_ids)
    index: Any = Dense(texts) if name == "dense" else Lexical(texts)

    def ranked(number: int) -> Ranked:
        begun = time.perf_counter()
        scores = index.scores(haystack.questions[number].text)
        chosen = best_passages(scores, TAKEN[-1])
        return [Shown(p, around(p, 1)) for p in chosen], time.perf_counter() - begun

    return ranked


def measure(
    length: int, systems: Sequence[str], model: Any, tokenizer: Any, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each system and kind of question at a length, and for each system and depth."""
    hits: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    clusters: dict[tuple[str, str], list[str]] = defaultdict(list)
    depths: dict[tuple[str, int], list[float]] = defaultdict(list)
    for haystack in make_haystacks(tokenizer, length, args.seed)[: args.haystacks]:
        if args.wrapped:
            haystack = with_wrapped(haystack, args.seed)
        kept = None
        if set(systems) - set(TEXTUAL):
            kept = Remembered(model, tokenizer, haystack, args.settings)
        for system in systems:
            if system in TEXTUAL:
                ranked = textual(system, tokenizer, haystack)
            else:
                assert kept is not None
                ranked = kept.ranker(system, TAKEN[-1])
            ranked(0)  # what is built at the first search is not the search's time
            for number, asked in enumerate(haystack.questions):
                passages, took = ranked(number)
                seconds[system].append(took)
                key = (system, asked.kind)
                spans = {
                    "exact": [around(p.first, 0) for p in passages],
                    "read": [p.read for p in passages],
                }
                scored = {
                    f"{name}@{k}": share_found(asked, haystack, shown[:k])
                    for name, shown in spans.items()
                    for k in TAKEN
                }
                hits[key].append(scored)
                clusters[key].append(asked.fact_ids[0])
                if asked.kind in ASKED_KINDS:
                    first = min(haystack.facts[i].start for i in asked.facts)
                    depths[system, DEPTHS * first // length].append(scored["read@2"])
            print(f"{haystack.id} {system}: {1e3 * statistics.median(seconds[system]):.1f} ms")
        if kept is not None:
            kept.memory.detach()
    out = []
    for system in systems:
        for behind in ("", WRAPPED) if args.wrapped else ("",):
            every: dict[str, list[float]] = defaultdict(list)
            for kind in (kind + behind for kind in ASKED_KINDS):
                own = hits[system, kind]
                row = {"tokens": length, "system": system, "kind": kind, "questions": len(own)}
                for name in own[0]:
                    values = [one[name] for one in own]
                    low, high = clustered(values, clusters[system, kind])
                    row[name] = round(statistics.fmean(values), 4)
                    row[f"{name} interval"] = (round(low, 4), round(high, 4))
                    every[name].append(row[name])
                row["median_seconds"] = statistics.median(seconds[system])
                out.append(row)
            mean = {name: round(statistics.fmean(values), 4) for name, values in every.items()}
            out.append({"tokens": length, "system": system, "kind": "mean" + behind, **mean,
                        "median_seconds": statistics.median(seconds[system])})  # fmt: skip
            print(length, system, "mean" + behind, mean, flush=True)
    where = [
        {"tokens": length, "system": system, "depth": (depth + 0.5) / DEPTHS,
         "questions": len(values), "read@2": round(statistics.fmean(values), 4)}
        for (system, depth), values in sorted(depths.items())
    ]  # fmt: skip
    return out, where


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), nargs="+", default=list(LENGTHS))
    known = dict.fromkeys((*STRATEGIES, *TEXTUAL, *known_strategies()))
    parser.add_argument(
        "--systems", nargs="+", choices=known, default=[*STRATEGIES, *TEXTUAL], metavar="NAME",
        help=", ".join(known),
    )  # fmt: skip
    parser.add_argument("--haystacks", type=whole(), help="only the first N of a length")
    parser.add_argument("--wrapped", action="store_true", help="inside everyday talk, too")
    args, model, tokenizer, conditions = begin(parser, words, target_layers=[8])
    for length in args.tokens:
        found, where = measure(length, args.systems, model, tokenizer, args)
        rows.append("retrieval", *({**row, **conditions} for row in found))
        rows.append("retrieval_depth", *({**row, "run": conditions["run"]} for row in where))


if __name__ == "__main__":
    run(main)
