"""A decode step: alone, attached, with much and very much stored, for one row and for many.

Eager steps, as `generate` makes them. All rows are in one session, whose text they share. Every
16th step searches and every 32nd lets blocks leave: the mean has its share of both, the worst step
is one of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.filling import filled
from benchmarks.gpu.log import Job, Run
from benchmarks.gpu.models import Models, names
from benchmarks.shared import decoding
from benchmarks.shared.stats import quantiles
from cmr.kernels import ranges

STORED, BATCHES, READ = (None, 0, 4_000, 64_000, 1_000_000), (1, 32), 4_000
"""Tokens in memory: None is the model without one, 0 an empty one."""
TINY_STORED, TINY_BATCHES, TINY_READ = (None, 0, 96, 384), (1, 2), 96
STEPS, WARM = 64, 34
"""Steps that are timed, and those before them: what they compile is compiled by then."""
TINY_STEPS = 4
TINY_WINDOW = 48
COUNTED = 32
"""Steps whose launches and waits are counted: two searches, and one that blocks leave in."""


def begin(run: Run) -> None:
    """Times first, then counts: what counts may slow down what comes behind it."""
    models = Models(run.device.kind, run.device.free())
    stored, batches = (TINY_STORED, TINY_BATCHES) if run.tiny else (STORED, BATCHES)
    of = names(run.tiny)
    run.do(
        [
            *(
                Job(_name(name, tokens, batch), _timed(run, models, name, tokens, batch))
                for name in of
                for tokens in stored
                for batch in batches
            ),
            *(
                Job(f"{_name(name, tokens, 1)}, counted", _counted(run, models, name, tokens))
                for name in reversed(of)
                for tokens in (stored[0], stored[2])
            ),
        ]
    )


def _name(model: str, tokens: int | None, batch: int) -> str:
    what = f"{tokens:,} stored" if tokens else "alone" if tokens is None else "attached"
    return f"{model}, {what}, batch {batch}"


@contextmanager
def decoded(
    run: Run, models: Models, name: str, tokens: int | None, batch: int
) -> Iterator[tuple[decoding.Decoding, float | None]]:
    """Steps behind a prompt that fills the window, and memory's share of attention there."""
    model = models.get(name)
    window, read, warm = (TINY_WINDOW, TINY_READ, 1) if run.tiny else (decoding.WINDOW, READ, WARM)
    # Nothing may leave the window for a memory that is to stay empty.
    length = window - window // 4 if tokens == 0 else window
    prompt = decoding.some_text(batch * length, model.config.vocab_size, seed=1).view(batch, -1)
    with torch.no_grad():  # as `generate` has it
        if tokens is None:
            going = decoding.begin(model, prompt)
            going.steps(warm)
            yield going, None
            return
        with filled(model, run.device, tokens, read, window=window) as memory:
            going = decoding.begin(model, prompt)
            going.steps(warm)
            share = decoding.gate(memory)
            if tokens and not share:
                raise RuntimeError("nothing was read from memory: there is nothing to time")
            yield going, share


def _timed(
    run: Run, models: Models, name: str, tokens: int | None, batch: int
) -> Callable[[], dict[str, Any]]:
    def call() -> dict[str, Any]:
        steps = TINY_STEPS if run.tiny else STEPS
        with (
            decoded(run, models, name, tokens, batch) as (going, share),
            run.device.shown(_name(name, tokens, batch)),
        ):
            seconds = run.device.each(going.step, steps)
        found = [1e3 * one for one in seconds]
        mean, worst = statistics.fmean(found), max(found)
        return {
            "model": name, "stored": tokens, "batch": batch, "steps": steps, "gate": share,
            "read": TINY_READ if run.tiny else READ, "ranges": ranges.annotate is not None,
            "mean_ms": round(mean, 4), "worst_ms": round(worst, 4),
            "ms": {key: round(value, 4) for key, value in quantiles(found).items()},
            "said": f"{mean:.2f} ms a step, the worst {worst:.2f}",
        }  # fmt: skip

    return call


def _counted(
    run: Run, models: Models, name: str, tokens: int | None
) -> Callable[[], dict[str, Any]]:
    def call() -> dict[str, Any]:
        many = TINY_STEPS if run.tiny else COUNTED
        with decoded(run, models, name, tokens, 1) as (going, _):
            one = run.device.counted(going.step)
            all_of_them = run.device.counted(lambda: going.steps(many))
        said = ", ".join(
            f"{value} {what} ({all_of_them[what]} in {many} steps)"
            for what, value in one.items()
            if value is not None
        )
        return {
            "model": name, "stored": tokens, "batch": 1, "steps": many,
            "of_a_step": one, "of_all_steps": all_of_them, "said": said,
        }  # fmt: skip

    return call
