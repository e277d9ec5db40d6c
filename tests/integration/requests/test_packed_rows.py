"""Continuous batching packs several requests into a row, of which nobody says whose they are."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn

import cmr
from tests.integration.tiny import text

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "ContinuousBatchingConfig"),
    reason="this transformers takes no settings of continuous batching",
)


def answers(model: Any) -> list[Any]:
    """What two prompts are answered together."""
    settings = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1)
    found = model.generate_batch(
        [text(12, seed=seed).tolist() for seed in (1, 2)],
        generation_config=settings,
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            num_blocks=8, max_batch_tokens=64
        ),
    )
    return [found[name] for name in sorted(found)]


def test_they_are_refused_and_go_on_where_memory_is_paused(llama: nn.Module) -> None:
    alone = [one.generated_tokens for one in answers(llama)]
    assert [len(tokens) for tokens in alone] == [4, 4]
    with cmr.attach(llama, window=32, budget=320, sinks=4) as memory:
        # All of them would read what one session was told.
        memory.read(text(64))
        told = memory.tokens
        for one in answers(llama):
            assert one.generated_tokens == [] and "pause()" in one.error
        assert memory.tokens == told and memory.sessions == ["0"]
        # For everybody: `paused` says it for the own thread, and they run in another one.
        memory.pause()
        assert [one.generated_tokens for one in answers(llama)] == alone
        memory.resume()
    assert [one.generated_tokens for one in answers(llama)] == alone
