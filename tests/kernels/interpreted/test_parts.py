"""Scores of what is asked in parts: Triton's kernels, interpreted, against the specification."""

import pytest
import torch

from cmr.kernels.search.parts import part_scores
from tests.kernels.helpers.compare import assert_close, specified
from tests.kernels.helpers.parts import NUMBERS, parts_of


def both(given: tuple, numbers=NUMBERS) -> None:
    have, want = part_scores(*given, numbers), specified(part_scores, *given, numbers)
    assert_close("line", have.line, want.line, 1e-4, 1e-4)
    assert_close("shares", have.shares, want.shares, 1e-6, 1e-5)
    assert_close("certainty", have.certainty, want.certainty, 1e-4, 1e-4)
    # Parts may be level but for the order of sums: of those that are not the same one wins.
    differs = (have.winner != want.winner) & (have.line > float("-inf"))
    assert not differs.any()


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "parts"),
    [(1, 1, 1, 1), (2, 7, 20, 3), (2, 40, 70, 2), (1, 3, 1100, 17), (1, 70, 5, 9)],
)
def test_part_scores(batch: int, tokens: int, blocks: int, parts: int) -> None:
    torch.manual_seed(tokens)
    given = parts_of(batch, tokens, blocks, parts)
    both(given)
    given[1][0] = False  # a row that sees nothing
    given[2][0] = -1  # and asks nothing
    both(given)


@pytest.mark.parametrize("power", [0, 2])
def test_other_numbers(power: int) -> None:
    torch.manual_seed(power)
    given = parts_of(2, 9, 33, 3)
    both(given, NUMBERS._replace(peak_power=power, few_blocks=100))
