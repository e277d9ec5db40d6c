"""The columns of a ring of slots, and the chains that link each text's blocks in them.

A ring has `slots` slots of `size` tokens each, and a cursor that counts the blocks ever written. A
write links its slots once, and writes the heads of each layer and the index (`ring_write`): one
launch each, and nothing that waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.ring_write import cut, expect_numbers


class Reserved(NamedTuple):
    """Where n blocks go.

    Attributes:
        slots: [n] int64, distinct.
        predecessors: [n] int64, slot of the block before in the session's text, or -1.
        numbers: [n] int64, what the column `created` will hold.
    """

    slots: torch.Tensor
    predecessors: torch.Tensor
    numbers: torch.Tensor


class Columns(NamedTuple):
    """What a ring knows of each slot, and its cursor.

    Attributes:
        cursor: [1] int64, blocks ever written.
        session: [slots] int64, whose block it is; below 0: nobody's.
        created: [slots] int64, number of the block.
        successor: [slots] int64, slot of the next block of the text, or -1.
        predecessor: [slots] int64, slot of the block before, or -1.
        last_access: [slots] int64.
        access_count: [slots] int64.
        relevance: [slots] float32.
        token_ids: [slots, size] int64.
        positions: [slots, size] int64, -1 where there is no token.
    """

    cursor: torch.Tensor
    session: torch.Tensor
    created: torch.Tensor
    successor: torch.Tensor
    predecessor: torch.Tensor
    last_access: torch.Tensor
    access_count: torch.Tensor
    relevance: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor


def ring_link(
    columns: Columns,
    reserved: Reserved,
    sessions: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    relevance: torch.Tensor | None,
    pick: torch.Tensor,
) -> None:
    """Writes the columns of n new blocks, chains them to their sessions and moves the cursor.

    Chains that lead into an overwritten slot are cut there. The cursor becomes the last of
    `reserved.numbers`; accesses become 0.

    Args:
        columns: of the ring, changed in place.
        reserved: where the blocks go. A predecessor is the last block of its session's chain, and
            no two blocks have the same one.
        sessions: [n] int64 of at least 0, each block's session.
        token_ids: [B, T] int64.
        positions: [B, T] int64, in the session's text; -1 is padding.
        relevance: float32, one for each block of the text: [B, ceil(T / size)]; None: 0.
        pick: [n] int64, which blocks of the text are written: row * ceil(T / size) + number of the
            block in its row; behind T stand tokens 0 at positions -1.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot or a pick out of range (on a CPU; elsewhere a precondition).

    Equivalent PyTorch: `column[slots] = value` for each column.
    """
    one, slot = ("1", torch.int64, CONTIGUOUS), ("slots", torch.int64, CONTIGUOUS)
    text, new = ("slots size", torch.int64, CONTIGUOUS), ("n", torch.int64, CONTIGUOUS)
    size = columns.token_ids.shape[-1]
    sizes = expect(
        ("cursor", columns.cursor, *one),
        ("session", columns.session, *slot),
        ("created", columns.created, *slot),
        ("successor", columns.successor, *slot),
        ("predecessor", columns.predecessor, *slot),
        ("last_access", columns.last_access, *slot),
        ("access_count", columns.access_count, *slot),
        ("relevance", columns.relevance, "slots", torch.float32, CONTIGUOUS),
        ("token_ids", columns.token_ids, *text),
        ("positions", columns.positions, *text),
        ("slots", reserved.slots, *new),
        ("predecessors", reserved.predecessors, *new),
        ("numbers", reserved.numbers, *new),
        ("sessions", sessions, *new),
        ("pick", pick, *new),
        ("token_ids", token_ids, "B T", torch.int64),
        ("positions", positions, "B T", torch.int64),
        ("relevance", relevance, "B blocks", torch.float32),
        blocks=-(-token_ids.shape[-1] // size),
    )
    if sizes["n"] > sizes["slots"]:
        raise ValueError(
            f"slots: at most {sizes['slots']} blocks fit into the ring, got {sizes['n']}"
        )
    # Everything was checked before anything is written: a ring is never half linked.
    write = ring_link_plain if runs_plain(token_ids, relevance) else ring_link_
    write(*columns, *reserved, sessions, pick, token_ids, positions, relevance)


def ring_link_plain(*given: Any) -> None:
    """The specification of `ring_link`, of the registered operation's arguments, checked before."""
    columns, (slots, predecessors, numbers) = Columns(*given[:10]), given[10:13]
    sessions, pick, token_ids, positions, relevance = given[13:]
    if slots.numel() == 0:
        return
    block = columns.token_ids.shape[1]
    expect_numbers("slots", slots, columns.session.shape[0])
    expect_numbers("pick", pick, token_ids.shape[0] * -(-token_ids.shape[1] // block))
    successor, predecessor = columns.successor, columns.predecessor
    # Cut what stood in the slots out of its chains first: a neighbour that is overwritten itself,
    # or that a new block follows, gets its right links from the lines below.
    after, before = successor[slots], predecessor[slots]
    predecessor[after[after >= 0]] = -1
    successor[before[before >= 0]] = -1
    successor[slots] = -1
    predecessor[slots] = predecessors
    linked = predecessors >= 0
    successor[predecessors[linked]] = slots[linked]
    columns.token_ids[slots] = cut(token_ids, pick, block, 0)
    columns.positions[slots] = cut(positions, pick, block, -1)
    columns.session[slots] = sessions
    columns.created[slots] = numbers
    columns.last_access[slots] = 0
    columns.access_count[slots] = 0
    columns.relevance[slots] = 0.0 if relevance is None else relevance.reshape(-1)[pick].float()
    columns.cursor.copy_(numbers[-1:])


ring_link_ = register(
    "ring_link(Tensor(a!) cursor, Tensor(b!) session, Tensor(c!) created, Tensor(d!) successor, "
    "Tensor(e!) predecessor, Tensor(f!) last_access, Tensor(g!) access_count, "
    "Tensor(h!) relevance, Tensor(i!) token_ids, Tensor(j!) positions, Tensor slots, "
    "Tensor predecessors, Tensor numbers, Tensor sessions, Tensor pick, Tensor new_token_ids, "
    "Tensor new_positions, Tensor? new_relevance) -> ()",
    ring_link_plain,
    "ring_link:ring_link",
    "cmr.write",
)
