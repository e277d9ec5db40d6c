"""What watching costs: `CMRPerformanceMonitor` on and off while one model decodes, in turns.

Neighbouring `generate`s of the small real model are the same but for the monitor, so whatever else
the machine does meets both; times are those of the processor. Beside them it is counted what a
decoding step does: functions that Python calls (its own and those written in C), and clocks read by
the library. Of a step without a monitor, no clock; that is all that watching leaves behind there,
beside the questions whether anybody watches, which are timed by themselves.

    python -m benchmarks.cost.watching --record
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model

STORED = 4_000
QUESTIONS = 1_000_000
"""How often it is asked whether anybody watches, to time it."""


def calls(act: Callable[[], object]) -> Counter[str]:
    """Calls of functions inside, `python` and `c`, and reads of `perf_counter` by the library."""
    found: Counter[str] = Counter()

    def look(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found["python"] += 1
        elif event == "c_call":
            found["c"] += 1
            ours = frame.f_globals.get("__name__", "").startswith("cmr.")
            found["clocks"] += ours and argument is time.perf_counter

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def question_ns(memory: Any) -> float:
    """Nanoseconds of asking once whether anybody watches."""
    timing, began = memory._core.timing, time.process_time()
    for _ in range(QUESTIONS):
        timing.on  # noqa: B018
    return 1e9 * (time.process_time() - began) / QUESTIONS


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(8), default=64)
    parser.add_argument("--rounds", type=whole(2), default=30)
    parser.add_seed()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    model, tokenizer = load_model()
    import cmr
    from cmr.demo.text import reference_text

    ids = tokenizer(reference_text(), return_tensors="pt").input_ids
    turns = [{"role": "user", "content": "How does a generator keep its state between values?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)

    def generate(tokens: int = args.tokens) -> Any:
        with torch.inference_mode():
            return model.generate(
                **prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            )  # fmt: skip

    with cmr.attach(model, tokenizer=tokenizer, **args.settings) as memory:
        memory.read(ids[:, :STORED])
        said = generate()
        seconds: dict[bool, list[float]] = {True: [], False: []}
        counted = {}
        for number in range(args.rounds):
            for on in (True, False) if number % 2 else (False, True):
                with cmr.CMRPerformanceMonitor(model) if on else nullcontext():
                    began = time.process_time()
                    again = generate()
                    seconds[on].append(time.process_time() - began)
                assert torch.equal(again, said), "watching changes nothing"
            print(number, [round(seconds[on][-1], 3) for on in (True, False)], flush=True)
        for on in (True, False):
            with cmr.CMRPerformanceMonitor(model) if on else nullcontext():
                more, less = (calls(lambda n=n: generate(n)) for n in (40, 8))
            counted[on] = {name: (more[name] - less[name]) / 32 for name in more}
        asks, shown = question_ns(memory), described(memory)
    ratios = sorted(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
    step_ms = {on: 1e3 * statistics.median(seconds[on]) / args.tokens for on in (True, False)}
    p20, p50, p80 = (ratios[int(share * (len(ratios) - 1))] for share in (0.2, 0.5, 0.8))
    row = {
        **rows.conditions(model, args.seed, memory=shown), "tokens": args.tokens,
        "rounds": args.rounds, "stored": STORED,
        "on_over_off": {"p20": p20, "p50": p50, "p80": p80},
        "step_ms": {"on": step_ms[True], "off": step_ms[False]},
        "calls_a_step": {"on": counted[True], "off": counted[False]},
        "question_ns": asks,
    }  # fmt: skip
    rows.append("watching", row)
    print(row)


if __name__ == "__main__":
    run(main)
