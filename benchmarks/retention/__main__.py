"""Which policy still holds the block that is asked for later: a stream through a bounded store.

One stream of real text is read once (`benchmarks.retention.scores`, which keeps every method's
scores); the store is then simulated exactly for every policy. Rows: `policy`, what share of the
questions found their block, by how long ago it was read; `ranking`, how high the blocks that are
asked for rank among all blocks, or all of prose, whatever the policy (two kinds of places lie in
prose only, so that telling it from code already helps); `position`, mean relevance by place in the
piece that was read, which a fair scorer has level at 0.5. The policies are run a second time over
the prose alone, as if the rest had not been read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.retention import relevance, scores
from benchmarks.retention.scores import BLOCK, SEGMENT
from benchmarks.retention.store import Asked, main_block, questions, simulate
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run, whole
from benchmarks.shared.model import load_model
from benchmarks.texts.stream import KINDS_OF_PLACES, Place, make_stream
from cmr.evaluation.statistics import clustered

BUDGET = 64_000
SEEDS = 5
DRAWS = 2_000
RANKED_ONLY = ("state novelty", "surprise and rarity", "surprise and pair novelty")
"""Scores whose policies are not simulated."""
TIERED = ("surprise", "pair novelty")
"""Scores that are also simulated below an upper tier of half the budget."""
BINS: dict[str, Callable[[Asked], bool]] = {
    "first": lambda a: a.repeat == 0,
    "first, within the budget": lambda a: a.repeat == 0 and a.distance <= BUDGET,
    "first, 1 to 2 budgets ago": lambda a: a.repeat == 0 and BUDGET < a.distance <= 2 * BUDGET,
    "first, 2 to 4 budgets ago": lambda a: a.repeat == 0 and 2 * BUDGET < a.distance <= 4 * BUDGET,
    "first, over 4 budgets ago": lambda a: a.repeat == 0 and a.distance > 4 * BUDGET,
    "first, beyond the budget": lambda a: a.repeat == 0 and a.distance > BUDGET,
    "again": lambda a: a.repeat > 0,
    "again, beyond the budget": lambda a: a.repeat > 0 and a.distance > BUDGET,
}
"""Questions by how long ago their block was read, in tokens; `again`: asked for before."""


def values(ids: list[int], tokens: int) -> dict[str, torch.Tensor]:
    """Every score of every block, `[blocks]`: relevance by method, and what else may tell."""
    raw: dict[str, torch.Tensor] = {}
    states = None
    for which in scores.PASSES:
        found = scores.load(ids, which)
        if "state" in found:
            states = found.pop("state")[: tokens // BLOCK]
        raw |= {name: x[:tokens] for name, x in found.items() if len(x) >= tokens}
    out = relevance.by_method(raw, tokens)
    assert states is not None
    out["state novelty"] = relevance.calibrated(relevance.state_novelty(states))
    out["pair novelty"] = relevance.calibrated(relevance.pair_novelty(ids[:tokens]))
    out["rarity"] = relevance.calibrated(relevance.rarity(ids[:tokens]))
    out["surprise and pair novelty"] = (out["surprise"] + out["pair novelty"]) / 2
    out["surprise and rarity"] = (out["surprise"] + out["rarity"]) / 2
    for name in raw:
        for how in relevance.POOLS:
            out[f"{name}, raw, {how}"] = relevance.pooled(raw[name], how)
    return out


def interval(numbers: list[float], places: list[int]) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over places."""
    if not numbers:
        return {"n": 0}
    low, high = clustered(numbers, places, draws=DRAWS)
    return {"mean": float(np.mean(numbers)), "low": low, "high": high, "n": len(numbers),
            "places": len(set(places))}  # fmt: skip


def ranking(
    score: torch.Tensor, places: list[Place], blocks: list[int], among: torch.Tensor
) -> dict[str, Any]:
    """Per kind, share of the blocks `among` `[blocks]` that score lower; 0.5 is chance."""
    ordered = score.double()[among].sort().values
    own = score.double()[blocks]
    below = torch.searchsorted(ordered, own) + torch.searchsorted(ordered, own, right=True)
    share = (below / (2 * len(ordered))).tolist()
    found = {}
    for kind in KINDS_OF_PLACES:
        at = [i for i, (p, b) in enumerate(zip(places, blocks, strict=True))
              if p.kind == kind and bool(among[b])]  # fmt: skip
        found[kind] = interval([share[i] for i in at], at)
    return found


class Policy(NamedTuple):
    """A strategy, what it takes for relevance, and the slots of an upper tier."""

    strategy: str
    relevance: torch.Tensor
    recent: int = 0


def policies(found: dict[str, torch.Tensor], seed: int) -> dict[str, Policy]:
    """All policies by name; the seed is that of the random one."""
    blocks = len(next(iter(found.values())))
    rng = random.Random(f"random relevance {seed}")
    none = torch.full((blocks,), 0.5)
    blind = torch.tensor([rng.random() for _ in range(blocks)])
    out = {
        "oldest": Policy("oldest", none),
        "random": Policy("relevance", blind),
        "lru": Policy("lru", none),
        "half recent, random": Policy("relevance", blind, BUDGET // BLOCK // 2),
    }
    for name, score in found.items():
        if name not in RANKED_ONLY and ", raw" not in name:
            out[f"relevance, {name}"] = Policy("relevance", score)
            out[f"lru_relevance, {name}"] = Policy("lru_relevance", score)
        if name in TIERED:
            out[f"half recent, {name}"] = Policy("relevance", score, BUDGET // BLOCK // 2)
    return out


def simulated_rows(
    found: dict[str, torch.Tensor], places: list[Place], tokens: int, seeds: int, text: str = "all"
) -> list[dict[str, Any]]:
    """A row a policy and kind of place; `text` says what the stream was cut down to."""
    asked = [questions(places, tokens, seed) for seed in range(seeds)]
    every = [a for group in asked for a in group]
    hits: dict[str, list[bool]] = {}
    by_seed = [policies(found, seed) for seed in range(seeds)]
    for name in by_seed[0]:
        begun = time.perf_counter()
        hits[name] = []
        for seed, group in enumerate(asked):
            policy = by_seed[seed][name]
            hits[name] += simulate(
                policy.strategy, policy.relevance, group, BUDGET // BLOCK, seed, policy.recent
            )
        share = sum(hits[name]) / len(every)
        print(f"{name:36} {100 * share:5.1f} %  {time.perf_counter() - begun:.1f} s", flush=True)
    out = []
    for name, own in hits.items():
        for kind in KINDS_OF_PLACES:
            row: dict[str, Any] = {"part": "policy", "policy": name, "kind": kind}
            row |= {"text": text, "read": tokens}
            row |= {"strategy": by_seed[0][name].strategy, "recent": by_seed[0][name].recent}
            for bin_name, wanted in BINS.items():
                at = [i for i, a in enumerate(every) if places[a.place].kind == kind and wanted(a)]
                who = [every[i].place for i in at]
                entry: dict[str, Any] = {"found": interval([float(own[i]) for i in at], who)}
                for other in ("oldest", "random"):
                    less = [float(own[i]) - float(hits[other][i]) for i in at]
                    entry[f"minus_{other}"] = interval(less, who)
                row[bin_name] = entry
            out.append(row)
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(scores.SEGMENT), help="the first N of what was read")
    parser.add_argument("--seeds", type=whole(), default=SEEDS, help="of the times of asking")
    parser.add_argument("--stream-seed", type=int, default=0)
    parser.add_argument("--scores", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--ranking", action="store_true", help="no policies")
    parser.add_model()
    args = parser.parse_args(words)
    model, tokenizer = load_model(args.model)
    stream = make_stream(tokenizer, scores.TOKENS, args.stream_seed)
    forward = scores.load(stream.ids, "forward")
    if not forward:
        raise UsageError("no scores to look at: run python -m benchmarks.retention.scores first")
    read = len(forward["state"]) * BLOCK
    tokens = min(args.tokens or read, read) // SEGMENT * SEGMENT
    places = [place for place in stream.places if place.end <= tokens]
    prose = torch.tensor(stream.prose[:tokens]).view(-1, BLOCK).float().mean(1) > 0.5
    found = values(stream.ids, tokens)
    if args.scores:
        unknown = sorted(set(args.scores) - set(found))
        if unknown:
            raise UsageError(f"scores among {', '.join(found)} expected, got {', '.join(unknown)}")
        found = {name: found[name] for name in args.scores}
    print(f"{tokens:,} tokens, {len(places)} places, prose {float(prose.float().mean()):.2f}")
    head = rows.conditions(
        model, args.stream_seed, tokens=tokens, budget=BUDGET, block_size=BLOCK, seeds=args.seeds,
        window=512, prose=float(prose.float().mean()),
        places={k: sum(p.kind == k for p in places) for k in KINDS_OF_PLACES},
    )  # fmt: skip
    blocks = [main_block(place) for place in places]
    done: list[dict[str, Any]] = []
    for name, score in found.items():
        for among, mask in (("all", torch.ones_like(prose)), ("prose", prose)):
            ranks = ranking(score, places, blocks, mask)
            done.append({"part": "ranking", "score": name, "among": among, **ranks})
            print(f"{name:32} {among:5} " + "  ".join(
                f"{k} {r['mean']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for k, r in ranks.items()
            ), flush=True)  # fmt: skip
        if ", raw" not in name:
            per_place = score.view(-1, relevance.PIECE // BLOCK).mean(0)
            done.append({"part": "position", "score": name, "mean": per_place.tolist()})
    simulated = [] if args.ranking else simulated_rows(found, places, tokens, args.seeds)
    if not args.ranking:
        of_prose = {name: score[prose] for name, score in found.items()}
        there = prose.long().cumsum(0) - 1  # the number that a block has among those of prose
        moved = [
            Place(place.kind, int(there[block]) * BLOCK, int(there[block] + 1) * BLOCK)
            for place, block in zip(places, blocks, strict=True)
            if bool(prose[block])
        ]
        simulated += simulated_rows(of_prose, moved, int(prose.sum()) * BLOCK, args.seeds, "prose")
    done += simulated
    for row in simulated:
        parts = (f"{name} {100 * row[name]['found'].get('mean', float('nan')):.1f}"
                 for name in ("first", "first, beyond the budget", "again"))  # fmt: skip
        print(f"{row['text']:5} {row['policy']:32} {row['kind']:8} " + ", ".join(parts))
    rows.append("retention", *({**head, **row} for row in done))


if __name__ == "__main__":
    run(main)
