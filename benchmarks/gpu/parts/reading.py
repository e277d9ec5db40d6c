"""How fast a text is read into memory, beside the plain windowed forward over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cmr
from benchmarks.cost.__main__ import reading
from benchmarks.gpu.log import Job, Run
from benchmarks.gpu.models import Models, names
from benchmarks.shared import decoding

TOKENS, ROUNDS = 8_192, 3
TINY_TOKENS, TINY_ROUNDS = 512, 1


def begin(run: Run) -> None:
    """A row a model."""
    models = Models(run.device.kind, run.device.free())
    run.do([Job(name, _job(run, models, name)) for name in names(run.tiny)])


def _job(run: Run, models: Models, name: str) -> Callable[[], dict[str, Any]]:
    def call() -> dict[str, Any]:
        model = models.get(name)
        tokens, rounds = (TINY_TOKENS, TINY_ROUNDS) if run.tiny else (TOKENS, ROUNDS)
        ids = decoding.some_text(tokens, model.config.vocab_size)
        with cmr.attach(model, **decoding.SETTINGS) as memory:
            found = reading(model, memory, ids, rounds)
        read, plain = (found[side]["p50"] for side in ("read_tokens_s", "plain_tokens_s"))
        said = (
            f"{read:,.0f} tokens a second, {found['ratio']['p50']:.2f} of the model's own forward"
        )
        return {"model": name, **found, "said": f"{said} ({plain:,.0f})"}

    return call
