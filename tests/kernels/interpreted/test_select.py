"""The choice of passages: Triton's kernels, interpreted, against the specification."""

import math

import pytest
import torch

from cmr.kernels.reference.select import Rule, SearchColumns, Selection
from cmr.kernels.select import best_passages, maxsim_select
from tests.kernels.helpers.compare import assert_close, specified
from tests.kernels.helpers.selecting import RULE, columns_of, rows_of


def both(
    maxima: torch.Tensor, mask, columns: SearchColumns, sessions, before, rule: Rule, k: int
) -> Selection:
    """What the kernels choose, held against the specification."""
    have = maxsim_select(maxima, mask, columns, sessions, before, rule, k)
    want = specified(maxsim_select, maxima, mask, columns, sessions, before, rule, k)
    assert_close("scores", have.scores, want.scores, 2e-5, 2e-5)
    assert_close("certainty", have.certainty, want.certainty, 2e-5, 2e-5)
    for name in ("starts", "table", "stamps"):
        assert torch.equal(getattr(have, name), getattr(want, name)), name
    found = (want.starts >= 0)[:, None]
    assert_close("values", have.values * found, want.values * found, 2e-5, 2e-5)
    assert_close("shares", have.shares, want.shares, 2e-5, 2e-5)
    return have


@pytest.mark.parametrize(
    ("blocks", "tokens", "k", "neighbours", "passage"),
    [(1, 1, 1, 0, 2), (40, 5, 3, 2, 2), (70, 17, 3, 1, 1), (600, 17, 9, 0, 2)],
)
def test_select(blocks, tokens, k, neighbours, passage) -> None:
    torch.manual_seed(blocks)
    columns, sessions = columns_of(blocks, 3, 3), torch.tensor([0, 2, 9])
    maxima, mask = rows_of(3, tokens, blocks)
    rule = RULE._replace(neighbours=neighbours, passage=passage)
    plain = both(maxima, mask, columns, sessions, None, rule, k)
    assert (plain.starts[2] == -1).all() and (plain.certainty[2] == 0).all()
    before = torch.tensor([blocks * 2, blocks // 2, 0])
    found = both(maxima, mask, columns, sessions, before, rule, k)
    assert blocks == 1 or bool((found.starts[0] >= 0).any())


@pytest.mark.parametrize("power", [0, 1, 2])
def test_maxima_that_are_not_finite(power: int) -> None:
    columns = columns_of(90, 2, 3)
    maxima, _ = rows_of(2, 4, 90)
    maxima[0, 1, 5], maxima[0, 2, 6], maxima[1, 0, 7] = math.nan, -math.inf, math.inf
    maxima[1, 1] = 0.37
    sessions, rule = torch.tensor([0, 1]), RULE._replace(peak_power=power)
    both(maxima, None, columns, sessions, None, rule, 4)
    both(maxima * math.nan, None, columns, sessions, None, rule, 4)
    both(torch.full_like(maxima, 0.7371), None, columns, sessions, None, rule, 4)


def test_ties_go_to_the_lowest_slot_every_time() -> None:
    columns = columns_of(200, 1, 2)._replace(
        successor=torch.full((200,), -1), predecessor=torch.full((200,), -1)
    )
    maxima = torch.zeros(1, 3, 200)
    maxima[..., 50::2] = 1.0
    found = both(maxima, None, columns, torch.zeros(1).long(), None, RULE, 4)
    assert found.starts.tolist() == [[50, 52, 54, 56]]


def test_a_query_of_padding_finds_nothing() -> None:
    columns, (maxima, _) = columns_of(50, 1, 2), rows_of(1, 3, 50)
    mask = torch.zeros(1, 3, dtype=torch.bool)
    found = both(maxima, mask, columns, torch.zeros(1).long(), None, RULE, 2)
    assert (found.starts == -1).all() and found.certainty.item() == 0


def test_a_view_of_kept_maxima_and_no_blocks() -> None:
    columns, (maxima, mask) = columns_of(60, 1, 2), rows_of(1, 3, 60)
    kept = torch.full((1, 7, 200), math.nan)
    kept[:, 2:5, 20:80] = maxima
    found = both(kept[:, 2:5, 20:80], mask, columns, torch.zeros(1).long(), None, RULE, 2)
    assert torch.equal(
        found.table,
        maxsim_select(maxima, mask, columns, torch.zeros(1).long(), None, RULE, 2).table,
    )
    none = both(maxima[..., :0], mask, columns_of(0, 1, 2), torch.zeros(1).long(), None, RULE, 2)
    assert (none.table == -1).all()


@pytest.mark.parametrize(("blocks", "k"), [(0, 2), (1, 1), (40, 3), (1100, 9), (40, 64)])
def test_best_passages(blocks: int, k: int) -> None:
    torch.manual_seed(blocks)
    columns = columns_of(blocks, 2, 2)
    # Rounded: there are ties, and the lowest slot wins.
    line, base = torch.randn(3, blocks).round(decimals=1), torch.randn(3, blocks).round(decimals=1)
    line[:, ::5], base[:, ::7], line[2] = -math.inf, math.nan, -math.inf
    seen, certainty = torch.rand(3, blocks) > 0.2, torch.tensor([1.0, 0.5, 1.5])
    for ranking, least in ((base, 0.4), (None, 0.7)):
        given = (line, ranking, seen, certainty, columns, k, least)
        have, want = best_passages(*given), specified(best_passages, *given)
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
