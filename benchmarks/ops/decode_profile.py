"""Some decode steps with ranges on, for Nsight.

Only the steps lie between the profiler's start and stop; `docs/profiling.md` has the commands for
`nsys` and `ncu`. Without a GPU it runs all the same and says which ranges were opened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from benchmarks.shared import decoding
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.device import device
from cmr.kernels import ranges
from cmr.kernels.dispatch import implementation


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Ranges on; how often each was opened."""
    seen: Counter[str] = Counter()
    with ranges.shown():
        make = ranges.annotate
        assert make is not None

        def annotate(name: str) -> AbstractContextManager[object]:
            seen[name] += 1
            return make(name)

        ranges.annotate = annotate
        yield seen


@torch.inference_mode()
def main(words: list[str] | None = None) -> Counter[str]:
    """Command line; returns how often each range was opened."""
    parser = Parser(__doc__, appends=False)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--steps", type=whole(), default=32)
    parser.add_argument("--warmup", type=whole(0), default=4, help="steps before the capture")
    parser.add_argument("--stored", type=whole(32), default=4000, help="tokens in memory")
    parser.add_threads()
    options = parser.parse_args(words)
    if options.device == "cuda" and not gpu:
        parser.error("argument --device: there is no CUDA device")
    if options.model == "tiny":
        model = decoding.tiny_model(options.device)
    else:
        from cmr.demo.smollm2 import load_smollm2

        dtype = torch.bfloat16 if options.device == "cuda" else None
        model = load_smollm2(dtype)[0].eval().to(options.device)
    vocabulary = model.config.vocab_size
    stored = decoding.some_text(options.stored, vocabulary)
    with decoding.remembering(model, stored) as memory:
        run = decoding.begin(model, decoding.some_text(256, vocabulary, seed=1))
        run.steps(options.warmup)
        own = device(options.device)
        with counted() as seen, own.shown("steps"):
            begun = time.perf_counter()
            run.steps(options.steps)
            own.synchronise()
            seconds = time.perf_counter() - begun
        print(f"{options.device}: {implementation(options.device)}")
        print(f"{1e3 * seconds / options.steps:.2f} ms a step, gate {decoding.gate(memory):.2f}")
    for name in ranges.NAMES:
        print(f"{name:14} opened {seen[name] / options.steps:.2f} times a step")
    return seen


if __name__ == "__main__":
    run(main)
