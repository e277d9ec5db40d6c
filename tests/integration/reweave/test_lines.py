"""Recalled passages of a text in lines end with theirs, and nothing beyond is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cmr
from cmr.integration.reweave import recall as recalling

LINES = [
    f"{name} keeps {what} {where}, where nobody has looked for {how} since the summer."
    for name, what, where, how in (
        ("Anton", "a kettle", "in the attic", "it"),
        ("Berta", "three maps of Iceland", "under the stairs", "them"),
        ("Clara", "her skates", "behind the boiler", "them"),
        ("David", "a jar of plum jam", "in the cellar", "it"),
        ("Elena", "her violin", "at the harbour office", "it"),
        ("Felix", "the key of the shed", "in a blue teapot", "it"),
        ("Greta", "letters from Peru", "in the piano", "them"),
        ("Heinz", "a broken clock", "on top of the wardrobe", "it"),
        ("Irena", "two canoes", "in the barn of an uncle", "them"),
        ("Jonas", "an old camera", "below his desk", "it"),
        ("Klara", "a sledge", "in the tool shed", "it"),
        ("Lukas", "the tent", "on the balcony", "it"),
    )
]
QUESTION = "Where does Elena keep her violin?"


@pytest.fixture
def memory(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[cmr.Memory]:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, threshold=0.0, memory_weight=0.9) as memory:
        memory.read(tokenizer("\n".join(LINES), return_tensors="pt").input_ids)
        yield memory


def logits(smollm2: Any, *questions: str) -> torch.Tensor:
    model, tokenizer = smollm2
    said = [[{"role": "user", "content": question}] for question in questions]
    prompt = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    return model(**prompt).logits[:, -1]


def test_passages_are_whole_lines(memory: cmr.Memory) -> None:
    found = memory.session("0").search(QUESTION)
    assert "Elena keeps her violin" in found[0].text
    assert sum(passage.end - passage.start for passage in found) < 0.9 * memory.tokens
    for passage in found:
        assert set(passage.text.strip("\n").split("\n")) <= set(LINES), passage.text
        assert passage.end - passage.start == len(passage.token_ids)


@pytest.mark.parametrize("in_place", [False, True])
def test_nothing_beyond_is_read(
    in_place: bool, memory: cmr.Memory, smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalling, "in_place", lambda device: in_place)
    want, ring = logits(smollm2, QUESTION), memory._core.ring
    read = torch.tensor([place for p in memory.recalled[0] for place in p.positions])
    others = ~torch.isin(ring.positions, read)[:, None, :, None]
    for part in (*ring.keys.values(), *ring.values.values()):
        part.copy_(torch.where(others, 7.0, part))
    assert torch.equal(logits(smollm2, QUESTION), want)


def test_rows_of_one_session_read_their_own(
    memory: cmr.Memory, smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place what one of them leaves out is read by the other that needs it."""
    asked = (QUESTION, "Where does Felix keep the key of the shed?")
    with memory.session("0", "0"):
        logits(smollm2, *asked)
        rows = [{place for p in row for place in p.positions} for row in memory.recalled]
        assert rows[0] != rows[1] and rows[0] & rows[1]
        monkeypatch.setattr(recalling, "in_place", lambda device: True)
        logits(smollm2, *asked)
        held = memory._stepper.last.recall.layer(memory.stats()["target_layers"][0])
        kept = set(held.positions[held.positions >= 0].tolist())
    assert rows[0] | rows[1] <= kept
