"""Sentences that asked for nothing weigh less in the layers that read memory, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmr.config import ReweaveConfig
from cmr.integration.reweave.aside import TALK, Aside, aside_of, focus_for
from cmr.integration.reweave.attention import LayerMemory, weave
from cmr.integration.reweave.held import LayerRows
from cmr.retrieval import Choice
from cmr.retrieval.ask import QueryParts

SURE = torch.ones(1)


def choice(*found: int) -> Choice:
    """A choice whose passages were found by these parts, -1 for no passage."""
    parts = torch.tensor([found])
    none = torch.zeros(1, len(found), 1, dtype=torch.int64)
    return Choice(none, none, none[..., 0].float(), torch.ones(1), parts=parts)


def parts(*of: int, marked: tuple[int, ...] = ()) -> QueryParts:
    """One row of tokens with the part of each."""
    marks = torch.zeros(1, max(of) + 1, dtype=torch.bool)
    marks[:, list(marked)] = True
    return QueryParts(torch.tensor([of]), marks)


def weights(*args: Any) -> list[float]:
    """What is left of the weight of each token."""
    found = aside_of(*args)
    assert found is not None
    return [round(value, 4) for value in found.exp()[0].tolist()]


def test_what_found_something_keeps_its_weight_and_the_rest_weighs_by_its_length() -> None:
    message = parts(-1, 0, 0, 0, 0, 1, 1, -1)
    assert weights(message, choice(1), SURE, 1.0) == [1, 0.25, 0.25, 0.25, 0.25, 1, 1, 1]
    assert weights(message, choice(1, -1), SURE, 2.0) == [1, *[0.0625] * 4, 1, 1, 1]
    assert weights(message, choice(1), SURE, 0.5) == [1] * 8  # no longer than the question over it
    assert weights(message, choice(0), SURE, 1.0) == [1] * 8
    assert weights(message, choice(1, 0), SURE, 1.0) == [1] * 8


def test_a_question_mark_keeps_its_weight_too() -> None:
    message = parts(0, 0, 1, 2, 2, 2, 2, 2, marked=(0,))
    assert weights(message, choice(1), SURE, 1.0) == [1, 1, 1, *[0.36] * 5]


def test_what_is_too_long_for_talk_keeps_its_weight() -> None:
    lost = [
        weights(parts(*[0] * rest, *[1] * 8), choice(1), SURE, 1.0)[0]
        for rest in (TALK, TALK + TALK // 2, 2 * TALK, 9 * TALK)
    ]
    assert lost[:2] == [round((8 / TALK) ** 2, 4), round(8 / (1.5 * TALK), 4)]
    assert lost[2:] == [1.0, 1.0]


def test_an_unsure_search_turns_less_to_what_it_found() -> None:
    message = parts(0, 0, 1)
    assert weights(message, choice(1), torch.tensor([0.5]), 1.0) == [0.5, 0.5, 1]
    assert weights(message, choice(1), torch.tensor([0.0]), 1.0) == [1] * 3
    assert weights(message, choice(-1), SURE, 1.0) == [1] * 3


def test_without_parts_or_focus_there_is_nothing_to_do() -> None:
    assert aside_of(parts(0, 0), choice(0), SURE, 1.0) is None
    assert aside_of(parts(0, 1), choice(0), SURE, 0.0) is None
    assert aside_of(parts(0, 1), choice(0)._replace(parts=None), SURE, 1.0) is None


@pytest.mark.parametrize(
    ("parameters", "setting", "focus"),
    [(135e6, "auto", 0.7), (494e6, "auto", 0.35), (135e6, 0.2, 0.2), (8e9, 0.0, 0.0)],
)
def test_a_very_small_model_turns_more_to_what_was_asked(
    parameters: float, setting: float | str, focus: float
) -> None:
    adapter: Any = SimpleNamespace(model=SimpleNamespace(num_parameters=lambda: parameters))
    assert focus_for(adapter, ReweaveConfig(focus=setting).focus) == focus


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_it_joins_the_layers_own_mask(kind: str, tokens: int) -> None:
    less = torch.tensor([[0.0, -1.5]])
    query, key = torch.randn(1, 2, tokens, 4), torch.randn(1, 2, 4, 4)
    sees = torch.ones(tokens, 4, dtype=torch.bool).tril(4 - tokens)
    given = {
        "none": None,
        "bool": sees[None, None],
        "float": torch.zeros(1, 1, tokens, 4).masked_fill(~sees, -torch.inf),
    }[kind]
    aside = Aside(less, start=1, seen=4)
    made = aside.over(given, query, key)
    wanted = torch.tensor([0.0, 0.0, -1.5, 0.0]).expand(tokens, 4).masked_fill(~sees, -torch.inf)
    assert made is not None
    assert torch.equal(made.expand(1, 1, tokens, 4)[0, 0], wanted)
    assert aside.over(given, query, key) is made  # once for all layers
    assert aside.over(given, query, key[:, :, :3]) is given  # a window that has let go of a token


def test_memory_keeps_its_share_of_what_the_aside_parts_lose() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 1, 8), *torch.randn(2, 1, 2, 5, 8))
    stored = torch.randn(2, 1, 2, 3, 8)
    mask = Aside(torch.tensor([[-2.0, 0.0]]), start=1, seen=5).over(None, query, key)
    memory = LayerMemory(LayerRows(*stored, None), torch.zeros(1), None, None, {})
    how: dict[str, Any] = {"is_causal": False, "scale": 0.3, "softcap": None, "into": None}
    out, gate = weave(query, key, value, mask, memory, **how)
    logits = 0.3 * query @ torch.cat((key, stored[0]), 2).mT
    logits[..., 1] -= 2.0
    share = logits.softmax(-1)
    torch.testing.assert_close(out, share @ torch.cat((value, stored[1]), 2))
    torch.testing.assert_close(gate, share[..., 5:].sum(-1))
