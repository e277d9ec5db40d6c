"""The layered buffer against a plain Python model of it, and its promises one by one."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import EVICTION_STRATEGIES
from cmr.errors import ConfigError, CorruptMemoryError, MemoryNotFoundError, ModelMismatchError
from cmr.memory import MemoryEntry
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.store import Saved, save
from tests.memory.test_eviction import Block
from tests.memory.test_eviction import model as victims

HIDDEN = 8


def buffer(most: int = 8, total: int = 100, **settings_: Any) -> LayeredMemoryBuffer:
    return LayeredMemoryBuffer(most, total, **settings_)


def state(number: int, hidden: int = HIDDEN) -> torch.Tensor:
    """A state of its own for each number."""
    return torch.randn(hidden, generator=torch.Generator().manual_seed(number))


@dataclasses.dataclass
class Kept:
    """An entry of the model."""

    layer: int
    sequence: int
    position: int
    relevance: float
    created: int
    state: torch.Tensor
    count: int = 0
    last: int = 0
    tier: int = 0


class Model:
    """What the documentation says, one entry at a time and in plain lists."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits, self.kept, self.clock = limits, [], 0
        self.evicted = self.cleared = 0

    def add(self, layer: int, sequence: int, position: int, relevance: float) -> None:
        of = self.limits
        slots = min(of["most"], of["total"])
        if len(mine := [e for e in self.kept if e.layer == layer]) == slots:
            self.evict(mine, self.stays(slots), sequence)
        if len(self.kept) == of["total"]:
            self.evict(self.in_order(self.kept), self.stays(of["total"]), sequence)
        if len(tier := self.tier(layer, 0)) == of["recent"]:
            self.sink(tier, self.stays(of["recent"]))
            if len(tier := self.tier(layer, 1)) > of["working"]:
                self.sink(tier, int(of["share"] * of["working"]))
        self.clock += 1
        self.kept.append(Kept(layer, sequence, position, relevance, self.clock, state(self.clock)))

    def stays(self, size: int) -> int:
        return min(int(self.limits["share"] * size), size - 1)

    def tier(self, layer: int, tier: int) -> list[Kept]:
        return [e for e in self.kept if e.layer == layer and e.tier == tier]

    def lowest(self, entries: list[Kept], need: int, capacity: int, writes: dict[int, int]) -> Any:
        blocks = [Block(e.sequence, e.created, e.last, e.count, e.relevance) for e in entries]
        if 0 in writes and len(writes) == 1 and writes[0] == len(entries):
            blocks = [dataclasses.replace(block, owner=0) for block in blocks]
        of = self.limits
        found = victims(blocks, need, of["strategy"], of["threshold"], capacity, writes)
        assert len(found) == need
        return [entries[i] for i in found]

    def evict(self, entries: list[Kept], keep: int, sequence: int) -> None:
        gone = self.lowest(entries, len(entries) - keep, keep + 1, {sequence: 1})
        self.kept = [e for e in self.kept if e not in gone]
        self.evicted += len(gone)

    def sink(self, entries: list[Kept], keep: int) -> None:
        for entry in self.lowest(entries, len(entries) - keep, len(entries), {0: len(entries)}):
            entry.tier += 1

    def in_order(self, entries: list[Kept]) -> list[Kept]:
        return sorted(entries, key=lambda e: e.created)

    def find(self, layer: int | None = None, sequence: int | None = None) -> list[Kept]:
        return [
            e
            for e in self.in_order(self.kept)
            if layer in (None, e.layer) and sequence in (None, e.sequence)
        ]

    def use(self, entries: list[Kept]) -> list[Kept]:
        for entry in entries:
            entry.count += 1
            entry.last = self.clock
        return entries

    def clear(self, sequence: int | None) -> int:
        before = len(self.kept)
        self.kept = [e for e in self.kept if sequence not in (None, e.sequence)]
        self.cleared += before - len(self.kept)
        return before - len(self.kept)


Kept.__eq__ = object.__eq__  # type: ignore[method-assign]  # one entry is no other one


limits = st.fixed_dictionaries(
    {
        "most": st.integers(1, 7),
        "total": st.integers(1, 10),
        "recent": st.integers(1, 4),
        "working": st.integers(0, 3),
        "reduce": st.booleans(),
        "strategy": st.sampled_from(EVICTION_STRATEGIES),
        "threshold": st.sampled_from([None, 0.5]),
        "share": st.sampled_from([0.01, 0.5, 0.8, 1.0]),
    }
)
layer_or_none, sequence_or_none = (st.sampled_from([None, *range(n)]) for n in (2, 3))
numbers = st.integers(1, 4)
operations = st.lists(
    st.one_of(
        *[
            st.tuples(
                st.just("store"),
                st.integers(0, 1),
                st.integers(0, 2),
                st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4),
            )
        ]
        * 3,
        st.tuples(st.just("recent"), numbers, layer_or_none, sequence_or_none),
        st.tuples(st.just("relevant"), numbers, st.integers(0, 1), sequence_or_none),
        st.tuples(st.just("top"), numbers, layer_or_none, sequence_or_none),
        st.tuples(st.just("layer"), st.integers(0, 1)),
        st.tuples(st.just("sequence"), st.integers(0, 2)),
        st.tuples(st.just("clear"), sequence_or_none),
        st.tuples(st.just("reload")),
    ),
    max_size=25,
)


def operate(store: LayeredMemoryBuffer, plain: Model, operation: Any) -> None:
    name, *arguments = operation
    if name == "store":
        layer, sequence, relevance = arguments
        count, first = len(relevance), plain.clock + 1
        for offset, worth in enumerate(relevance):
            plain.add(layer, sequence, 10 + offset, worth)
        states = torch.stack([state(first + i) for i in range(count)])
        worth = torch.tensor(relevance)
        made = store.store_state(states, layer, sequence, 10, worth)
        assert made == range(first, first + count)
        return
    if name == "clear":
        (sequence,) = arguments
        done = store.clear_all() if sequence is None else store.clear_sequence(sequence)
        assert done == plain.clear(sequence)
        return
    if name == "recent":
        k, layer, sequence = arguments
        got = store.retrieve_recent(k, layer_idx=layer, sequence_id=sequence)
        expected = plain.find(layer, sequence)[::-1][:k]
    elif name == "top":
        k, layer, sequence = arguments
        got = store.retrieve_top_k_relevant(
            k, layer_idx=layer, sequence_id=sequence, min_relevance=0.25
        )
        expected = [e for e in plain.find(layer, sequence) if e.relevance >= 0.25]
        expected = sorted(expected, key=lambda e: (-e.relevance, -e.created))[:k]
    elif name == "relevant":
        k, layer, sequence = arguments
        got = store.retrieve_relevant(
            state(0), k, layer_idx=layer, sequence_id=sequence, min_similarity=0.0
        )

        def likeness(entry: Kept) -> float:
            return float(torch.nn.functional.cosine_similarity(state(0), entry.state, dim=0))

        expected = sorted(plain.find(layer, sequence), key=likeness, reverse=True)
        expected = [e for e in expected if likeness(e) >= 0][:k]
    else:
        (number,) = arguments
        by_layer = name == "layer"
        got = (store.retrieve_by_layer if by_layer else store.retrieve_by_sequence)(number)
        expected = plain.find(number) if by_layer else plain.find(None, number)
    assert [e.timestamp for e in got] == [e.created for e in plain.use(expected)]
    for entry, kept in zip(got, expected, strict=True):
        assert_entry(entry, kept, plain.limits["reduce"])


def assert_entry(entry: MemoryEntry, kept: Kept, reduced: bool) -> None:
    assert (entry.layer_idx, entry.sequence_id) == (kept.layer, kept.sequence)
    assert (entry.position_idx, entry.relevance_score) == (kept.position, kept.relevance)
    assert (entry.access_count, entry.last_access) == (kept.count, kept.last)
    assert entry.tier == ("recent", "working", "long_term")[kept.tier]
    if reduced and kept.tier == 2:
        step = kept.state.abs().max().item() / 127
        assert (entry.hidden_state - kept.state).abs().max() <= step / 2 * 1.001
    else:
        assert torch.equal(entry.hidden_state, kept.state)


def assert_statistics(store: LayeredMemoryBuffer, plain: Model) -> None:
    stats = store.get_buffer_stats()
    kept = plain.kept
    assert stats["total_entries"] == len(store) == len(kept)
    assert stats["utilisation"] == len(kept) / plain.limits["total"]
    for name, key in (("sequence", "entries_by_sequence"), ("layer", "entries_by_layer")):
        held = {n: c for n, c in stats[key].items() if c}
        assert held == {n: sum(getattr(e, name) == n for e in kept) for n in held}
        assert sum(held.values()) == len(kept)
    assert list(stats["entries_by_tier"].values()) == [
        sum(e.tier == tier for e in kept) for tier in range(3)
    ]
    mean = sum(e.relevance for e in kept) / len(kept) if kept else None
    assert stats["mean_relevance"] == (pytest.approx(mean) if kept else None)
    assert stats["evicted"] == plain.evicted
    assert stats["added"] + stats["loaded"] - stats["evicted"] - stats["cleared"] == len(kept)


@settings(max_examples=100, deadline=None)
@given(limits, operations)
def test_it_is_the_plain_model(
    tmp_path_factory: pytest.TempPathFactory, of: dict[str, Any], todo: list[Any]
) -> None:
    plain = Model(of)
    store = LayeredMemoryBuffer(
        of["most"],
        of["total"],
        of["strategy"],
        of["share"],
        recent=of["recent"],
        working=of["working"],
        reduce_long_term=of["reduce"],
        relevance_threshold=of["threshold"],
    )
    for operation in todo:
        if operation[0] == "reload":
            path = tmp_path_factory.mktemp("saved") / "buffer"
            store.save_state(path)
            store.load_state(path)
        else:
            operate(store, plain, operation)
        assert_statistics(store, plain)


def test_an_entry_comes_back_as_it_was_added() -> None:
    store = buffer()
    entry = MemoryEntry(state(1), 4, 7, 30, 0.75, 99.0, 5, 3.0, "anna", (123,), 17, "long_term")
    assert store.add_entry(entry) == range(1, 2)
    (back,) = store.retrieve_recent()
    assert torch.equal(back.hidden_state, state(1))
    assert (back.layer_idx, back.sequence_id, back.position_idx) == (4, 7, 30)
    assert (back.relevance_score, back.session, back.token_ids) == (0.75, "anna", (123,))
    # Its use and its place are counted here.
    assert (back.timestamp, back.access_count, back.last_access) == (1, 1, 1)
    assert (back.slot, back.tier) == (0, "recent")


def test_several_tokens_are_as_many_entries() -> None:
    store = buffer()
    states = torch.stack([state(1), state(2)])
    store.add_entry(MemoryEntry(states, 0, 0, 30, 0.5, 0.0, token_ids=(8, 9)))
    first, second = store.retrieve_by_sequence(0)
    assert (first.position_idx, second.position_idx) == (30, 31)
    assert (first.token_ids, second.token_ids) == ((8,), (9,))
    assert torch.equal(second.hidden_state, states[1])


def test_returned_entries_are_copies() -> None:
    store = buffer(1)
    store.store_state(state(1), 0, 0)
    (kept,) = store.retrieve_recent()
    store.store_state(state(2), 0, 0)
    assert torch.equal(kept.hidden_state, state(1))
    store.retrieve_recent()[0].hidden_state.zero_()
    assert torch.equal(store.retrieve_recent()[0].hidden_state, state(2))


def test_a_full_layer_is_evicted_down_to_the_threshold() -> None:
    store = buffer(10, eviction_strategy="oldest", cleanup_threshold=0.5)
    for number in range(10):
        store.store_state(state(number), 0, 0)
    assert store.get_buffer_stats()["evicted"] == 0
    store.store_state(state(10), 0, 0)
    assert [e.timestamp for e in store.retrieve_by_layer(0)] == [6, 7, 8, 9, 10, 11]


def test_the_total_is_kept_over_all_layers() -> None:
    store = buffer(5, 6, eviction_strategy="relevance", cleanup_threshold=1.0)
    for number in range(12):
        store.store_state(state(number), number % 3, 0, 0, 1 - number / 12)
    assert len(store) == 6
    assert [e.timestamp for e in store.retrieve_by_sequence(0)] == [1, 2, 3, 4, 5, 12]


def test_one_sequence_cannot_push_out_another_one() -> None:
    store = buffer(8, eviction_strategy="lru", cleanup_threshold=1.0)
    for number in range(3):
        store.store_state(state(number), 0, 1)
    for number in range(50):
        store.store_state(state(number), 0, 2)
    assert store.get_buffer_stats()["entries_by_sequence"] == {1: 3, 2: 5}


def test_a_name_goes_with_the_last_entry_of_its_sequence() -> None:
    store = buffer(2, eviction_strategy="oldest")
    store.store_state(state(1), 0, 0, session="anna")
    for sequence in (1, 2, 0):
        store.store_state(state(1), 0, sequence)
    assert [e.session for e in store.retrieve_by_sequence(0)] == [""]


def test_equally_similar_entries_come_by_slot() -> None:
    store = buffer(8, recent=2, working=0, reduce_long_term=True)
    for _ in range(6):
        store.store_state(torch.full((4,), 127.0), 0, 0)  # exact in codes, too
    found = store.retrieve_relevant(torch.ones(4), 5, layer_idx=0)
    assert [e.slot for e in found] == [0, 1, 2, 3, 4]
    assert {e.tier for e in found} == {"recent", "long_term"}


def test_what_is_cleared_or_evicted_is_zeroed() -> None:
    store = buffer(4, recent=1, working=1, reduce_long_term=True, cleanup_threshold=0.01)
    for number in range(5):
        store.store_state(state(number), 0, number % 2, session="anna" if number % 2 else "")
    left = store._layers.stores[0]
    assert left.held == 1
    store.clear_sequence(0)
    for number in range(3):
        store.store_state(state(number), 0, 1, session="anna")
    assert store.retrieve_recent(1)[0].session == "anna"
    assert store.clear_all() == 3
    for tensor in left._device_tensors():
        assert not tensor.any()
    assert (left.columns["sequence"] == -1).all()
    assert store.get_buffer_stats()["entries_by_sequence"] == {}
    store.store_state(state(0), 0, 1)
    assert store.retrieve_recent(1)[0].session == ""


def test_room_is_taken_once_and_reduced_states_take_less() -> None:
    store, less = buffer(400, 999), buffer(400, 999, reduce_long_term=True)
    for one in (store, less):
        one.store_state(torch.randn(1, 512), 0, 0)
    before = store.get_buffer_stats()["nbytes"]
    assert before >= 400 * 512 * 4
    for one in (store, less):
        one.store_state(torch.randn(900, 512), 0, 0)
    assert store.get_buffer_stats()["nbytes"] == before
    assert less.get_buffer_stats()["nbytes"] < 0.8 * before
    tiers = less.get_buffer_stats()["entries_by_tier"]
    assert tiers["recent"] <= 100 and tiers["working"] <= 100 and tiers["long_term"] >= 120


def test_hits_and_uses_are_counted() -> None:
    store = buffer()
    assert store.get_buffer_stats()["hit_rate"] is None
    assert store.retrieve_relevant(state(0), layer_idx=3) == []
    store.store_state(torch.stack([state(1), state(2)]), 0, 0)
    assert len(store.retrieve_recent()) == 2
    stats = store.get_buffer_stats()
    assert (stats["retrievals"], stats["hits"], stats["hit_rate"]) == (2, 1, 0.5)
    assert (stats["retrieved"], stats["mean_access_count"]) == (2, 1.0)


def test_a_refused_entry_changes_nothing() -> None:
    store = buffer()
    store.store_state(state(1), 2, 0, session="anna")
    before = store.get_buffer_stats()
    for message, error, call in [
        ("hidden size 8 expected, got 5", ModelMismatchError, (state(1, 5), 2, 0)),
        ("states of torch.float32 expected, got", ModelMismatchError, (state(1).half(), 2, 0)),
        ("tensor of float16, .* expected, got torch.int64", TypeError, (torch.arange(8), 2, 0)),
        ("hidden_state: .* expected, got list", TypeError, ([1.0], 2, 0)),
        (r"\[hidden\] or .* expected, got \[1, 1, 8\]", ValueError, (state(1)[None, None], 2, 0)),
        ("finite values expected", ValueError, (state(1) / 0, 2, 0)),
        ("layer_idx: .* at least 0 expected, got -1", ConfigError, (state(1), -1, 0)),
        ("sequence_id: .* expected, got 'a'", ConfigError, (state(1), 2, "a")),
        (r"relevance_score: .* \[0, 1\] expected, got 3", ConfigError, (state(1), 2, 0, 0, 3.0)),
        (r"relevance_score: \[1\] expected", ValueError, (state(1), 2, 0, 0, torch.ones(2))),
        ("numbers in .0, 1. expected", ValueError, (state(1), 2, 0, 0, -torch.ones(1))),
    ]:
        with pytest.raises(error, match=message):
            store.store_state(*call)
    with pytest.raises(ValueError, match="token_ids: 1 or none expected, got 2"):
        store.store_state(state(1), 2, 0, token_ids=(1, 2))
    with pytest.raises(ValueError, match="sequence 0 has another name"):
        store.store_state(state(1), 2, 0, session="ben")
    with pytest.raises(ModelMismatchError, match="a query of size 8 expected, got 5"):
        store.retrieve_relevant(state(1, 5), layer_idx=2)
    with pytest.raises(ValueError, match=r"query: \[hidden\] expected"):
        store.retrieve_relevant(torch.ones(2, 8), layer_idx=2)
    assert store.get_buffer_stats() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_entries_per_layer", 0),
        ("max_total_entries", 1.5),
        ("eviction_strategy", "fifo"),
        ("cleanup_threshold", 0.0),
        ("recent", 0),
        ("working", -1),
        ("reduce_long_term", 1),
        ("relevance_threshold", 2.0),
    ],
)
def test_bad_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .* expected, got {value!r}"):
        LayeredMemoryBuffer(**{name: value})


def filled(**settings_: Any) -> LayeredMemoryBuffer:
    store = buffer(6, 10, recent=2, working=2, reduce_long_term=True, **settings_)
    for number in range(11):
        store.store_state(state(number), number % 2, number % 3, number, token_ids=(number,))
    store.store_state(state(11), 1, 1, session="anna")
    store.retrieve_recent(2)
    return store


def plain_entries(store: LayeredMemoryBuffer) -> list[Any]:
    return [
        (dataclasses.replace(e, hidden_state=None), e.hidden_state.tolist())  # type: ignore[arg-type]
        for n in range(3)
        for e in store.retrieve_by_sequence(n)
    ]


@pytest.mark.parametrize("key", [None, "a long passphrase"])
def test_what_was_saved_comes_back_in_another_buffer(tmp_path: Path, key: str | None) -> None:
    if key:
        pytest.importorskip("cryptography")
    store = filled()
    store.save_state(tmp_path / "a", key=key)
    other = buffer(6, 10, recent=2, working=2, reduce_long_term=True)
    other.store_state(state(50, 3), 9, 9)
    assert other.load_state(tmp_path / "a", key=key) == len(store)
    assert plain_entries(other) == plain_entries(store)
    # Numbers go on after the saved ones, and both go on alike.
    for one in (store, other):
        assert one.store_state(state(12), 0, 2).start == 13
    assert plain_entries(other) == plain_entries(store)


def test_saving_again_writes_only_what_is_new(tmp_path: Path) -> None:
    store = buffer(1000, 1000)
    store.store_state(torch.randn(900, 64), 0, 0)
    first = store.save_state(tmp_path / "a")
    store.store_state(state(1, 64), 0, 0)
    again = store.save_state(tmp_path / "a")
    assert again.bytes_written < first.bytes_written / 2
    assert buffer(1000, 1000).load_state(tmp_path / "a") == 901


def test_a_refused_load_changes_nothing(tmp_path: Path) -> None:
    store = filled()
    store.save_state(tmp_path / "a")
    other = buffer(6, 10, recent=3, working=2, reduce_long_term=True)
    other.store_state(state(1), 0, 0)
    with pytest.raises(ValueError, match=r"settings .*'recent': 3.* expected, got .*'recent': 2"):
        other.load_state(tmp_path / "a")
    with pytest.raises(MemoryNotFoundError):
        other.load_state(tmp_path / "nothing")
    content = Saved.open(tmp_path / "a")
    content.header["what"] = "something else"
    save(tmp_path / "b", content)
    with pytest.raises(ValueError, match="a saved LayeredMemoryBuffer expected"):
        other.load_state(tmp_path / "b")
    assert [e.timestamp for e in other.retrieve_by_layer(0)] == [1]


def _change(content: Saved, what: str) -> None:
    columns = {name: column.clone() for name, column in content.columns.items()}
    content.columns = columns
    if what == "same slot":
        first, second = (content.kind == 0).nonzero().view(-1)[:2].tolist()
        columns["slot"][second] = columns["slot"][first]
    elif what == "taken slot":
        columns["slot"][content.kind == 1] = columns["slot"][content.kind == 0][:1]
    elif what == "far slot":
        columns["slot"][0] = 1000
    elif what == "tier":
        columns["tier"][:] = 0
    elif what == "relevance":
        columns["relevance"][0] = float("nan")
    elif what == "dtype":
        columns["position"] = columns["position"].int()
    elif what == "missing":
        del columns["token_id"]
    elif what == "clock":
        content.header["clock"] = 1
    elif what == "forms":
        content.header["forms"] = content.header["forms"][::-1]
    elif what == "names":
        content.header["names"] = {"x": "anna"}


@pytest.mark.parametrize(
    "what",
    [
        "same slot",
        "taken slot",
        "far slot",
        "tier",
        "relevance",
        "dtype",
        "missing",
        "clock",
        "forms",
        "names",
    ],
)
def test_entries_that_no_buffer_can_have_are_refused(tmp_path: Path, what: str) -> None:
    store = filled()
    store.save_state(tmp_path / "a")
    content = Saved.open(tmp_path / "a")
    _change(content, what)
    save(tmp_path / "b", content)
    before = plain_entries(store)
    with pytest.raises(CorruptMemoryError, match=r"expected|fit"):
        store.load_state(tmp_path / "b")
    assert [state_ for _, state_ in plain_entries(store)] == [state_ for _, state_ in before]


def test_threads_take_turns() -> None:
    store = buffer(50, 80, cleanup_threshold=0.5)
    failed: list[BaseException] = []

    def work(sequence: int) -> None:
        try:
            for number in range(60):
                store.store_state(state(number), number % 2, sequence)
                for entry in store.retrieve_relevant(state(1), 3, layer_idx=number % 2):
                    assert entry.hidden_state.any()
                store.retrieve_top_k_relevant(2)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(sequence,)) for sequence in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    stats = store.get_buffer_stats()
    assert stats["added"] == 240
    assert stats["added"] - stats["evicted"] == stats["total_entries"] <= 80
    stamps = [e.timestamp for layer in range(2) for e in store.retrieve_by_layer(layer)]
    assert len(set(stamps)) == len(stamps)


def test_states_in_double_precision_are_kept() -> None:
    store = buffer()
    for number in range(3):
        store.store_state(state(number).double(), 0, 1)
    found = store.retrieve_relevant(state(1).double(), 1, layer_idx=0)
    assert torch.allclose(found[0].hidden_state.double(), state(1).double(), atol=1e-6)
