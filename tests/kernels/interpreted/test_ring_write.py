"""Ring writes: Triton's kernels, interpreted, against the specification."""

import numpy as np
import pytest
import torch

from cmr.kernels.gpu import ring_link as gpu
from cmr.kernels.ring_link import Columns, Reserved, ring_link, ring_link_plain
from cmr.kernels.ring_write import (
    ring_write_heads,
    ring_write_heads_plain,
    ring_write_index,
    ring_write_index_plain,
)
from tests.kernels.helpers.compare import assert_close
from tests.kernels.helpers.ring import columns, reserve


def written(state: Columns, sessions: list[int], slots: list[int] | None = None) -> Columns:
    """What the specification makes of a ring, and the kernels of a copy: they must agree."""
    rows = torch.tensor(sessions, dtype=torch.int64)
    size = state.token_ids.shape[1]
    tokens = torch.randint(99, (len(sessions), size))
    places = torch.randint(99, (len(sessions), size))
    weights = torch.rand(len(sessions), 1)
    want = Columns(*(column.clone() for column in state))
    have = reserve(state, rows) if slots is None else chosen(state, rows, slots)
    order = torch.arange(len(rows))
    ring_link_plain(*want, *have, rows, order, tokens, places, weights)
    ring_link(state, have, rows, tokens, places, weights, order)
    for name, a, b in zip(want._fields, state, want, strict=True):
        assert torch.equal(a, b), f"{name}: {a.tolist()} instead of {b.tolist()}"
    return state


def chosen(state: Columns, sessions: torch.Tensor, slots: list[int]) -> Reserved:
    """Slots as a policy would choose them, with the predecessors that these leave."""
    last: dict[int, tuple[int, int]] = {}
    for slot, session in enumerate(state.session.tolist()):
        if slot not in slots and session >= 0:
            last[session] = max(last.get(session, (-1, -1)), (int(state.created[slot]), slot))
    before = []
    for slot, session in zip(slots, sessions.tolist(), strict=True):
        before.append(last.get(session, (0, -1))[1])
        last[session] = (10**9, slot)
    numbers = state.cursor + 1 + torch.arange(len(slots))
    return Reserved(torch.tensor(slots), torch.tensor(before), numbers)


@pytest.mark.parametrize("slots", [1, 5, 7])
def test_blocks_of_several_sessions_in_turn(slots: int) -> None:
    rng = np.random.default_rng(slots)
    state = columns(slots, 3)
    for _ in range(6):
        written(state, rng.integers(0, 3, rng.integers(0, slots + 1)).tolist())
    written(state, [0] * slots)
    assert int(state.cursor) > slots


def test_slots_of_any_choice() -> None:
    rng = np.random.default_rng(0)
    state = columns(9, 2)
    written(state, rng.integers(0, 3, 9).tolist())
    for _ in range(8):
        count = int(rng.integers(1, 10))
        slots = rng.permutation(9)[:count].tolist()
        written(state, rng.integers(0, 3, count).tolist(), slots)


def test_more_blocks_than_a_program_looks_at_in_one_step(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "SCAN", 16)
    state = columns(70, 1)
    written(state, [0, 1, 2] * 20)
    written(state, [1] * 9 + [0] + [1] * 20 + [0, 3])


def test_a_part_of_a_text_and_no_relevance() -> None:
    state, want = columns(4, 3), columns(4, 3)
    rows, pick = torch.tensor([5, 6]), torch.tensor([3, 0])
    ids, places = torch.arange(10).view(2, 5), torch.arange(10, 20).view(2, 5)
    found = reserve(state, rows)
    ring_link(state, found, rows, ids.T.contiguous().T, places, None, pick)
    ring_link_plain(*want, *found, rows, pick, ids, places, None)
    assert all(torch.equal(a, b) for a, b in zip(state, want, strict=True))
    assert state.positions[0].tolist() == [18, 19, -1] and state.token_ids[0].tolist() == [8, 9, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "wide", "turned", "size"),
    [(20, 12, 20, 4), (96, 80, 48, 32), (100, 100, 100, 5), (64, 256, 0, 8), (9, 7, 2, 40)],
)
def test_heads(width: int, wide: int, turned: int, size: int, dtype: torch.dtype) -> None:
    tokens = 2 * size + 3
    keys = torch.randn(2, tokens, 2, width).to(dtype).transpose(1, 2)  # a strided view
    values = torch.randn(2, 2, tokens, wide).to(dtype)
    angle = torch.randn(2, tokens, turned)
    turn = (1.3 * angle.cos(), 1.3 * angle.sin()) if turned else (None, None)
    where, pick = torch.tensor([6, 0, 3]), torch.tensor([5, 2, 0])
    store = torch.empty(7, 2, size, width, dtype=dtype)
    value_store = torch.empty(7, 2, size, wide, dtype=torch.float16)
    have, want = (store.clone(), value_store.clone()), (store.clone(), value_store.clone())
    ring_write_heads(*have, where, pick, keys, values, *turn)
    ring_write_heads_plain(*want, where, pick, keys, values, *turn)
    eps = torch.finfo(dtype).eps
    assert_close("keys", have[0], want[0], 1e-6, eps if turned else 0)
    assert_close("values", have[1], want[1], 0, 0)
    assert have[0][[1, 2, 4, 5]].isnan().all() and not have[0][where].isnan().any()


def test_states_are_copied() -> None:
    states = torch.randn(1, 1, 5, 2100).bfloat16()
    store = torch.empty(4, 1, 3, 2100, dtype=torch.bfloat16)
    ring_write_heads(store, None, torch.tensor([2, 1]), torch.tensor([0, 1]), states)
    assert torch.equal(store[2, 0], states[0, 0, :3]) and torch.equal(
        store[1, 0, :2], states[0, 0, 3:]
    )
    assert not store[1, 0, 2].any() and store[[0, 3]].isnan().all()


def test_a_store_of_more_than_2_to_the_31_elements() -> None:
    slots, heads, size, width = 70_000, 8, 32, 128
    memory = np.zeros(slots * heads * size * width, dtype=np.uint16)  # pages come when written
    store = torch.from_numpy(memory).view(torch.bfloat16).view(slots, heads, size, width)
    assert store.numel() > 2**31
    keys = torch.randn(1, heads, size, width).bfloat16()
    where, pick = torch.tensor([slots - 1]), torch.tensor([0])
    ring_write_heads(store, None, where, pick, keys)
    assert torch.equal(store[-1], keys[0])
    index = store.view(slots, heads * size, width)
    ring_write_index(index, None, where, pick, keys.view(1, heads * size, width))
    assert_close("norm", index[-1].float().norm(dim=-1), torch.ones(heads * size), 0.01)


@pytest.mark.parametrize("index_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [1, 60, 577, 4100])
def test_index_of_floats(hidden: int, index_dtype: torch.dtype) -> None:
    states = (1e3 * torch.randn(2, 11, hidden)).to(torch.bfloat16)
    states[0, 0] = 0
    have, want = (torch.empty(6, 8, hidden, dtype=index_dtype) for _ in range(2))
    where, pick = torch.tensor([4, 1, 0]), torch.tensor([0, 3, 1])
    ring_write_index(have, None, where, pick, states)
    ring_write_index_plain(want, None, where, pick, states)
    assert_close("index", have, want, 1e-6, torch.finfo(index_dtype).eps)


@pytest.mark.parametrize("index_dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("hidden", [60, 577])
def test_quantised_index_bit_for_bit(hidden: int, index_dtype: torch.dtype) -> None:
    """Whole numbers whose squares add up exactly, so that the order of the sum does not count."""
    states = torch.randint(-60, 61, (2, 37, hidden)).float()
    states[0, 0] = 0
    states[1, :5] = 0
    states[1, :5, 3] = torch.arange(-2, 3).float()
    small = 2.0 ** -torch.arange(hidden).clamp(max=30)  # down to numbers below the least normal one
    states[0, 1] = 1024 * small * torch.where(torch.arange(hidden) % 2 == 0, 1, -1)
    scales = [torch.full((8, 16), torch.nan) for _ in range(2)]
    have, want = (torch.zeros(8, 16, hidden, dtype=index_dtype) for _ in range(2))
    where, pick = torch.tensor([4, 1, 0, 6, 7]), torch.tensor([0, 3, 1, 2, 5])
    ring_write_index(have, scales[0], where, pick, states)
    ring_write_index_plain(want, scales[1], where, pick, states)
    assert_close("scale", scales[0], scales[1], 0, 0)
    a, b = have.view(torch.uint8), want.view(torch.uint8)
    assert torch.equal(a, b), f"{(a != b).sum()} codes differ"
    assert b.unique().numel() > 50


def test_nothing_to_write() -> None:
    none = torch.empty(0, dtype=torch.int64)
    state = columns(3, 2)
    found = reserve(state, none)
    ring_link(state, found, none, *[torch.empty(0, 0).long()] * 2, None, none)
    store = torch.empty(3, 2, 2, 8)
    ring_write_heads(store, store.clone(), none, none, *[torch.empty(1, 2, 0, 8)] * 2)
    ring_write_index(store[:, 0].contiguous(), None, none, none, torch.empty(1, 0, 8))
    assert store.isnan().all() and int(state.cursor) == 0
