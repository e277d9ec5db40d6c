"""Which passages are read: Triton's kernel, interpreted, against the specification."""

import math

import pytest
import torch

from cmr.kernels.cover import Enough, cover
from cmr.kernels.reference.select import SearchColumns
from tests.kernels.helpers.compare import specified
from tests.kernels.helpers.selecting import columns_of, passages_of

ENOUGH = Enough(ratio=0.75, gain=0.1, passage=2, neighbours=1)


def both(given: tuple, columns: SearchColumns, enough: Enough, most: int) -> None:
    have = cover(*given, columns, enough, most)
    want = specified(cover, *given, columns, enough, most)
    for name, a, b in zip(have._fields, have, want, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("batch", "tokens", "k", "most"), [(1, 1, 1, 1), (3, 9, 8, 4), (2, 150, 9, 9), (1, 64, 64, 3)]
)
@pytest.mark.parametrize("passage", [1, 2])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_cover(batch, tokens, k, most, passage, neighbours) -> None:
    torch.manual_seed(tokens)
    for gain in (0.0, 0.1, 9.0):
        enough = Enough(0.75, gain, passage, neighbours)
        both(passages_of(batch, tokens, k, blocks=90), columns_of(90, 2, 2), enough, most)


@pytest.mark.parametrize(("tokens", "k", "parts"), [(1, 1, 1), (9, 8, 3), (150, 9, 5)])
def test_values_of_all_slots_and_shares_of_parts(tokens: int, k: int, parts: int) -> None:
    torch.manual_seed(tokens)
    _, _, *passages = passages_of(3, tokens, k, blocks=90)
    passages[1][2] = -1  # a row that finds nothing
    given = torch.randn(3, tokens, 90), torch.rand(3, parts, tokens).softmax(-1), *passages
    columns, winner = columns_of(90, 2, 2), torch.randint(0, parts, (3, 90))
    have = cover(*given, columns, ENOUGH, min(3, k), winner)
    want = specified(cover, *given, columns, ENOUGH, min(3, k), winner)
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


def test_rows_that_find_nothing_or_one() -> None:
    values, shares, scores, starts, fits = passages_of(3, 5, 8, blocks=40)
    starts[0], starts[1, 1:] = -1, -1
    fits[0] = -math.inf
    both((values, shares, scores, starts, fits), columns_of(40, 1, 2), ENOUGH, 4)
    both((values[:, :0], shares[:, :0], scores, starts, fits), columns_of(40, 1, 2), ENOUGH, 4)


def test_nothing_is_stored() -> None:
    none, starts = torch.full((2, 4), -math.inf), torch.full((2, 4), -1)
    empty = torch.zeros(0, dtype=torch.int64)
    columns = SearchColumns(empty, empty.view(0, 1), empty, empty, empty)
    both((torch.zeros(2, 3, 4), torch.zeros(2, 3), none, starts, none), columns, ENOUGH, 2)
