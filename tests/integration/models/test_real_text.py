"""A fact of a former text is answered, on the small real model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cmr import FullCMRModel
from tests.integration.test_real_model import ANSWER, FACT, PROSE, QUESTION, chat
from tests.integration.tiny import greedy


def test_an_answer_from_a_former_sequence(
    smollm2: tuple[nn.Module, Any], made: Callable[..., Any]
) -> None:
    decoder, tokenizer = smollm2
    model = made(FullCMRModel, decoder, {"window": 256}, tokenizer=tokenizer)
    part = len(PROSE) // 4
    for start, middle in ((0, ""), (part, FACT), (2 * part, "")):
        words = PROSE[start : start + part // 2] + middle + PROSE[start + part // 2 : start + part]
        model(tokenizer(words, return_tensors="pt").input_ids, sessions="anna")
    inputs = chat(tokenizer, QUESTION)
    ids = inputs.pop("input_ids")
    told = greedy(model, ids, tokens=14, sessions="anna", **inputs)
    assert ANSWER in tokenizer.decode(told[0])
    recalled = model.get_retrieval_stats()["recalled"][0]
    assert any(ANSWER in passage["text"] for passage in recalled)
    stranger = greedy(model, ids, tokens=14, sessions="ben", **inputs)
    assert model.memory.recalled == [[]] and ANSWER not in tokenizer.decode(stranger[0])
