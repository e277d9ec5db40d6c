"""What a change costs: two checkouts of this library beside each other, in one run.

    python -m benchmarks.cost.versions --other ../cmr-before

Each checkout runs in a process of its own that has the small real model loaded; they do the same in
turns, so whatever else the machine does meets both. `read`: seconds of `memory.read` of 4,096
tokens. `decode`: the median step of stock `generate` with 4,000 tokens stored. Reported is the
ratio of neighbours, this checkout over the other one: above 1 this one is slower.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STORED, READ, STEPS = 4_000, 4_096, 48


def child() -> None:
    """Does what it is told by lines on standard input, and prints seconds."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    import cmr
    from cmr.demo import load_smollm2
    from cmr.demo.text import reference_text

    torch.set_num_threads(int(os.environ["CMR_THREADS"]))
    model, tokenizer = load_smollm2()
    ids = tokenizer(reference_text(), return_tensors="pt").input_ids[0, : STORED + READ]
    turns = [{"role": "user", "content": "How does a generator keep its state between values?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)

    # Not `shared.clock`: the process runs in another checkout, whose benchmarks may be others.
    class Clock(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    memory = cmr.attach(model, tokenizer=tokenizer)
    memory.read(ids[:STORED])

    def decode() -> float:
        clock = Clock()
        model.generate(
            **prompt, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )  # fmt: skip
        steps = sorted(b - a for a, b in zip(clock.times, clock.times[1:], strict=False))
        return steps[len(steps) // 2]

    def read() -> float:
        began = time.perf_counter()
        memory.read(ids[STORED:], sessions=["read"])
        took = time.perf_counter() - began
        memory.clear("read")
        return took

    print("ready", cmr.__file__, flush=True)
    for line in sys.stdin:
        print({"decode": decode, "read": read}[line.strip()](), flush=True)


class Checkout:
    """A process that runs one checkout."""

    def __init__(self, root: Path, threads: int) -> None:
        env = {**os.environ, "PYTHONPATH": str(root), "CMR_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=env,
        )  # fmt: skip
        _, where = self._line().split(maxsplit=1)
        if not Path(where).is_relative_to(root):
            raise RuntimeError(f"the library of {root} expected, got that of {where}")

    def do(self, what: str) -> float:
        """Seconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a checkout ended")
        return line.strip()


def main(words: list[str] | None = None) -> None:
    """Command line."""
    from benchmarks.shared import rows
    from benchmarks.shared.command import Parser, folder, whole
    from benchmarks.shared.stats import quantiles

    parser = Parser(__doc__)
    parser.add_argument(
        "--other", type=folder, required=True, metavar="FOLDER", help="the other checkout"
    )
    parser.add_argument("--rounds", type=whole(), default=15)
    parser.add_argument("--threads", type=whole(), default=1, help="of each side")
    args = parser.parse_args(words)
    roots = rows.ROOT, args.other.resolve()
    if not (roots[1] / "cmr").is_dir():
        parser.error(f"argument --other: the root of a checkout expected, got {str(args.other)!r}")
    both = [Checkout(root, args.threads) for root in roots]
    row: dict[str, Any] = {"rounds": args.rounds, "threads_each": args.threads}
    row["other"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=roots[1], capture_output=True, text=True
    ).stdout.strip()
    for what in ("decode", "read"):
        times: list[list[float]] = [[], []]
        for number in range(args.rounds + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                seconds = both[side].do(what)
                if number:  # the first round warms both up
                    times[side].append(seconds)
        ratios = [a / b for a, b in zip(*times, strict=True)]
        row[what] = {
            "ratio": quantiles(ratios),
            "here_ms": quantiles([1e3 * s for s in times[0]]),
            "there_ms": quantiles([1e3 * s for s in times[1]]),
        }
        print(f"{what:7} here over there: {row[what]['ratio']}", flush=True)
    for one in both:
        one.close()
    rows.append("versions", {**rows.conditions(), **row})


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:  # stands on another checkout, which may lack these benchmarks
        child()
    else:
        from benchmarks.shared.command import run

        run(main)
