"""Which settings of the search suit which task: shares of what should be found, for each setting.

An attached memory reads the texts of `task_haystacks`; questions are asked in the chat template. A
planted sentence (or the line that defines a function) counts as found when all of its tokens stand
in the passages taken, read with one block beside them on either side.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import Any

from benchmarks.retrieval.remembered import Remembered, around, share_found
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin
from benchmarks.texts.haystack import BLOCK, Asked, Haystack
from benchmarks.texts.task_haystacks import haystacks
from cmr.evaluation.passages import tokens_of
from cmr.evaluation.statistics import clustered
from cmr.retrieval import Strategy
from cmr.retrieval.strategies.ensemble import HybridEnsemble
from cmr.retrieval.strategies.lexical import LexicalOverlap
from cmr.retrieval.strategies.registry import Parts, StrategyMaker, register_strategy
from cmr.retrieval.strategies.semantic import Semantic

LEXICAL_WEIGHTS = (0.05, 0.1, 0.3, 1.0, 3.0)
STRATEGIES = ("maxsim", "contextual_relevance", "hybrid_ensemble", "task_specific")
TASKS = ("question_answering", "code", "dialogue", "summarising")
TAKEN = (1, 2, 4, 8)


def _ensemble(weight: float) -> StrategyMaker:
    def make(parts: Parts) -> Strategy:
        semantic = Semantic(parts.calibration)
        return HybridEnsemble([(semantic, 1.0), (LexicalOverlap(), weight)], rank_constant=10)

    return make


ENSEMBLES = {f"semantic + {weight} lexical": weight for weight in LEXICAL_WEIGHTS}


def register() -> None:
    """Makes the strategies known that the library does not come with."""
    register_strategy("lexical", lambda parts: LexicalOverlap())
    for name, weight in ENSEMBLES.items():
        register_strategy(name, _ensemble(weight))


def settings_tried() -> dict[str, dict[str, Any]]:
    """What is compared, by a name for it."""
    tried: dict[str, dict[str, Any]] = {
        name: {"strategy": name} for name in (*STRATEGIES, "lexical", *ENSEMBLES)
    }
    for criterion in ("recency", "diversity"):
        for weight in (0.05, 0.1, 0.2, 0.3, 0.5):
            weights = {"similarity": 1 - weight, criterion: weight}
            tried[f"{criterion} {weight}"] = {
                "strategy": "multi_criteria",
                "criteria_weights": weights,
            }
    return tried


def passages(kept: Remembered, number: int, settings: dict[str, Any], task: str) -> list[int]:
    """First blocks of the passages chosen for a question of a task, best first."""
    core = kept.core
    before = core.retriever
    core.retriever = before.with_settings(
        blocks=TAKEN[-1], neighbours=0, gain=0.0, threshold=0.0, **settings
    )
    try:
        starts = core.search(replace(kept.asks[number], task=task)).table[0, :, 0]
    finally:
        core.retriever = before
    first: list[int] = (core.ring.positions[starts[starts >= 0]].amax(-1) // BLOCK).tolist()
    return first


def needed(asked: Asked, haystack: Haystack, chosen: list[int]) -> float:
    """The share found of what the question needs; of things told several times any telling."""
    ids = [haystack.facts[i].id for i in asked.facts]
    spans = [around(p, 1) for p in chosen]
    if asked.kind != "all that is said":
        return share_found(asked, haystack, spans)
    shown = tokens_of(spans)
    found = 0
    for key in ids:
        tellings = [f for f in haystack.facts if f.id.rsplit(" ", 1)[0] == key.rsplit(" ", 1)[0]]
        found += any(shown.issuperset(range(f.start, f.end)) for f in tellings)
    return found / len(ids)


def measure(task: str, model: Any, tokenizer: Any, args: argparse.Namespace) -> list[dict]:
    """A row for each setting and kind of question of a task."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, list[str]] = defaultdict(list)
    index: dict[str, Any] = {}
    for haystack in haystacks(task, tokenizer, args.seed, args.texts):
        kept = Remembered(model, tokenizer, haystack, args.settings)
        measured = kept.core.calibration
        digest = None if measured is None else measured.digest[:12]
        index = {"index_layer": kept.core.layout.index_layer, "calibration": digest}
        for asked in haystack.questions:
            texts[asked.kind].append(haystack.id)
        for name, settings in settings_tried().items():
            if args.searches and name not in args.searches:
                continue
            for number, asked in enumerate(haystack.questions):
                chosen = passages(kept, number, settings, task)
                for k in TAKEN:
                    found[name, asked.kind][k].append(needed(asked, haystack, chosen[:k]))
        kept.memory.detach()
        print(haystack.id, len(haystack.token_ids), len(haystack.questions), flush=True)
    out = []
    for (name, kind), by in found.items():
        row: dict[str, Any] = {
            "task": task,
            "kind": kind,
            "search": name,
            "questions": len(by[1]),
            **index,
        }
        for k, values in by.items():
            row[f"found@{k}"] = round(statistics.fmean(values), 4)
        if len(set(texts[kind])) > 1:
            low, high = clustered(by[2], texts[kind])
            row["found@2 interval"] = (round(low, 4), round(high, 4))
        print(task, kind, name, *(f"{100 * row[f'found@{k}']:.1f}" for k in TAKEN), flush=True)
        out.append(row)
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--texts", type=whole(), default=4, help="texts of a task")
    parser.add_argument("--searches", nargs="+", choices=settings_tried(), help="only these")
    args, model, tokenizer, conditions = begin(parser, words, target_layers=[8])
    register()
    for task in args.tasks:
        rows.append(
            "tasks", *({**row, **conditions} for row in measure(task, model, tokenizer, args))
        )


if __name__ == "__main__":
    run(main)
