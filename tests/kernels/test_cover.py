"""Which of the best passages are read, against a loop over passages."""

import math

import pytest
import torch

from cmr.kernels.cover import Enough, cover, cover_
from cmr.kernels.reference.select import SearchColumns
from tests.kernels.helpers.selecting import columns_of, passages_of

ENOUGH = Enough(ratio=0.75, gain=0.1, passage=2, neighbours=1)


def loop(values, shares, starts, fits, enough: Enough, most: int) -> list[list[int]]:
    """Places of the passages that are taken, row by row, in float64."""
    rows = []
    for row in range(len(values)):
        value, share = values[row].double(), shares[row].double()
        taken = [0] if starts[row, 0] >= 0 else []
        held, last = value[:, 0], 0
        first = float((share * held).sum())
        while len(taken) < most:
            for place in range(last + 1, starts.shape[1]):
                more = float((share * torch.maximum(held, value[:, place])).sum())
                more -= float((share * held).sum())
                fit = float(fits[row, place])
                close = fit >= enough.ratio * float(fits[row, 0]) and fit > 0
                if starts[row, place] >= 0 and (more >= enough.gain * first or close):
                    break
            else:
                break
            taken.append(place)
            held, last = torch.maximum(held, value[:, place]), place
        rows.append(taken)
    return rows


@pytest.mark.parametrize(
    ("batch", "tokens", "k", "most"), [(1, 1, 1, 1), (3, 9, 8, 4), (2, 70, 9, 9)]
)
@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop(batch: int, tokens: int, k: int, most: int, seed: int) -> None:
    torch.manual_seed(seed)
    given = passages_of(batch, tokens, k, blocks=90)
    values, shares, scores, starts, fits = given
    found = cover(*given, columns_of(90, 1, 2), ENOUGH, most)
    for row, taken in enumerate(loop(values, shares, starts, fits, ENOUGH, most)):
        count = len(taken)
        assert torch.equal(found.scores[row, :count], scores[row, taken])
        assert (found.scores[row, count:] == -math.inf).all()
        assert torch.equal(found.starts[row, :count], starts[row, taken])
        assert (found.starts[row, count:] == -1).all()
        begin = found.table[row, :, ENOUGH.neighbours]
        # A slot that an earlier passage has already is left out.
        wanted = starts[row, taken]
        assert ((begin[:count] == wanted) | (begin[:count] == -1)).all()
        assert (found.table[row, count:] == -1).all()


def test_values_of_all_slots_and_shares_of_the_part_that_found_the_first() -> None:
    torch.manual_seed(5)
    values, shares = torch.randn(2, 7, 90), torch.rand(2, 3, 7).softmax(-1)
    scores, starts, fits = passages_of(2, 7, 8, blocks=90)[2:]
    columns, winner = columns_of(90, 1, 2), torch.randint(0, 3, (2, 90))
    found = cover(values, shares, scores, starts, fits, columns, ENOUGH, 4, winner)
    picked = torch.stack([values[row][:, starts[row].clamp(min=0)] for row in range(2)])
    first = winner[[0, 1], starts[:, 0]]
    own = shares[[0, 1], first]
    out = type(found)(*(torch.full_like(part, 9) for part in found))
    want = cover(picked, own, scores, starts, fits, columns, ENOUGH, 4, out=out)
    assert all(a is b for a, b in zip(want, out, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_look_alike_adds_nothing_and_a_second_fact_does() -> None:
    values = torch.tensor([[[4.0, 4.0, 0.0], [4.0, 3.9, 0.0], [0.0, 0.0, 4.0]]])
    shares, scores = torch.full((1, 3), 1 / 3), torch.tensor([[3.0, 2.0, 1.0]])
    starts, fits = torch.tensor([[10, 20, 30]]), torch.tensor([[3.0, 2.0, 1.0]])
    chain = torch.arange(40)
    columns = SearchColumns(chain, chain[:, None], chain + 1, chain - 1, chain + 100)
    columns.successor[-1] = -1
    plain = Enough(ratio=1.0, gain=0.2, passage=2, neighbours=0)
    found = cover(values, shares, scores, starts, fits, columns, plain, 3)
    assert found.table.tolist() == [[[10, 11], [30, 31], [-1, -1]]]
    assert found.stamps.tolist() == [[[110, 111], [130, 131], [-1, -1]]]
    assert found.scores.tolist() == [[3.0, 1.0, -math.inf]]
    # One that fits nearly as well as the first is taken whatever it adds.
    found = cover(values, shares, scores, starts, fits, columns, plain._replace(ratio=0.6), 2)
    assert found.table[:, :, 0].tolist() == [[10, 20]]


def test_nothing_is_stored() -> None:
    values, shares = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    none, starts = torch.full((2, 4), -math.inf), torch.full((2, 4), -1)
    empty = torch.zeros(0, dtype=torch.int64)
    columns = SearchColumns(empty, empty.view(0, 1), empty, empty, empty)
    found = cover(values, shares, none, starts, none, columns, ENOUGH, 2)
    assert (found.table == -1).all() and (found.scores == -math.inf).all()


def arguments() -> tuple:
    values, shares, *given = passages_of(2, 5, 8, blocks=40)
    columns = columns_of(40, 1, 2)
    links = columns.successor, columns.predecessor, columns.created
    starts, table = torch.full((2, 3), 0), torch.full((2, 3, 4), 0)
    out = torch.empty(2, 3), starts, table, torch.full((2, 3, 4), 0)
    return values, shares, None, *given, *links, *ENOUGH, *out


def test_opcheck() -> None:
    torch.library.opcheck(cover_, arguments())


def test_full_graph() -> None:
    given, columns = passages_of(2, 5, 8, blocks=40), columns_of(40, 1, 2)
    torch._dynamo.reset()
    compiled = torch.compile(cover, fullgraph=True, backend="aot_eager")
    have, want = (call(*given, columns, ENOUGH, 3) for call in (compiled, cover))
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


def test_bad_input_is_named() -> None:
    given, columns = passages_of(2, 5, 8, blocks=40), columns_of(40, 1, 2)
    with pytest.raises(ValueError, match=r"most: 1 to k=8 expected, got 9"):
        cover(*given, columns, ENOUGH, 9)
    with pytest.raises(TypeError, match=r"starts: dtype torch\.int64"):
        cover(*given[:3], given[3].int(), given[4], columns, ENOUGH, 2)
