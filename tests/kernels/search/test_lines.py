"""Where lines end around passages, against a loop over tokens."""

import pytest
import torch

from cmr.kernels.reference.select import SearchColumns
from cmr.kernels.search.lines import LAST, within_lines, within_lines_
from tests.kernels.helpers.lines import lined


def loop(given, row: int, place: int) -> list[int]:
    starts, columns, ids, breaks, passage, neighbours = given
    after, before = columns.successor.tolist(), columns.predecessor.tolist()
    slot, first, last, read = int(starts[row, place]), 0, LAST, []

    def tokens(slot: int) -> list[tuple[int, bool]]:
        named = [t if 0 <= t < len(breaks) else len(breaks) - 1 for t in ids[slot].tolist()]
        places = columns.positions[slot].tolist()
        return [(p, p >= 0 and bool(breaks[t])) for p, t in zip(places, named, strict=True)]

    at = slot
    for _ in range(neighbours):
        at = before[at] if at >= 0 else -1
        for p, ends in tokens(at) if at >= 0 else []:
            read.append(p)
            first = max(first, p + 1) if ends else first
    at = slot
    for step in range(passage + neighbours):
        for n, (p, ends) in enumerate(tokens(at) if at >= 0 else []):
            read.append(p)
            behind = step >= passage or (step == passage - 1 and n == ids.shape[1] - 1)
            last = min(last, p) if ends and behind else last
        at = after[at] if at >= 0 else -1
    there = [p for p in read if p >= 0]
    return [max(first, min(there, default=LAST)), min(last, max(there, default=-1))]


@pytest.mark.parametrize(("passage", "neighbours"), [(2, 1), (1, 3), (2, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop(passage: int, neighbours: int, seed: int) -> None:
    torch.manual_seed(seed)
    given = (*lined(2, 5, 60, 4), passage, neighbours)
    found = within_lines(*given)
    for row in range(2):
        assert found[row].tolist() == [loop(given, row, place) for place in range(5)]


def arguments() -> tuple:
    starts, columns, ids, breaks = lined(2, 5, 60, 4)
    links = columns.successor, columns.predecessor, columns.positions
    return starts, *links, ids, breaks, 2, 1, torch.zeros(2, 5, 2, dtype=torch.int64)


def test_opcheck() -> None:
    torch.library.opcheck(within_lines_, arguments())


def test_full_graph() -> None:
    given = (*lined(2, 5, 60, 4), 2, 1)
    torch._dynamo.reset()
    compiled = torch.compile(within_lines, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), within_lines(*given))


def test_bad_input_is_named() -> None:
    starts, columns, ids, breaks = lined(2, 5, 60, 4)
    with pytest.raises(TypeError, match=r"breaks: dtype torch\.bool"):
        within_lines(starts, columns, ids, breaks.int(), 2, 1)
    shorter = SearchColumns(*(column[1:] for column in columns))
    with pytest.raises(ValueError, match=r"positions: shape \[N=60, block=4\] expected"):
        within_lines(starts, shorter, ids, breaks, 2, 1)
