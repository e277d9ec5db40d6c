"""Tokens of chosen blocks, against loops over them."""

import pytest
import torch

from cmr.kernels.search.recalled import recalled, recalled_, without_unread, without_unread_
from tests.kernels.helpers.recalling import chosen, counting


@pytest.mark.parametrize(("within", "blank"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 6, 9, 4, 5)])
def test_against_a_loop(shape: tuple[int, ...], within: bool, blank: bool) -> None:
    torch.manual_seed(shape[0])
    table, ends, positions, ids, index = chosen(*shape)
    used, sure = counting(shape[0], shape[2])
    before = [column.tolist() for column in used[:2]]
    given = table, ends if within else None, positions, ids, index if blank else None
    found = recalled(*given, used, sure)
    rise = [(certainty - 0.5) * 3.0 for certainty in sure.certainty.tolist()]
    assert found.bias.tolist() == pytest.approx([min(max(bias, 0.0), 3.0) for bias in rise])
    for slot in table[table >= 0].tolist():
        before[0][slot] += 1
        before[1][slot] = max(before[1][slot], used.clock)
    assert [column.tolist() for column in used[:2]] == before
    size, seen = shape[3], 0
    for row, slots in enumerate(table.tolist()):
        for entry, slot in enumerate(slots):
            for token in range(size):
                at, place = entry * size + token, int(positions[slot, token])
                there = slot >= 0 and place >= 0
                if within:
                    there = there and any(a <= place <= b for a, b in ends[row].tolist())
                reads = there and not (blank and not index[slot, token].any())
                seen += there
                assert bool(found.mask[row, at]) == there and bool(found.read[row, at]) == reads
                assert found.token_ids[row, at] == (ids[slot, token] if there else 0)
                assert found.positions[row, at] == (place if there else -1)
    assert seen or shape[0] == 1


def test_a_token_stays_where_a_row_reads_it() -> None:
    positions = torch.arange(12).view(3, 4)
    table = torch.tensor([[2, 0], [0, -1]])
    read = torch.tensor([[1, 1, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1, 1, 1]]).bool()
    found = without_unread(positions, table, read)
    assert found.tolist() == [[0, -1, 2, -1], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert positions.min() == 0, "a copy"


def test_opcheck() -> None:
    given = chosen(2, 6, 9, 4, 5)
    used, sure = counting(2, 9)
    flags = [torch.zeros(2, 24, dtype=torch.bool) for _ in range(2)]
    numbers = [torch.zeros(2, 24, dtype=torch.int64) for _ in range(2)]
    torch.library.opcheck(recalled_, (*given, *used, *sure, *flags, *numbers, torch.zeros(2)))
    torch.library.opcheck(without_unread_, (given[2], given[0], flags[0], given[2].clone()))


def test_full_graph() -> None:
    given, counted = chosen(2, 6, 9, 4, 5), counting(2, 9)

    def both() -> tuple[torch.Tensor, ...]:
        found = recalled(*given, *counted)
        return *found, without_unread(given[2], given[0], found.read)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(), both(), strict=True))


def test_bad_input_is_named() -> None:
    table, within, positions, ids, index = chosen(2, 6, 9, 4, 5)
    with pytest.raises(ValueError, match=r"within: shape \[B=2, m, two=2\] expected"):
        recalled(table, within[..., :1], positions, ids, index, *counting(2, 9))
    used, sure = counting(2, 9)
    with pytest.raises(ValueError, match=r"high: a certainty above low=0\.5 expected, got 0\.5"):
        recalled(table, within, positions, ids, index, used, sure._replace(high=0.5))
    with pytest.raises(ValueError, match=r"read: shape \[B=2, T=24\] expected"):
        without_unread(positions, table, torch.zeros(2, 23, dtype=torch.bool))
