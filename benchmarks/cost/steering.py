"""What steering brings and costs, part by part, with the small real model.

`thresholds`: requests of stock `generate` about essays, of which a share is stored. Each target is
held through three phases: as it begins, when the share of questions about stored text changes, and
when the target does. What came of it is the mean of the requests behind the first 50 of a phase;
`swing` is the largest autocorrelation of the threshold at 12 requests or more: near 1 it swings.
`batching`: forwards of a batch, split or not, in turns; processor time.
`prefetch`: people take turns to ask several questions each, and pause in between; their text lies
in a tier that keeps token ids alone. With and without it in turns, processor time of the request's
own thread, and the share of passages that were there when they were to be read.
`upkeep`: requests at random moments, with upkeep that has something to do and without, in
turns: the 95th percentile of a request, as the host's clock saw it, and as processor time and the
time that it waited for the memory's lock.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.steering --threads 1 --record
"""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.cost.steering_slack import prefetch, upkeep
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import load_model
from benchmarks.shared.stats import quantiles
from benchmarks.texts.essays import essays
from cmr.evaluation.prompts import chat

PARTS = ("thresholds", "batching", "prefetch", "upkeep")
STORED = 3_000
SETTLING = 50
"""Requests of a phase that are not counted."""
MIXED = (16, 256, 24, 200, 48, 32, 96, 20)
EQUAL = (128,) * 8


def texts(tokenizer: Any) -> list[int]:
    """Token ids of the essays, one behind the other."""
    sentences = (" ".join(paragraph) for _, told in essays() for paragraph in told)
    ids: list[int] = tokenizer(" ".join(sentences)).input_ids
    return ids


def questions(
    tokenizer: Any, ids: list[int], about: float, rng: random.Random
) -> Iterator[torch.Tensor]:
    """Prompts `[1, tokens]` without end; `about`: share that asks about the first `STORED` ids."""
    while True:
        known = rng.random() < about
        at = rng.randrange(STORED - 12) if known else rng.randrange(STORED, len(ids) - 12)
        said = tokenizer.decode(ids[at : at + 12])
        yield torch.tensor([chat(tokenizer, f"What was said about this: {said}?")])


def swing(values: list[float]) -> float:
    """The largest autocorrelation of a series at a lag of 12 up to a third of its length."""
    middle = statistics.fmean(values)
    spread = statistics.pvariance(values)
    if not spread:
        return 0.0
    found = 0.0
    for lag in range(12, len(values) // 3 + 1):
        pairs = zip(values, values[lag:], strict=False)
        along = statistics.fmean((a - middle) * (b - middle) for a, b in pairs)
        found = max(found, along / spread)
    return found


def cost(answer: Any, target: str) -> float:
    """What a request came to, as a target counts it."""
    if target == "recall_rate":
        return float(answer.recalled)
    return float(answer.nbytes if target == "bytes" else answer.seconds)


def thresholds(model: Any, tokenizer: Any, counted: int, seed: int) -> list[dict[str, Any]]:
    """A row for each target and phase."""
    import cmr

    ids, out = texts(tokenizer), []
    for target in ("recall_rate", "bytes", "latency"):
        rng = random.Random(seed)
        # Where recalling costs hardly anything no threshold holds a latency: here it does.
        tiers = {"budget": 64, "long_term_budget": 8_192} if target == "latency" else {}
        with cmr.attach(model, tokenizer=tokenizer, **tiers) as memory:
            memory.read(torch.tensor([ids[:STORED]]), sessions=["reader"])
            told: list[Any] = []
            end = memory.watch_requests(told.extend)

            def ask(asked: Iterator[torch.Tensor], memory: Any = memory) -> None:
                prompt = next(asked)
                memory.session("reader").generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1,
                    do_sample=False, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip

            # What a request costs with every recall and with none says what can be wanted.
            ends = []
            for threshold in (9.0, 0.0):
                memory.change(threshold=threshold)
                told.clear()
                for _ in range(12):
                    ask(questions(tokenizer, ids, 0.5, rng))
                ends.append(statistics.fmean(cost(a, target) for a in told[2:]))
            memory.change(threshold=0.8)
            first, second = (ends[0] + share * (ends[1] - ends[0]) for share in (0.5, 0.3))
            told.clear()
            on = {"enable_adaptive_thresholds": True}
            with cmr.CMRPerformanceOptimizer(model, on, wanted=first, target=target) as optimizer:
                manager = optimizer.thresholds
                assert manager is not None
                phases = (("begin", 0.5, first), ("other questions", 0.2, first),
                          ("other target", 0.2, second))  # fmt: skip
                for phase, about, wanted in phases:
                    if wanted != manager.wanted:
                        manager.aim(wanted)
                    asked, values = questions(tokenizer, ids, about, rng), []
                    for number in range(SETTLING + counted):
                        if number == SETTLING:
                            told.clear()
                        ask(asked)
                        values.append(float(manager.threshold or 0.0))
                    came = statistics.fmean(cost(a, target) for a in told)
                    out.append({
                        "target": target, "phase": phase, "requests": counted, "wanted": wanted,
                        "came": came, "off": came / wanted - 1, "reachable": ends,
                        "threshold": statistics.fmean(values[SETTLING:]),
                        "threshold_sd": statistics.pstdev(values[SETTLING:]),
                        "certainty_sd": statistics.pstdev([a.certainty for a in told]),
                        "swing": swing(values[SETTLING:]), "held": manager.held,
                    })  # fmt: skip
                    print(out[-1], flush=True)
                    told.clear()
            end()
    return out


def batching(model: Any, tokenizer: Any, rounds: int) -> list[dict[str, Any]]:
    """A row for equal lengths and for mixed ones."""
    import cmr

    ids, out = texts(tokenizer), []
    for name, lengths in (("equal", EQUAL), ("mixed", MIXED)):
        longest = max(lengths)
        given = torch.full((len(lengths), longest), tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(given)
        for row, length in enumerate(lengths):
            given[row, longest - length :] = torch.tensor(ids[1000 * row : 1000 * row + length])
            mask[row, longest - length :] = 1
        with cmr.attach(model, tokenizer=tokenizer), torch.inference_mode():
            sides = {
                on: cmr.CMRPerformanceOptimizer(model, {"enable_batch_optimization": on})
                for on in (False, True)
            }
            seconds: dict[bool, list[float]] = {False: [], True: []}
            found = {}
            for number in range(rounds + 1):
                for on in (True, False) if number % 2 else (False, True):
                    began = time.thread_time()
                    found[on] = sides[on].optimize_forward(given, mask, use_cache=False).logits
                    seconds[on].append(time.thread_time() - began)
                best = (found[on].float().argmax(-1)[mask.bool()] for on in (False, True))
                same = float(torch.eq(*best).float().mean())
            batching = sides[True].batching
            assert batching is not None
        pairs = list(zip(seconds[False], seconds[True], strict=True))[1:]
        out.append({
            "lengths": list(lengths), "batch": name, "rounds": rounds,
            "off_over_on": quantiles([off / on for off, on in pairs]),
            "saved": batching.stats()["saved"], "same_next_token": same,
        })  # fmt: skip
        print(out[-1], flush=True)
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--requests", type=whole(24), default=150, help="counted in each phase")
    parser.add_argument("--rounds", type=whole(2), default=9)
    parser.add_argument("--pause", type=whole(), default=10, help="seconds between two turns")
    parser.add_seed()
    parser.add_threads()
    args = parser.parse_args(words)
    model, tokenizer = load_model()
    # That a target cannot be held is in the rows.
    warnings.simplefilter("ignore")
    made = {
        "thresholds": lambda: thresholds(model, tokenizer, args.requests, args.seed),
        "batching": lambda: batching(model, tokenizer, args.rounds),
        "prefetch": lambda: prefetch(model, tokenizer, texts(tokenizer), args.pause, args.seed),
        "upkeep": lambda: upkeep(model, tokenizer, texts(tokenizer), args.rounds, args.seed),
    }
    for part in args.parts:
        head = rows.conditions(model, args.seed)
        for row in made[part]():
            rows.append("steering", {**head, "part": part, **row})


if __name__ == "__main__":
    run(main)
