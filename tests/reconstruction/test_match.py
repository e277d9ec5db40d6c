"""How well memory tokens match what asks."""

from __future__ import annotations

import statistics

import pytest
import torch

from cmr.reconstruction.methods import CLAMP, match


def expected(query: torch.Tensor, memory: torch.Tensor) -> list[float]:
    """One row without masks, number by number."""
    best = [-CLAMP] * len(memory)
    for token in query.double():
        cosine = [float(token @ m / token.norm() / m.norm()) for m in memory.double()]
        mean, spread = statistics.fmean(cosine), statistics.pstdev(cosine)
        for i, c in enumerate(cosine):
            best[i] = max(best[i], min(CLAMP, max(-CLAMP, (c - mean) / spread)))
    return best


def test_a_match_is_the_best_standardised_cosine() -> None:
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    asks = torch.tensor([[True] * 5, [True, False, True, False, False]])
    mask = torch.tensor([[True] * 9, [False, *[True] * 6, False, False]])
    found = match(query, asks, memory, mask)
    for row in range(2):
        want = expected(query[row][asks[row]], memory[row][mask[row]])
        torch.testing.assert_close(
            found[row][mask[row]].double(), torch.tensor(want).double(), rtol=1e-4, atol=1e-4
        )
    assert (found[~mask] == 0).all()


def test_a_word_that_fits_everywhere_says_nothing() -> None:
    memory = torch.eye(8)[None]
    everywhere, once = torch.ones(1, 1, 8), torch.eye(8)[None, 3:4]
    mask = torch.ones(1, 8, dtype=torch.bool)
    assert match(everywhere, None, memory, mask).abs().max() < 1e-3
    assert match(once, None, memory, mask).argmax() == 3


def test_hidden_tokens_may_hold_anything() -> None:
    query, memory = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    mask = torch.tensor([[True, True, False, True, False, True]])
    poisoned = memory.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(match(query, None, poisoned, mask), match(query, None, memory, mask))


@pytest.mark.parametrize("tokens", [0, 3])
def test_who_does_not_ask_matches_nothing(tokens: int) -> None:
    mask, asks = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, tokens, dtype=torch.bool)
    found = match(torch.randn(1, tokens, 8), asks, torch.randn(1, 4, 8), mask)
    assert found.tolist() == [[0.0] * 4]


def test_norms_do_not_matter() -> None:
    query, memory = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    mask = torch.ones(1, 6, dtype=torch.bool)
    scaled = match(query * 7, None, memory * torch.rand(1, 6, 1).add(0.1), mask)
    torch.testing.assert_close(scaled, match(query, None, memory, mask), rtol=1e-4, atol=1e-4)
