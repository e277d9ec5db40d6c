"""Batches that are split by length, and put together again."""

from __future__ import annotations

import pytest
import torch

import cmr
from cmr import BatchProcessingOptimizer, ConfigError
from tests.integration.tiny import padded, text

LENGTHS = (40, 3, 21, 38, 4, 22)


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    given = padded([text(length, seed=length) for length in LENGTHS], side)
    return given["input_ids"], given["attention_mask"]


def test_rows_of_like_length_run_together_within_the_limit() -> None:
    plan = BatchProcessingOptimizer(80).plan(batch("right")[1])
    assert [part.rows for part in plan] == [(0, 3), (5, 2), (4, 1)]
    assert [(part.start, part.stop) for part in plan] == [(0, 40), (0, 22), (0, 4)]
    assert [part.rows for part in BatchProcessingOptimizer(1).plan(batch("right")[1])] == [
        (row,) for row in (0, 3, 5, 2, 4, 1)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_outputs_are_those_of_one_forward(tiny, family: str, side: str) -> None:
    model = tiny(family)
    ids, mask = batch(side)
    whole = model(input_ids=ids, attention_mask=mask)
    optimizer = BatchProcessingOptimizer(80)
    split = optimizer.forward(lambda _, cut: model(**cut), ids, mask)
    assert type(split) is type(whole) and split.logits.shape == whole.logits.shape
    held = mask.bool()
    torch.testing.assert_close(split.logits[held], whole.logits[held], rtol=1e-4, atol=1e-5)
    assert "past_key_values" not in split
    assert optimizer.stats() == {"tokens": 240, "run": 132, "saved": 1 - 132 / 240}


def test_a_batch_that_needs_no_splitting_is_one_plain_forward(tiny) -> None:
    model, ids = tiny("llama"), text(3, 16)
    whole = model(input_ids=ids)
    split = BatchProcessingOptimizer(64).forward(lambda _, cut: model(**cut), ids)
    assert torch.equal(split.logits, whole.logits) and "past_key_values" in split


def test_states_of_all_layers_are_put_together(tiny) -> None:
    model = tiny("llama")
    ids, mask = batch("left")

    def run(_, cut):
        return model(**cut, output_hidden_states=True)

    whole = run(None, {"input_ids": ids, "attention_mask": mask})
    split = BatchProcessingOptimizer(80).forward(run, ids, mask)
    assert len(split.hidden_states) == len(whole.hidden_states) == 7
    held = mask.bool()
    for one, other in zip(split.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(one[held], other[held], rtol=1e-4, atol=1e-5)


def test_a_bad_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_tokens"):
        BatchProcessingOptimizer(0)


def test_it_is_public() -> None:
    assert cmr.BatchProcessingOptimizer is BatchProcessingOptimizer


@pytest.mark.parametrize("lengths", [(40,) * 6, (40, 40, 39, 38)])
def test_a_batch_that_splitting_would_not_help_is_handed_through(lengths) -> None:
    given = padded([text(length, seed=length) for length in lengths], "left")
    ids, mask, seen = given["input_ids"], given["attention_mask"], []

    def run(part, inputs):
        seen.append(inputs)
        return part

    # However small a micro-batch may be: more forwards of as many tokens save nothing.
    part = BatchProcessingOptimizer(64).forward(run, ids, mask)
    assert part.rows == tuple(range(len(lengths)))
    assert len(seen) == 1 and seen[0]["input_ids"] is ids and seen[0]["attention_mask"] is mask
