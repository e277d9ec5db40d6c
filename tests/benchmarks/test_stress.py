"""Many users at once get what each gets alone, from its own memory, and typed errors at most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.users import stress


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Threads of users are what this is about, not those of PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", stress.MODES)
def test_everybody_gets_what_they_get_alone(mode: str) -> None:
    row = stress.compare(mode, users=5, operations=12, seed=1)
    assert (row["operations"], row["foreign"], row["wrong"], row["errors"]) == (60, 0, 0, [])
    assert row["recalls"] > 100 and row["upkeeps"] > 0


def test_a_foreign_read_would_be_seen() -> None:
    """The watch itself: rows that read another session's blocks are counted."""
    model = stress.tiny()
    with stress.cmr.attach(model, **stress.SETTINGS) as memory, torch.no_grad():
        memory.read(torch.randint(3, 200, (2, 120)), sessions=["anna", "ben"])
        watch = stress.Watch(memory)
        memory.session("anna").forward(torch.randint(3, 200, (1, 20)))
        assert (watch.recalls, watch.foreign) == (1, 0)
        ring, table = memory._core.ring, memory._core.table
        slots = ring.ledger.slots_of(table.require("ben"))[:2]
        watch._check(slots[None, None], torch.tensor([table.require("anna")]))
        assert (watch.recalls, watch.foreign) == (2, 2)
