"""The words of a query in passages: Triton's kernels, interpreted, against the specification."""

import pytest
import torch

from cmr.kernels.words import words
from tests.kernels.helpers.asking import asking
from tests.kernels.helpers.compare import assert_close, specified


def both(given: tuple) -> None:
    have, want = words(*given), specified(words, *given)
    assert_close("rarity", have.rarity, want.rarity, 1e-6, 1e-5)
    assert_close("scores", have.scores, want.scores, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "block", "parts"),
    [(1, 1, 1, 1, 1), (2, 7, 20, 5, 3), (2, 40, 70, 4, 2), (1, 3, 1100, 1, 1), (1, 130, 5, 3, 9)],
)
def test_words(batch: int, tokens: int, blocks: int, block: int, parts: int) -> None:
    torch.manual_seed(tokens)
    given = asking(batch, tokens, blocks, block, parts)
    both(given)
    given[5][0] = False  # a row that sees nothing
    given[1][0] = -1  # and asks nothing
    both(given)


def test_nothing_is_stored_or_asked() -> None:
    both(asking(2, 3, 0, 5, 2))
    both(asking(2, 0, 4, 5, 2))
