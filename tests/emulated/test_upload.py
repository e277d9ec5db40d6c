"""Small tensors of the host come to a device whole, and in memory of their own."""

import pytest
import torch

from cmr.kernels.upload import numbers_on, uploaded
from tests.emulated.device import DEVICE, Device

CPU = torch.device("cpu")


def test_columns_come_as_they_are() -> None:
    columns = [3, 1], torch.tensor([-1, 5]), (7, 1 << 40)
    found = numbers_on(CPU, *columns)
    assert [column.tolist() for column in found] == [[3, 1], [-1, 5], [7, 1 << 40]]
    assert all(column.dtype == torch.int64 and column.is_contiguous() for column in found)


def test_nothing_is_a_column_too() -> None:
    columns = numbers_on(CPU, [], torch.empty(0, dtype=torch.int64))
    assert [len(column) for column in columns] == [0, 0]


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(RuntimeError):
        numbers_on(CPU, [1, 2], [1])


def test_a_gpu_is_not_waited_for() -> None:
    with Device().running() as device:
        given = torch.arange(4)
        with device.counting() as count:
            there = uploaded(given, DEVICE)
            columns = numbers_on(DEVICE, given, [4, 5, 6, 7])
            again = uploaded(there, DEVICE)
        given.fill_(9)  # whoever gave it may use it for something else
        assert count.waited == 0 and count.launched == 2
        assert again is there and there.tolist() == [0, 1, 2, 3]
        assert [column.tolist() for column in columns] == [[0, 1, 2, 3], [4, 5, 6, 7]]
