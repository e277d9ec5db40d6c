"""The block table: passages and their neighbours, every block once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.reference.select import block_table


def chain(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Links of one text whose blocks lie in slots 0, 1, 2, ..."""
    slots = torch.arange(length)
    successor = torch.where(slots + 1 < length, slots + 1, -1)
    return successor, slots - 1


def test_a_passage_is_read_with_its_neighbours_in_the_order_of_the_text() -> None:
    table = block_table(torch.tensor([[4]]), *chain(9), length=2, neighbours=1)
    assert table.tolist() == [[[3, 4, 5, 6]]]


def test_the_ends_of_a_text_have_no_neighbours() -> None:
    table = block_table(torch.tensor([[0], [4]]), *chain(5), length=2, neighbours=2)
    assert table.tolist() == [[[-1, -1, 0, 1, 2, 3]], [[2, 3, 4, -1, -1, -1]]]


def test_a_block_of_two_passages_is_read_once() -> None:
    table = block_table(torch.tensor([[4, 6, -1]]), *chain(12), length=2, neighbours=1)
    assert table.tolist() == [[[3, 4, 5, 6], [-1, -1, 7, 8], [-1, -1, -1, -1]]]


def test_links_lead_through_the_ring_not_through_slot_numbers() -> None:
    successor = torch.tensor([3, -1, 0, 1])  # the text is 2, 0, 3, 1
    predecessor = torch.tensor([2, 3, -1, 0])
    table = block_table(torch.tensor([[0]]), successor, predecessor, length=2, neighbours=1)
    assert table.tolist() == [[[2, 0, 3, 1]]]


@settings(max_examples=50, deadline=None)
@given(
    starts=st.lists(st.integers(-1, 9), min_size=1, max_size=5),
    length=st.integers(1, 3),
    neighbours=st.integers(0, 4),
)
def test_every_block_near_a_start_is_read_exactly_once(
    starts: list[int], length: int, neighbours: int
) -> None:
    table = block_table(torch.tensor([starts]), *chain(10), length=length, neighbours=neighbours)
    near = [
        slot
        for start in starts
        if start >= 0
        for slot in range(start - neighbours, start + length + neighbours)
        if 0 <= slot < 10
    ]
    read = [slot for slot in table.flatten().tolist() if slot >= 0]
    assert sorted(read) == sorted(set(near))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_without_a_passage_reads_nothing(rows: int) -> None:
    table = block_table(torch.full((rows, 2), -1), *chain(4), length=2, neighbours=1)
    assert table.shape == (rows, 2, 4) and (table == -1).all()
