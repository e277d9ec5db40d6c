"""Empty rings, and where the next blocks of one go when the oldest leave: for tests of writes."""

from __future__ import annotations

import torch

from cmr.kernels.ring_link import Columns, Reserved


def columns(slots: int, size: int) -> Columns:
    """An empty ring's."""
    numbers = [torch.full((slots,), -1) for _ in range(6)]
    numbers[1].zero_()
    text = torch.zeros(slots, size).long(), torch.full((slots, size), -1)
    return Columns(torch.tensor([0]), *numbers, torch.zeros(slots), *text)


def reserve(columns: Columns, sessions: torch.Tensor) -> Reserved:
    """The slots at the cursor, and the last block of each session that stays before it."""
    total, cursor = len(columns.session), int(columns.cursor)
    slots = [(cursor + i) % total for i in range(len(sessions))]
    last: dict[int, tuple[int, int]] = {}
    stored = zip(columns.session.tolist(), columns.created.tolist(), strict=True)
    for slot, (session, number) in enumerate(stored):
        if slot not in slots:
            last[session] = max(last.get(session, (-1, -1)), (number, slot))
    before = []
    for i, (slot, session) in enumerate(zip(slots, sessions.tolist(), strict=True)):
        before.append(last.get(session, (-1, -1))[1])
        last[session] = (cursor + 1 + i, slot)
    numbers = torch.arange(cursor + 1, cursor + 1 + len(slots))
    found = (torch.tensor(slots, dtype=torch.int64), torch.tensor(before, dtype=torch.int64))
    return Reserved(*(x.to(sessions.device) for x in (*found, numbers)))
