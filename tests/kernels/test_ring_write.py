"""Writes into rows of buffers: exactly the rows named, nothing else, or nothing at all."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels import ring_write as ops
from cmr.kernels.reference.quantise import LARGEST
from cmr.kernels.ring_link import Columns, Reserved, ring_link, ring_link_
from tests.kernels.helpers.compare import assert_close
from tests.kernels.helpers.ring import columns, reserve


class Ledger:
    """A ring in plain Python: what stands in each slot, and every text's blocks in their order."""

    def __init__(self, slots: int) -> None:
        self.blocks: list[tuple[int, int] | None] = [None] * slots  # session and number
        self.written = 0

    def write(self, sessions: list[int]) -> list[int]:
        slots = [(self.written + i) % len(self.blocks) for i in range(len(sessions))]
        for slot, session in zip(slots, sessions, strict=True):
            self.written += 1
            self.blocks[slot] = (session, self.written)
        return slots

    def chain(self, session: int) -> list[int]:
        """Slots of the session's blocks, oldest first."""
        own = [(block[1], slot) for slot, block in enumerate(self.blocks) if block]
        return [slot for number, slot in sorted(own) if self.blocks[slot][0] == session]


@settings(deadline=None, max_examples=60)
@given(
    slots=st.sampled_from([1, 2, 5, 8]),
    batches=st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_chains_of_sessions_stay_whole_while_the_ring_goes_round(slots, batches, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    state, ledger = columns(slots, 3), Ledger(slots)
    for batch in batches:
        sessions = torch.tensor(batch[:slots], dtype=torch.int64)
        ids = torch.randint(99, (len(sessions), 3), generator=rng)
        places = torch.randint(99, (len(sessions), 3), generator=rng)
        weight = torch.rand(len(sessions), 1, generator=rng)
        found = reserve(state, sessions)
        ring_link(state, found, sessions, ids, places, weight, torch.arange(len(sessions)))
        assert found.slots.tolist() == ledger.write(sessions.tolist())
        assert torch.equal(state.token_ids[found.slots], ids)
        assert torch.equal(state.positions[found.slots], places)
        assert torch.equal(state.relevance[found.slots], weight[:, 0])
        state.access_count[found.slots] += 7
        assert int(state.cursor) == ledger.written
        for slot, block in enumerate(ledger.blocks):
            session, number = block or (-1, 0)
            assert (int(state.session[slot]), int(state.created[slot])) == (session, number)
        for session in range(4):
            chain = ledger.chain(session)
            assert state.successor[chain].tolist() == [*chain[1:], -1][: len(chain)]
            assert state.predecessor[chain].tolist() == [-1, *chain[:-1]][: len(chain)]
    rewritten = reserve(state, torch.zeros(slots, dtype=torch.int64))
    assert rewritten.predecessors.tolist() == [-1, *rewritten.slots[:-1].tolist()]


def test_any_slots_may_be_overwritten() -> None:
    """A policy takes blocks out of the middle of chains: what is around them is cut there."""
    state = columns(6, 1)
    rows = torch.zeros(6, dtype=torch.int64)
    text = torch.arange(6).view(6, 1)
    ring_link(state, reserve(state, rows), rows, text, text, None, rows.new_tensor(range(6)))
    assert state.successor.tolist() == [1, 2, 3, 4, 5, -1]
    new = Reserved(torch.tensor([2, 5]), torch.tensor([-1, 4]), torch.tensor([7, 8]))
    ring_link(state, new, torch.tensor([1, 0]), text[:2], text[:2], None, torch.arange(2))
    assert state.successor.tolist() == [1, -1, -1, 4, 5, -1]
    assert state.predecessor.tolist() == [-1, 0, -1, -1, 3, 4]
    assert state.created.tolist() == [1, 2, 7, 4, 5, 8] and int(state.cursor) == 8


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 2),
    heads=st.integers(1, 3),
    tokens=st.sampled_from([1, 8, 13]),
    size=st.sampled_from([1, 4, 5]),
    width=st.sampled_from([6, 100]),
    turned=st.sampled_from([0, 2, 6]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_heads_are_un_rotated_into_slots(
    rows, heads, tokens, size, width, turned, dtype, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    plain = torch.randn(rows, heads, tokens, width, generator=rng)
    values = torch.randn(rows, tokens, heads, 7, generator=rng).to(dtype).transpose(1, 2)
    angle = torch.randn(rows, tokens, turned // 2, generator=rng).repeat(1, 1, 2)
    cos, sin = 1.2 * angle.cos(), 1.2 * angle.sin()  # as YaRN scales them
    first, second = plain[..., :turned].chunk(2, -1)
    turn = plain[..., :turned] * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
    keys = torch.cat((turn, plain[..., turned:]), -1).to(dtype)
    blocks = -(-tokens // size)
    pick = torch.randperm(rows * blocks, generator=rng)[: max(1, rows * blocks - 1)]
    where = torch.randperm(rows * blocks + 2, generator=rng)[: len(pick)]
    store = torch.empty(rows * blocks + 2, heads, size, width, dtype=dtype)
    value_store = torch.empty(rows * blocks + 2, heads, size, 7, dtype=dtype)
    given_turn = (cos, sin) if turned else (None, None)
    ops.ring_write_heads(store, value_store, where, pick, keys, values, *given_turn)
    room = 4 * torch.finfo(dtype).eps
    for slot, source in zip(where.tolist(), pick.tolist(), strict=True):
        row, block = divmod(source, blocks)
        real = range(block * size, min(tokens, (block + 1) * size))
        have = store[slot, :, : len(real)], value_store[slot, :, : len(real)]
        assert_close("keys", have[0], plain[row][:, real], room, room)
        assert_close("values", have[1], values[row][:, real], 0, 0)
        assert not store[slot, :, len(real) :].any() and not value_store[slot, :, len(real) :].any()
    others = sorted(set(range(len(store))) - set(where.tolist()))
    assert store[others].isnan().all() and value_store[others].isnan().all()


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.sampled_from([1, 8, 13]),
    hidden=st.sampled_from([1, 60, 577]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_index_of_blocks(tokens, hidden, dtype, scale, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(2, tokens, hidden, generator=rng)
    states[1, 0] = 0
    exact = F.normalize(states.double(), dim=-1)
    blocks = -(-tokens // 4)
    where, pick = torch.tensor([3, 0]), torch.tensor([blocks, blocks - 1])
    index = torch.zeros(5, 4, hidden, dtype=dtype)
    scales = torch.empty(5, 4) if dtype in LARGEST else None
    ops.ring_write_index(index, scales, where, pick, states)
    have = index.float() if scales is None else index.float() * scales[..., None]
    if scales is None:
        room = torch.finfo(dtype).eps
    else:
        room = 1 / 127 if dtype == torch.int8 else 1 / 14
        assert scales[[1, 2, 4]].isnan().all()
    last = exact[0, (blocks - 1) * 4 :]
    assert_close("last of row 0", have[0, : len(last)], last, room, room)
    assert not have[0, len(last) :].any() and not have[3, 0].any()
    first = exact[1, :4]
    assert_close("first of row 1", have[3, : len(first)], first, room, room)


def calls():
    """Each operation, small, by its name."""
    state, sessions = columns(5, 4), torch.tensor([0, 1, 0])
    found = reserve(state, sessions)
    where, pick = torch.tensor([4, 1]), torch.tensor([0, 3])
    keys, turn = torch.randn(2, 3, 6, 8), torch.rand(2, 2, 6, 4).unbind()
    store = torch.zeros(5, 3, 4, 8)
    text, order = torch.arange(12).view(3, 4), torch.arange(3)
    return {
        "link": (ring_link_, (*state, *found, sessions, order, text, text, torch.rand(3, 1))),
        "link some": (
            ring_link_,
            (*state, *found, sessions, torch.tensor([2, 0, 1]), text, text, None),
        ),
        "heads": (
            ops.ring_write_heads_,
            (store, torch.zeros(5, 3, 4, 8), where, pick, keys, keys + 1, *turn),
        ),
        "states": (
            ops.ring_write_heads_,
            (store, None, where, pick, keys, None, None, None),
        ),
        "index": (
            ops.ring_write_index_,
            (torch.zeros(5, 4, 8), None, where, pick, torch.randn(2, 6, 8)),
        ),
        "int8": (
            ops.ring_write_index_,
            (
                torch.zeros(5, 4, 8, dtype=torch.int8),
                torch.zeros(5, 4),
                where,
                pick,
                torch.randn(2, 6, 8),
            ),
        ),
    }


@pytest.mark.parametrize("name", sorted(calls()))
def test_the_operations_keep_what_they_promise_pytorch(name: str) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs of what is not written
    torch.library.opcheck(*calls()[name])


def test_a_whole_write_compiles_to_one_graph() -> None:
    def write(state, found, stores, index, scale, sessions, text, keys, states, pick, turn):
        ops.ring_write_heads(*stores, found.slots, pick, keys, keys, *turn)
        ops.ring_write_index(index, scale, found.slots, pick, states)
        ring_link(state, found, sessions, text, text, None, pick)

    def arguments():
        torch.manual_seed(0)
        stores = torch.zeros(5, 2, 4, 8), torch.zeros(5, 2, 4, 8)
        index = torch.zeros(5, 4, 12, dtype=torch.int8), torch.zeros(5, 4)
        text = torch.arange(12).view(2, 6)
        batch = torch.randn(2, 2, 6, 8), torch.randn(2, 6, 12), torch.tensor([0, 1, 3])
        turn = torch.rand(2, 2, 6, 8).unbind()
        return columns(5, 4), stores, *index, torch.tensor([3, 3, 1]), text, *batch, turn

    eager, traced = arguments(), arguments()
    torch._dynamo.reset()
    compiled = torch.compile(write, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for state, *rest in (eager, traced):
            act = write if state is eager[0] else compiled
            act(state, reserve(state, rest[3]), *rest)
    for name, have, want in zip(Columns._fields, traced[0], eager[0], strict=True):
        assert_close(name, have, want, 0, 0)
    for have, want in zip([*traced[1], *traced[2:4]], [*eager[1], *eager[2:4]], strict=True):
        assert_close("stores", have, want, 0, 0)
    assert int(traced[0].cursor) == 6 and traced[1][0].any()


def test_a_bad_call_is_named_and_writes_nothing() -> None:
    state, one = columns(4, 2), torch.tensor([0])
    store, keys = torch.zeros(4, 2, 2, 8), torch.ones(1, 2, 3, 8)
    index, states = torch.zeros(4, 2, 8), torch.ones(1, 3, 8)
    found = Reserved(one, one - 1, one + 1)
    text, turn = torch.ones(1, 2).long(), torch.ones(1, 3, 9)
    five = Reserved(*[torch.zeros(5).long()] * 3)
    of_five = {"sessions": five.slots, "pick": five.slots}

    def linked(**changed):
        good = {"columns": state, "reserved": found, "sessions": one, "token_ids": text}
        ring_link(**{**good, "positions": text, "relevance": None, "pick": one, **changed})

    cases = [
        (ValueError, "at most 4 blocks fit", lambda: linked(reserved=five, **of_five)),
        (TypeError, "sessions: dtype torch.int64", lambda: linked(sessions=one.int())),
        (
            TypeError,
            "relevance: dtype torch.float32",
            lambda: linked(columns=state._replace(relevance=state.created)),
        ),
        (
            ValueError,
            r"relevance: shape \[B=1, blocks=1\]",
            lambda: linked(relevance=torch.ones(1, 2)),
        ),
        (
            IndexError,
            "slots: numbers in 0..3 expected, got 4..4",
            lambda: linked(reserved=found._replace(slots=one + 4)),
        ),
        (
            IndexError,
            "pick: numbers in 0..0 expected, got 1..1",
            lambda: linked(pick=one + 1),
        ),
        (
            ValueError,
            "both or none",
            lambda: ops.ring_write_heads(store, store.clone(), one, one, keys),
        ),
        (
            ValueError,
            "R even and at most D=8 expected, got 9",
            lambda: ops.ring_write_heads(store, None, one, one, keys, None, turn, turn),
        ),
        (
            IndexError,
            "pick: numbers in 0..1 expected, got 2..2",
            lambda: ops.ring_write_heads(store, None, one, one + 2, keys),
        ),
        (
            IndexError,
            "slots: numbers in 0..3 expected, got -1..-1",
            lambda: ops.ring_write_index(index, None, one - 1, one, states),
        ),
        (
            ValueError,
            "scale: a tensor expected",
            lambda: ops.ring_write_index(index.to(torch.int8), None, one, one, states),
        ),
        (
            ValueError,
            "scale: None expected",
            lambda: ops.ring_write_index(index, index[..., 0], one, one, states),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert not store.any() and not index.any()
    for name, have, want in zip(state._fields, state, columns(4, 2), strict=True):
        assert torch.equal(have, want), name


def test_nothing_to_write() -> None:
    none = torch.empty(0, dtype=torch.int64)
    state = columns(3, 2)
    found = reserve(state, none)
    ring_link(state, found, none, *[torch.empty(0, 0).long()] * 2, None, none)
    store = torch.empty(3, 2, 2, 8)
    ops.ring_write_heads(store, store.clone(), none, none, *[torch.empty(1, 2, 0, 8)] * 2)
    ops.ring_write_index(store[:, 0].contiguous(), None, none, none, torch.empty(1, 0, 8))
    assert store.isnan().all() and int(state.cursor) == 0
