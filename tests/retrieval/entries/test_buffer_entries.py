"""A layer of a buffer as a store that is searched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Ask, columns_of, visible
from cmr.retrieval.entries.buffer_entries import BufferEntries, LayerEntries
from tests.kernels.helpers.compare import assert_close

HIDDEN, LAYER = 8, 3


def filled(count: int = 12, dtype: torch.dtype = torch.float32, **limits: object):
    """Entries of sequences 0, 1, 2, 0, 1, 2, …, their states, and the layer as it is seen."""
    buffer = LayeredMemoryBuffer(16, 100, **limits)
    states = 3 * torch.randn(count, HIDDEN, dtype=dtype)
    for i, state in enumerate(states):
        buffer.store_state(state, LAYER, i % 3, 10 + i, i / count, token_ids=(100 + i,))
    view = BufferEntries(buffer).layer(LAYER)
    assert view is not None
    return buffer, states, view


def test_its_columns_are_those_of_the_entries() -> None:
    buffer, _, view = filled()
    for entry in buffer.retrieve_by_layer(LAYER):
        at = entry.slot
        assert view.session[at] == entry.sequence_id
        assert view.positions[at].tolist() == [entry.position_idx]
        assert tuple(view.token_ids[at].tolist()) == entry.token_ids
        assert view.created[at] == entry.timestamp
        assert view.relevance[at] == pytest.approx(entry.relevance_score)
    assert view.high_water == 12 and view.block_size == 1
    assert view.cursor.tolist() == [view.clock] == [12]
    assert (view.successor == -1).all() and (view.predecessor == -1).all()
    columns = columns_of(view, view.high_water)
    assert all(len(column) == 12 for column in columns[:-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_maxima_are_cosines(dtype: torch.dtype) -> None:
    buffer, states, view = filled(dtype=dtype)
    buffer.store_state(torch.zeros(HIDDEN, dtype=dtype), LAYER, 0)
    view = BufferEntries(buffer).layer(LAYER)
    query = F.normalize(torch.randn(2, 5, HIDDEN), dim=-1)
    sessions = torch.tensor([0, 2])
    have = view.maxima(query, sessions, 0, 13)
    want = torch.zeros(2, 5, 13)
    want[..., :12] = F.cosine_similarity(query[:, :, None], states.float(), dim=-1)
    owner = torch.tensor([i % 3 for i in range(12)] + [0])
    want.masked_fill_((owner != sessions[:, None])[:, None], -torch.inf)
    mine = want > -torch.inf
    assert torch.equal(have > -torch.inf, mine)
    assert_close("maxima", have[mine], want[mine], 1e-5, 1e-5)
    slots = torch.tensor([[3, -1, 4], [2, 11, 0]])
    some = view.maxima_at(query, sessions, slots)
    want = have.gather(2, slots.clamp(min=0)[:, None].expand(-1, 5, -1))
    want[0, :, 1] = -torch.inf
    assert torch.equal(some > -torch.inf, want > -torch.inf)
    mine = want > -torch.inf
    assert_close("maxima_at", some[mine], want[mine], 1e-6, 1e-6)
    unit = F.normalize(states[[4, 0]].float(), dim=-1)[:, None]
    assert_close("states", view.states(torch.tensor([4, 0])), unit, 1e-6, 1e-6)
    assert_close("a part", view.maxima(query, sessions, 3, 4)[0], have[0, :, 3:4], 1e-6, 1e-6)


def test_states_in_8_bits_are_what_is_given_back_of_them() -> None:
    buffer, _, view = filled(recent=2, working=2, reduce_long_term=True)
    entries = buffer.retrieve_by_layer(LAYER)
    assert {entry.tier for entry in entries} == {"recent", "working", "long_term"}
    for entry in entries:
        unit = F.normalize(entry.hidden_state.float(), dim=-1)
        assert_close("state", view.index[entry.slot, 0], unit, 1e-6, 1e-6)


def test_a_layer_that_holds_nothing_is_none() -> None:
    buffer, _, _ = filled()
    views = BufferEntries(buffer)
    assert views.layer(LAYER + 1) is None
    buffer.clear_all()
    assert views.layer(LAYER) is None


def test_what_is_cleared_is_not_to_be_seen() -> None:
    buffer, _, _ = filled()
    views = BufferEntries(buffer)
    before = views.layer(LAYER)
    buffer.clear_sequence(1)
    view = views.layer(LAYER)
    gone = before.session == 1
    assert (view.session[gone] == NO_SESSION).all() and (view.index[gone] == 0).all()
    query = F.normalize(torch.randn(1, 2, HIDDEN), dim=-1)
    assert (view.maxima(query, torch.tensor([1]), 0, 12) == -torch.inf).all()
    assert not visible(Ask(query, None, torch.tensor([1])), view).any()


def test_each_change_has_a_version_of_its_own() -> None:
    buffer, states, _ = filled()
    store, other = buffer.layer(LAYER), LayeredMemoryBuffer()
    slots, versions = store.find()[:2], [buffer.version]
    store.sink(slots, 1)
    versions.append(buffer.version)
    store.drop(slots)
    versions.append(buffer.version)
    store.write(states[:2], created=torch.tensor([20, 21]))
    versions.append(buffer.version)
    other.store_state(states[0], LAYER, 1)
    versions.append(other.version)
    buffer.retrieve_by_layer(LAYER)
    buffer.clear_sequence(7)
    assert len(set(versions)) == 5 and buffer.version == versions[-2]


def test_another_layer_in_its_place_is_noticed(tmp_path) -> None:
    buffer, _, _ = filled()
    views = BufferEntries(buffer)
    views.layer(LAYER)
    buffer.save_state(tmp_path / "saved")
    buffer.clear_sequence(0)
    views.layer(LAYER)
    buffer.load_state(tmp_path / "saved")
    assert (views.layer(LAYER).session == 0).sum() == 4


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.tuples(st.just("store"), st.integers(0, 2)),
                  st.tuples(st.just("clear"), st.integers(0, 2)),
                  st.tuples(st.just("look"), st.just(0))),
        max_size=25,
    ),
)  # fmt: skip
def test_what_changed_is_in_the_ranges(steps: list[tuple[str, int]]) -> None:
    """Whoever keeps a copy and takes over only the ranges has the same as the layer."""
    torch.manual_seed(0)
    buffer = LayeredMemoryBuffer(5, 100, recent=2, working=1, reduce_long_term=True)
    views, kept, seen = BufferEntries(buffer), torch.zeros(5, HIDDEN), 0
    for what, sequence in [*steps, ("look", 0)]:
        if what == "store":
            buffer.store_state(torch.randn(HIDDEN), LAYER, sequence)
        elif what == "clear":
            buffer.clear_sequence(sequence)
        elif view := views.layer(LAYER):
            for first, last in view.ledger.changed_since(seen):
                kept[first:last] = view.index[first:last, 0]
            seen = view.ledger.changes
            held = (view.created > 0).nonzero()[:, 0]
            assert torch.equal(kept[held], view.index[held, 0])
            assert torch.equal(view.ledger.owner[: view.high_water], view.session)
            assert torch.equal(view.ledger.number[: view.high_water], view.created)


def test_nothing_is_kept_between_two_looks() -> None:
    """States that the buffer zeroes must not live on beside it."""
    views = BufferEntries(filled()[0])
    assert isinstance(views.layer(LAYER), LayerEntries)
    ledger = views._ledgers[LAYER]
    held = [part for part in vars(ledger).values() if isinstance(part, torch.Tensor)]
    assert held and not any(part.is_floating_point() for part in held)
    changes = ledger.changes
    views.layer(LAYER)
    assert ledger.changes == changes
