"""What is done in slack, measured: passages that are brought up ahead, and upkeep."""

from __future__ import annotations

import random
import statistics
import threading
import time
from typing import Any

import torch

from benchmarks.shared.stats import quantiles
from cmr.evaluation.prompts import chat

PEOPLE = ("anna", "ben", "carl", "dora")
OWN = 1_024
"""Tokens that each of them has stored."""
TURNS = 3
"""Questions of one of them before the next one asks."""
NEAR = 0.7
"""Share of the questions behind the first that are about text near the last one's."""
OFTEN = 0.5
"""Seconds between two upkeeps: by default it is a minute."""
BETWEEN = 0.4
"""Seconds from one request to the next where upkeep runs, on the mean."""


def _ask(memory: Any, tokenizer: Any, name: str, said: list[int], tokens: int = 1) -> None:
    words = f"What was said about this: {tokenizer.decode(said)}?"
    prompt = torch.tensor([chat(tokenizer, words)])
    memory.session(name).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _turns(rng: random.Random, rounds: int) -> list[tuple[str, int]]:
    """Who asks, and the place of the text that the question is about, turn by turn."""
    found = []
    for _ in range(rounds):
        for name in PEOPLE:
            at = rng.randrange(OWN - 12)
            for turn in range(TURNS):
                if turn:
                    near = at + rng.randrange(-160, 161)
                    at = near if rng.random() < NEAR else rng.randrange(OWN - 12)
                    at = min(max(at, 0), OWN - 12)
                found.append((name, at))
    return found


def prefetch(
    model: Any, tokenizer: Any, ids: list[int], pause: int, seed: int
) -> list[dict[str, Any]]:
    """A row: turns with and without it, the same ones, in turns of half a dozen."""
    import cmr

    seconds: dict[bool, list[float]] = {False: [], True: []}
    recalls: dict[bool, list[float]] = {False: [], True: []}
    ready, stats = {False: [0, 0], True: [0, 0]}, []
    for part in range(2):
        turns = _turns(random.Random(seed + part), 3)
        for on in (True, False) if part else (False, True):
            tiers = {"budget": 64, "long_term_budget": 2 * len(PEOPLE) * OWN}
            with cmr.attach(model, tokenizer=tokenizer, **tiers) as memory:
                for number, name in enumerate(PEOPLE):
                    own = torch.tensor([ids[number * OWN : (number + 1) * OWN]])
                    memory.read(own, sessions=[name])
                told: list[Any] = []
                memory.watch(told.append)
                again = memory._core.recomputed
                with cmr.CMRPerformanceOptimizer(model, {"enable_prefetching": on}) as optimizer:
                    for number, (name, at) in enumerate(turns):
                        start = PEOPLE.index(name) * OWN + at
                        told.clear()
                        before = again.ready, again.asked
                        began = time.thread_time()
                        _ask(memory, tokenizer, name, ids[start : start + 12])
                        spent = time.thread_time() - began
                        # The first round says who follows whom.
                        if number >= len(turns) // 3:
                            seconds[on].append(spent)
                            took = [t.seconds for t in told if t.stage in ("search", "read")]
                            recalls[on].append(sum(took))
                            ready[on][0] += again.ready - before[0]
                            ready[on][1] += again.asked - before[1]
                        if on:
                            time.sleep(pause)
                    if optimizer.prefetcher is not None:
                        stats.append(optimizer.prefetcher.stats())
    row = {
        "people": len(PEOPLE), "stored_each": OWN, "turns_each": TURNS, "near": NEAR,
        "pause": pause, "requests": len(seconds[True]),
        "ready": {"on": ready[True][0] / ready[True][1], "off": ready[False][0] / ready[False][1]},
        "passages": {"on": ready[True][1], "off": ready[False][1]},
        "sessions_expected": statistics.fmean(s["expected"] for s in stats),
        "prepared": sum(s["prepared"] for s in stats),
        "request_cpu_s": {"on": quantiles(seconds[True]), "off": quantiles(seconds[False])},
        "recall_s": {"on": quantiles(recalls[True]), "off": quantiles(recalls[False])},
        "request_on_over_off": _over(seconds), "recall_on_over_off": _over(recalls),
    }  # fmt: skip
    print(row, flush=True)
    return [row]


def _over(of: dict[bool, list[float]]) -> dict[str, float]:
    """The ratio of the same request with it and without."""
    return quantiles([on / off for on, off in zip(of[True], of[False], strict=True)])


def upkeep(
    model: Any, tokenizer: Any, ids: list[int], rounds: int, seed: int
) -> list[dict[str, Any]]:
    """A row: requests at random moments, with upkeep that has something to do, and without."""
    import cmr

    rng = random.Random(seed)
    walls: dict[bool, list[float]] = {False: [], True: []}
    owns: dict[bool, list[float]] = {False: [], True: []}
    done = 0
    tiers = {"budget": 1_024, "working_budget": 4_096}
    with cmr.attach(model, tokenizer=tokenizer, **tiers) as memory:
        memory.read(torch.tensor([ids[:1_536]]), sessions=["anna"])
        lock, waited = memory._core.lock, [0.0]
        wait = lock._wait

        def timed(*given: Any) -> bool:
            began = time.perf_counter()
            try:
                return wait(*given)
            finally:
                if given[0] == asking:
                    waited[0] += time.perf_counter() - began

        asking = threading.get_ident()
        lock._wait = timed  # type: ignore[method-assign]
        for number in range(2 * rounds):
            on = number % 2 == (number // 2) % 2
            settings = {"enable_background_optimization": on}
            with cmr.CMRPerformanceOptimizer(model, settings, upkeep_seconds=OFTEN) as optimizer:
                for _ in range(12):
                    # A copy of what is stored, so that there is something to tidy up each time.
                    at = rng.randrange(1_024)
                    memory.read(torch.tensor([ids[at : at + 96]]), sessions=["anna"])
                    time.sleep(rng.expovariate(1 / BETWEEN))
                    waited[0] = 0.0
                    began, own = time.perf_counter(), time.thread_time()
                    _ask(memory, tokenizer, "anna", ids[at : at + 12], tokens=4)
                    walls[on].append(time.perf_counter() - began)
                    owns[on].append(time.thread_time() - own + waited[0])
                if optimizer.background is not None:
                    done += optimizer.background.runs
    row = {
        "requests": len(walls[True]), "between_s": BETWEEN, "upkeep_s": OFTEN, "upkeep_runs": done,
        "wall_s": {name: _tail(walls[on]) for name, on in (("on", True), ("off", False))},
        "own_s": {name: _tail(owns[on]) for name, on in (("on", True), ("off", False))},
        "p95_on_over_off": {
            "wall": _tail(walls[True])["p95"] / _tail(walls[False])["p95"],
            "own": _tail(owns[True])["p95"] / _tail(owns[False])["p95"],
        },
    }  # fmt: skip
    print(row, flush=True)
    return [row]


def _tail(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"p50": statistics.median(values), "p95": cuts[18]}
