"""Sums over memory, against the same in float64 token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cmr.reconstruction.readout import joint, read_out

METHODS = (None, "weighted_sum", "attention", "recompute", "hierarchical")


def one(h: torch.Tensor, memory: torch.Tensor, sharp: float, prior: torch.Tensor) -> torch.Tensor:
    """What a single token reads of `[n, hidden]`."""
    cosine = torch.stack([F.cosine_similarity(h, m, dim=0) for m in memory])
    return torch.softmax(sharp * cosine + prior.log(), 0) @ memory


def expected(
    h: torch.Tensor,
    memory: torch.Tensor,
    passages: torch.Tensor,
    prior: torch.Tensor,
    method: str | None,
) -> torch.Tensor:
    h, memory, prior = h.double(), memory.double(), prior.double()
    if method != "hierarchical":
        sharp = math.sqrt(len(h)) if method in ("attention", "recompute") else 1.0
        return one(h, memory, sharp, prior)
    sums = [
        one(h, memory[passages == p], 1.0, prior[passages == p])
        for p in sorted(set(passages.tolist()))
    ]
    return one(h, torch.stack(sums), 1.0, torch.ones(len(sums)))


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_sum_is_what_its_equation_says(method: str | None, weighed: bool) -> None:
    states, memory = torch.randn(2, 4, 12), torch.randn(2, 7, 12) * 3
    mask = torch.tensor([[True] * 7, [False, True, True, True, False, True, False]])
    memory = memory.masked_fill(~mask[..., None], torch.nan)
    passages = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 3, 3, 3]])
    prior = torch.rand(2, 7) + 0.1 if weighed else None
    found = read_out(states, memory, mask, method=method, passages=passages, prior=prior)
    prior = torch.ones(2, 7) if prior is None else prior
    for row in range(2):
        held = mask[row]
        for token in range(4):
            want = expected(
                states[row, token],
                memory[row][held],
                passages[row][held],
                prior[row][held],
                method,
            )
            torch.testing.assert_close(found[row, token].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_without_memory_reads_zeros(method: str | None) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    passages = torch.zeros(2, 2, dtype=torch.int64)
    found = read_out(
        torch.randn(2, 3, 8), torch.randn(2, 2, 8), mask, method=method, passages=passages
    )
    assert (found[1] == 0).all() and (found[0] != 0).any()
    nothing = torch.zeros(2, 0, dtype=torch.bool)
    found = read_out(
        torch.randn(2, 3, 8), torch.randn(2, 0, 8), nothing, method=method, passages=nothing.long()
    )
    assert found.shape == (2, 3, 8) and (found == 0).all()


def test_one_passage_makes_a_hierarchy_a_plain_sum() -> None:
    states, memory = torch.randn(1, 4, 12), torch.randn(1, 7, 12)
    mask, passages = torch.ones(1, 7, dtype=torch.bool), torch.zeros(1, 7, dtype=torch.int64)
    found = read_out(states, memory, mask, method="hierarchical", passages=passages)
    torch.testing.assert_close(found, read_out(states, memory, mask))


def test_the_joint_softmax_is_one_over_memory_and_the_token() -> None:
    states, memory = torch.randn(1, 4, 12, dtype=torch.float64), torch.randn(1, 7, 12).double()
    recalled, lead = joint(states, memory, torch.ones(1, 7, dtype=torch.bool), None)
    gate = torch.sigmoid(lead)[..., None]
    for token in range(4):
        h = states[0, token]
        both = torch.cat([memory[0], h[None]])
        want = one(h, both, math.sqrt(12), torch.ones(8))
        have = (1 - gate[0, token]) * h + gate[0, token] * recalled[0, token]
        torch.testing.assert_close(have, want)
