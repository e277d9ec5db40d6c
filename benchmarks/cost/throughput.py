"""What a batch keeps of the plain model's speed while each of its rows reads a memory of its own.

As many sessions as there are rows have read a text each; then stock `generate` answers all of them
at once, with recall active and with the memory paused, in turns. `ratio` is of tokens a second
while recalled over paused, by the clock; `cpu_ratio` the same by this process's processor time,
which others on the machine disturb less. The prompt's own forward, its search included, counts.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin, described
from benchmarks.shared.stats import quantiles
from benchmarks.texts.needle import QUESTION, NeedleText
from cmr.evaluation.answers import recalled
from cmr.evaluation.prompts import chat


class Batch:
    """Sessions that ask at once, each about a text that it has read.

    Args:
        model: the model.
        memory: attached to it.
        prompts: `[sessions, tokens]`.
        new: tokens that each generation makes.
    """

    def __init__(self, model: Any, memory: Any, prompts: torch.Tensor, new: int) -> None:
        self._model, self._memory, self._prompts, self._new = model, memory, prompts, new
        self._names = [f"user {number}" for number in range(len(prompts))]

    def read(self, text: list[int]) -> None:
        """Each session reads a text."""
        ids = torch.tensor(text).repeat(len(self._names), 1)
        self._memory.read(ids, sessions=self._names)

    def answer(self) -> tuple[float, float]:
        """Seconds that one generation takes, by the clock and by the processor."""
        ids = self._prompts
        began, cpu = time.perf_counter(), time.process_time()
        with self._memory.session(*self._names):
            self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=self._new, max_new_tokens=self._new,
            )  # fmt: skip
        return time.perf_counter() - began, time.process_time() - cpu

    def compare(self, rounds: int) -> dict[str, Any]:
        """Recalled and paused in turns, after one of each that warms them up.

        Raises:
            RuntimeError: a row recalled nothing: there is nothing to time then.
        """
        seen: dict[str, list[tuple[float, float]]] = {"active": [], "paused": []}
        for _ in range(rounds + 1):
            seen["active"].append(self.answer())
            if not all(recalled(self._memory, row) for row in range(len(self._names))):
                raise RuntimeError("a row recalled nothing while generating")
            self._memory.pause()
            seen["paused"].append(self.answer())
            self._memory.resume()
        pairs = list(zip(seen["active"], seen["paused"], strict=True))[1:]
        made = self._prompts.shape[0] * self._new
        return {
            "ratio": quantiles([paused[0] / active[0] for active, paused in pairs]),
            "cpu_ratio": quantiles([paused[1] / active[1] for active, paused in pairs]),
            "active_tokens_s": quantiles([made / active[0] for active, _ in pairs]),
            "paused_tokens_s": quantiles([made / paused[0] for _, paused in pairs]),
        }


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--batches", type=whole(), nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=whole(), default=9)
    parser.add_argument("--stored", type=whole(), default=512, help="tokens of each session")
    parser.add_argument("--new", type=whole(), default=24, help="tokens that are generated")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="instead of the model's")
    args, model, tokenizer, head = begin(parser, words)
    import cmr

    if args.dtype:
        model.to(getattr(torch, args.dtype))
        head["dtype"] = args.dtype
    text, _ = NeedleText(tokenizer, args.stored).text(args.stored, 50)
    prompt = torch.tensor([chat(tokenizer, QUESTION)])
    for size in args.batches:
        with cmr.attach(model, tokenizer=tokenizer, **args.settings) as memory:
            batch = Batch(model, memory, prompt.repeat(size, 1), args.new)
            batch.read(text)
            row = batch.compare(args.rounds)
            head["memory"] = described(memory)
        row = {"batch": size, "stored": args.stored, "prompt": prompt.shape[1],
               "new": args.new, "rounds": args.rounds, **row}  # fmt: skip
        rows.append("throughput", {**head, **row})
        print(f"batch {size:3} " + ", ".join(
            f"{name} {row[name]['p50']:.3f}"
            for name in ("ratio", "cpu_ratio", "active_tokens_s", "paused_tokens_s")
        ), flush=True)  # fmt: skip


if __name__ == "__main__":
    run(main)
