"""How many passages are taken: another one must explain what none explains yet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.retrieval.strategies.test_maxsim import BLOCK, HIDDEN, ring, search, write


def stored(*facts: torch.Tensor, blocks: int = 40) -> torch.Tensor:
    """Random blocks `[blocks, BLOCK, HIDDEN]` with a fact `[tokens, HIDDEN]` every ninth."""
    torch.manual_seed(0)
    states = F.normalize(torch.randn(blocks, BLOCK, HIDDEN), dim=-1)
    for number, fact in enumerate(facts):
        states[4 + 9 * number, : len(fact)] = fact
    return states


def found(states: torch.Tensor, query: torch.Tensor, **settings: object) -> list[int]:
    store = ring(len(states))
    write(store, [0] * len(states), states)
    table = search(store, query[None], [0], neighbours=0, **settings).table[0]
    return [row[0] for row in table.tolist() if row[0] >= 0]


def test_a_second_fact_is_taken_and_a_look_alike_is_not() -> None:
    torch.manual_seed(1)
    one, two = F.normalize(torch.randn(2, 3, HIDDEN), dim=-1)
    alike = F.normalize(one + 0.1 * torch.randn(3, HIDDEN), dim=-1)
    states = stored(one, alike, two)
    both = torch.cat([one, two])
    assert {p - p % 9 for p in found(states, one, blocks=4, gain=0.25, ratio=1.0)} == {0}
    starts = found(states, both, blocks=4, gain=0.25, ratio=1.0)
    assert len(starts) == 2 and any(s in (3, 4) for s in starts)
    assert any(s in (21, 22) for s in starts)
    many = found(states, one, blocks=4, gain=0.0)
    assert len(many) == 4 and any(s in (12, 13) for s in many)


def test_one_that_scores_nearly_as_well_is_taken_whatever_it_adds() -> None:
    torch.manual_seed(1)
    one = F.normalize(torch.randn(3, HIDDEN), dim=-1)
    alike = F.normalize(one + 0.01 * torch.randn(3, HIDDEN), dim=-1)
    states = stored(one, alike)
    assert len(found(states, one, blocks=4, gain=0.9, ratio=1.0)) == 1
    assert len(found(states, one, blocks=4, gain=0.9, ratio=0.9)) == 2


@pytest.mark.parametrize("blocks", [1, 2])
def test_never_more_than_the_budget(blocks: int) -> None:
    torch.manual_seed(2)
    facts = F.normalize(torch.randn(3, 3, HIDDEN), dim=-1)
    taken = found(stored(*facts), facts.flatten(0, 1), blocks=blocks, gain=0.0)
    assert len(taken) == blocks


def test_a_floor_of_similarity_leaves_out_what_is_below_it() -> None:
    torch.manual_seed(3)
    one, two = F.normalize(torch.randn(2, 1, HIDDEN), dim=-1)
    states = stored(one, two)
    far = 0.95 * one + 0.31 * F.normalize(torch.randn(1, HIDDEN), dim=-1)
    query = F.normalize(far, dim=-1)
    cosine = float((query * one).sum())
    assert found(states, query, blocks=1, similarity_threshold=cosine - 0.01)
    assert not found(states, query, blocks=1, similarity_threshold=cosine + 0.01)


def test_rows_are_judged_by_themselves() -> None:
    torch.manual_seed(4)
    one, two = F.normalize(torch.randn(2, 3, HIDDEN), dim=-1)
    states = stored(one, two)
    store = ring(40)
    write(store, [0] * 40, states)
    queries = torch.stack([torch.cat([one, one]), torch.cat([one, two])])
    both = search(store, queries, [0, 0], neighbours=0, blocks=2, gain=0.25, ratio=1.0)
    assert [(row >= 0).any(-1).sum().item() for row in both.table] == [1, 2]
    for row in range(2):
        alone = search(
            store, queries[row : row + 1], [0], neighbours=0, blocks=2, gain=0.25, ratio=1.0
        )
        assert torch.equal(both.table[row], alone.table[0])
