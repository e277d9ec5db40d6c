"""Rows of a batch that end one by one are memory as soon as each has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

import cmr
from tests.integration.models.told import told as stored
from tests.integration.tiny import padded, text

SETTINGS: dict[str, Any] = {"window": 64, "block_size": 8, "threshold": 0.0, "remember": "all"}
NAMES = ("anna", "ben", "carl")
# No token of the tiny vocabulary ends an answer by itself: rows are ended by their lengths.
ENDS: dict[str, Any] = {"eos_token_id": 199, "pad_token_id": 199, "do_sample": False}


class Ending(StoppingCriteria):
    """Ends each row behind its own number of tokens, and finishes it where it is told to."""

    def __init__(self, lengths: Sequence[int], handle: cmr.Session, finishes: bool) -> None:
        self.lengths, self.handle, self.finishes = lengths, handle, finishes
        self.steps, self.held = 0, dict[int, list[int]]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.steps += 1
        ending = [row for row, length in enumerate(self.lengths) if length == self.steps]
        if ending and self.finishes:
            self.handle.finish(ending)
        memory = self.handle._memory
        for row in ending:
            self.held[row] = stored(memory, self.handle.names[row])
        return torch.tensor([length <= self.steps for length in self.lengths])


def run(
    model: nn.Module, prompts: list[torch.Tensor], lengths: Sequence[int], finishes: bool
) -> tuple[dict[int, list[int]], list[Any]]:
    """What each row had stored at its end, and in the end, as ids and places of blocks."""
    names = NAMES[: len(prompts)]
    with cmr.attach(model, **SETTINGS) as memory:
        for name in names:
            memory.session(name, create=True).read(text(40, seed=9), keep=None)
        handle = memory.session(*names)
        ending = Ending(lengths, handle, finishes)
        handle.generate(
            **padded(prompts, "left"), max_new_tokens=max(lengths), **ENDS,
            stopping_criteria=StoppingCriteriaList([ending]),
        )  # fmt: skip
        blocks = [
            [(block.token_ids, block.start, block.end) for block in memory.inspect(name)]
            for name in names
        ]
    return ending.held, blocks


@pytest.mark.parametrize("prompts", [(30, 30, 30), (12, 90, 41)], ids=["even", "padded"])
def test_a_row_is_stored_at_its_end_as_if_it_had_been_alone(
    llama: nn.Module, prompts: tuple[int, ...]
) -> None:
    texts = [text(length, seed=seed) for seed, length in enumerate(prompts)]
    lengths = (3, 60, 17)
    held, blocks = run(llama, texts, lengths, finishes=True)
    late, _ = run(llama, texts, lengths, finishes=False)
    for row, one in enumerate(texts):
        alone, (its,) = run(llama, [one], lengths[row : row + 1], finishes=True)
        assert held[row] == alone[0] and len(held[row]) > len(late[row])
        # Nothing comes behind it: neither what the row was filled with nor a token a second time.
        assert [ids for ids, *_ in blocks[row]] == [ids for ids, *_ in its]
        assert sum(len(ids) for ids, *_ in blocks[row]) == 40 + len(one) + lengths[row] - 1


def test_a_cache_that_goes_on_behind_a_finished_row_is_stored_as_one_text(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory, torch.no_grad():
        anna, cache = memory.session("anna", create=True), DynamicCache(config=llama.config)
        ids = text(1, 30)
        for turn in range(3):
            ending = StoppingCriteriaList([Ending([4], anna, finishes=True)])
            ids = anna.generate(
                ids, max_new_tokens=9, past_key_values=cache, stopping_criteria=ending, **ENDS
            )
            assert stored(memory, "anna") == ids[0].tolist()[:-1]
            ids = torch.cat([ids, text(1, 20, seed=turn + 1)], dim=1)


def test_what_cannot_be_finished_is_refused(llama: nn.Module) -> None:
    ids = text(1, 20)
    with cmr.attach(llama, **SETTINGS) as memory:
        anna, other = memory.session("anna", create=True), memory.session("anna")
        with pytest.raises(cmr.SessionError, match="inside of a generate"):
            anna.finish([0])

        def inside(handle: cmr.Session, rows: list[int], wrong: type[Exception]) -> None:
            def criterion(*_: Any, **__: Any) -> torch.Tensor:
                with pytest.raises(wrong):
                    handle.finish(rows)
                return torch.tensor([True])

            anna.generate(ids, max_new_tokens=2, stopping_criteria=[criterion], **ENDS)

        inside(other, [0], cmr.SessionError)
        for rows in ([1], [-1], []):
            inside(anna, rows, ValueError)
    with cmr.attach(llama, **{**SETTINGS, "remember": "left"}) as memory:
        anna = memory.session("anna", create=True)
        inside(anna, [0], cmr.SessionError)
