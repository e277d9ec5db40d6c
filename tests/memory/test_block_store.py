"""The ring buffer against a plain Python model of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.search.recalled import Sure, recalled
from cmr.memory import BlockBatch, LayerShape, LayerSource, Lower, Policy
from tests.kernels.helpers.compare import assert_close
from tests.memory.kept import KeptStore

BLOCK, HIDDEN = 3, 5
SHAPES = {
    2: LayerShape(2, 4, 4, torch.float32, torch.device("cpu")),
    5: LayerShape(1, HIDDEN, 0, torch.float32, torch.device("cpu")),
}


def ring(slots: int, policy: Policy | None = None, **lower: int) -> KeptStore:
    return KeptStore(
        slots=slots,
        lower=Lower(**lower),
        policy=policy,
        block_size=BLOCK,
        hidden=HIDDEN,
        layers=SHAPES,
        index_dtype=torch.float32,
        device=torch.device("cpu"),
    )


def tensors(store: KeptStore) -> list[torch.Tensor]:
    shared = [column for column in store.columns if column is not store.cursor]
    return [*store.keys.values(), *store.values.values(), store.index, *shared]


def batch(sessions: list[int], first: int = 1) -> BlockBatch:
    """Blocks that are told apart by their first token id: `first`, `first` + 1, ..."""
    n = len(sessions)
    mark = torch.arange(first, first + n, dtype=torch.float32)
    return BlockBatch(
        sessions=sessions,
        token_ids=mark.long()[:, None] * 10 + torch.arange(BLOCK),
        positions=mark.long()[:, None] * BLOCK + torch.arange(BLOCK),
        index=mark[:, None, None] + torch.rand(n, BLOCK, HIDDEN),
        layers={
            2: LayerSource(
                mark[:, None, None, None].expand(n, 2, BLOCK, 4).clone(),
                -mark[:, None, None, None].expand(n, 2, BLOCK, 4),
            ),
            5: LayerSource(mark[:, None, None, None].expand(n, 1, BLOCK, HIDDEN).clone()),
        },
        relevance=mark[:, None] / 100,
    )


def test_a_block_comes_back_as_it_was_written() -> None:
    store, blocks = ring(8), batch([4, 4, 9])
    slots = store.write(blocks)
    keys, values = store.gather(2, slots[None])
    assert torch.equal(keys, blocks.layers[2].keys.transpose(0, 1).reshape(1, 2, 3 * BLOCK, 4))
    assert torch.equal(values, -keys)
    states, nothing = store.gather(5, slots[None])
    assert nothing is None
    assert torch.equal(states, blocks.layers[5].keys.reshape(1, 1, 3 * BLOCK, HIDDEN))
    assert torch.equal(store.token_ids[slots], blocks.token_ids)
    assert torch.equal(store.positions[slots], blocks.positions)
    assert store.session[slots].tolist() == [4, 4, 9]
    assert torch.equal(store.relevance[slots], blocks.relevance[:, 0])
    assert_close("norms", store.index[slots].norm(dim=-1), torch.ones(3, BLOCK))
    unit = torch.nn.functional.normalize(blocks.index, dim=-1)
    assert_close("index", store.index[slots], unit)


def test_the_oldest_block_gives_way() -> None:
    store = ring(4)
    store.write(batch([0, 0, 0]))
    slots = store.write(batch([0, 0], first=4))
    assert sorted(slots.tolist()) == [0, 3]
    assert sorted(store.token_ids[:, 0].tolist()) == [20, 30, 40, 50]
    assert store.token_ids[slots, 0].tolist() == [40, 50]
    assert (store.written, store.high_water, store.blocks_of(0)) == (5, 4, 4)
    assert store.stored_tokens() == 4 * BLOCK


def test_nothing_is_written_of_a_batch_that_does_not_fit() -> None:
    store = ring(2)
    store.write(batch([0]))
    with pytest.raises(ValueError, match="at most 2 blocks fit into the buffer, got 3"):
        store.write(batch([1, 1, 1]))
    wrong = batch([1])
    wrong.layers = {2: wrong.layers[2]}
    with pytest.raises(ValueError, match=r"layers \[2, 5\] expected, got \[2\]"):
        store.write(wrong)
    narrow = batch([1])
    narrow.layers = {**narrow.layers, 5: LayerSource(torch.zeros(1, 1, BLOCK, HIDDEN - 1))}
    with pytest.raises(ValueError, match=r"layer 5: keys of shape .*5\] expected, got .*4\]"):
        store.write(narrow)
    narrow.layers = {**narrow.layers, 5: LayerSource(*[torch.zeros(1, 1, BLOCK, HIDDEN)] * 2)}
    with pytest.raises(ValueError, match="layer 5 stores no values, got some"):
        store.write(narrow)
    assert (store.written, store.stored_tokens(), store.has([1])) == (1, BLOCK, False)
    assert (store.keys[2][0] == 1).all()
    with pytest.raises(ValueError, match="at least 1 slot, got 0"):
        ring(0)


def test_an_empty_batch_writes_nothing() -> None:
    store = ring(2)
    assert store.write(batch([])).shape == (0,)
    assert (store.written, store.stored_tokens()) == (0, 0)


def test_clear_zeroes_every_slot_of_the_session_only() -> None:
    store = ring(6)
    slots = store.write(batch([1, 2, 1, 2, 1]))
    kept = {id(t): t[slots[1::2]].clone() for t in tensors(store)}
    assert store.clear(1) == 3
    mine = slots[0::2]
    nowhere = [store.positions, store.session, store.successor, store.predecessor]
    for tensor in tensors(store):
        assert torch.equal(tensor[slots[1::2]], kept[id(tensor)])
        empty = -1 if any(tensor is column for column in nowhere) else 0
        assert (tensor[mine] == empty).all()
    assert not store.has([1]) and store.has([2])
    assert store.clear(1) == 0
    assert store.clear() == 2
    assert store.stored_tokens() == 0 and not store.has([2])
    written = [tensor[:5] for tensor in tensors(store)]
    assert all((t == 0).all() or (t == -1).all() for t in written)


def recall(store: KeptStore, table: list[list[int]]) -> None:
    sure = Sure(torch.ones(len(table)), 0.0, 1.0, 1.0)
    held = store.positions, store.token_ids
    recalled(torch.tensor(table), None, *held, None, store.used, sure)


def test_recalls_are_counted_where_something_was_read() -> None:
    store = ring(4)
    store.write(batch([0, 0, 0, 0]))
    recall(store, [[0, 2, -1], [2, -1, -1]])
    assert store.access_count.tolist() == [1, 0, 2, 0]
    assert store.last_access.tolist() == [4, 0, 4, 0]
    store.write(batch([0], first=5))
    recall(store, [[3, -1, -1]])
    assert store.access_count.tolist() == [0, 0, 2, 1]
    assert store.last_access.tolist() == [0, 0, 4, 5]


writes = st.lists(st.integers(0, 3), min_size=1, max_size=5)
clears = st.sampled_from([("clear", None), ("clear", 0), ("clear", 1), ("clear", 2)])


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 7),
    working=st.integers(0, 4),
    long_term=st.integers(0, 4),
    actions=st.lists(st.one_of(writes, writes, writes, clears)),
)
def test_any_history_leaves_what_was_written(
    slots: int, working: int, long_term: int, actions: list
) -> None:
    """Whatever slot a block has come to, in whichever tier."""
    store, mark = ring(slots, working=working, long_term=long_term), 1
    total, known = slots + working + long_term, {}
    for action in actions:
        if isinstance(action, tuple):
            store.clear(action[1])
            known = {n: b for n, b in known.items() if action[1] not in (None, b[0])}
        else:
            sessions = action[:total]
            store.write(batch(sessions, mark))
            first = store.clock - len(sessions) + 1
            known |= {first + i: (s, mark + i) for i, s in enumerate(sessions)}
            mark += len(sessions)
        held = {int(store.created[slot]): slot for slot in store.ledger.slots_of(None).tolist()}
        assert held.keys() <= known.keys()
        if len(known) <= total and len({s for s, _ in known.values()}) <= 1:
            assert held.keys() == known.keys()
        known = {number: known[number] for number in held}
        for number, slot in held.items():
            check_block(store, slot, number, *known[number])
        check_chains(store, held)
        empty = store.session < 0
        assert (store.created[empty] == 0).all() and (store.token_ids[empty] == 0).all()
        owners = store.session.tolist()
        for session in range(4):
            assert store.has([session]) == (session in owners)
            assert store.blocks_of(session) == owners.count(session)
            assert store.stored_tokens(session) == owners.count(session) * BLOCK


def check_block(store: KeptStore, slot: int, number: int, session: int, mark: int) -> None:
    assert store.session[slot] == session == store.ledger.owner[slot]
    assert store.created[slot] == number == store.ledger.number[slot]
    assert store.token_ids[slot].tolist() == [mark * 10 + i for i in range(BLOCK)]
    tier = store.ledger.tier_of(slot)
    at = slot - store.ledger.tiers[tier].first
    parts = store.parts[tier]
    if "codes" in parts:
        states = parts["codes"][at].float() * parts["scale"][at][:, None]
        assert "keys.2" not in parts
    else:
        states = parts["index"][at]
        assert (parts["keys.2"][at] == mark).all() and (parts["values.2"][at] == -mark).all()
        assert (parts["keys.5"][at] == mark).all()
    assert_close("norms", states.norm(dim=-1), torch.ones(BLOCK), 0.01, 0.01)


def check_chains(store: KeptStore, held: dict[int, int]) -> None:
    """A block leads to the next one of its session, both ways, unless one was lost between."""
    for number, slot in held.items():
        after = int(store.successor[slot])
        if after >= 0:
            assert store.predecessor[after] == slot
            assert store.session[after] == store.session[slot]
            between = [n for n in held if number < n < store.created[after]]
            assert all(store.session[held[n]] != store.session[slot] for n in between)
        before = int(store.predecessor[slot])
        assert before < 0 or store.successor[before] == slot


def test_a_number_never_comes_twice() -> None:
    """Who still knows a block by its number must not find another one in its slot."""
    store = ring(4)
    seen: set[int] = set()
    for _ in range(3):
        slots = store.write(batch([0, 1, 0]))
        numbers = store.created[slots].tolist()
        assert slots.tolist()[0] == 0 and not seen & set(numbers)
        seen |= set(numbers)
        store.clear()
        assert (store.created == 0).all() and store.written == store.high_water == 0


@given(writes=st.lists(st.integers(1, 5), min_size=1, max_size=8), data=st.data())
def test_changed_since_names_every_slot_that_was_written(writes, data) -> None:
    store = ring(5, working=3)
    at = data.draw(st.integers(0, len(writes) - 1))
    for count in writes[:at]:
        store.write(batch([0] * count))
    mark, before = store.ledger.changes, store.created.clone()
    assert store.ledger.changed_since(mark) == []
    for count in writes[at:]:
        store.write(batch([0] * count))
    ranges = store.ledger.changed_since(mark)
    named = {slot for first, last in ranges for slot in range(first, last)}
    assert {int(i) for i in (store.created != before).nonzero()} <= named
    assert named <= set(range(store.high_water))
    assert all(first < last for first, last in ranges)


def test_who_listens_is_told_before_a_block_leaves_its_slot() -> None:
    """By an eviction, a move, a swap, a removal, clearing: every slot that is about to change."""
    store = ring(3, working=3)
    store.write(batch([0, 0, 0]))
    held: dict[int, int] = {}

    def check(slots: torch.Tensor) -> None:
        for slot in slots.tolist():
            tier = store.ledger.tier_of(slot)
            first = store.ledger.tiers[tier].first
            keys = store.parts[tier]["keys.2"][slot - first]
            assert keys.unique().tolist() == [held.pop(slot)], "what it holds is there still"

    def expect(*slots: int) -> None:
        held.update({slot: int(store.ledger.number[slot]) for slot in slots})

    store.on_change = check
    expect(0)
    store.write(batch([0], first=4))  # the first block sinks
    assert not held
    (low,) = store.ledger.held(1).tolist()
    expect(1, low)
    store.swap(1, low)
    assert not held
    expect(2)
    store.move(torch.tensor([2]), store.take(1, 1))
    assert not held
    expect(0)
    store.empty(torch.tensor([0]))
    assert not held
    expect(*store.ledger.slots_of(None).tolist())
    assert len(held) == 3
    store.clear()
    assert not held
