"""Random operations on memories, folders and processes leave everything where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cmr
from benchmarks.halfway import operations
from benchmarks.halfway.oracle_of_text import Change, Stored, Text, Window, pieces
from benchmarks.halfway.steps.actor import Row, State, at_time, tiny
from benchmarks.halfway.steps.ground import Failure, Place
from benchmarks.halfway.steps.walk import Walk

SETTINGS: dict[str, Any] = {
    "window": 24, "block_size": 8, "left_context": 8, "threshold": 0.0, "refresh": 2, "blocks": 3,
    "sinks": 4, "sink_guard": 0, "store": "kv", "budget": 64, "working_budget": 48,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Sequences fork, which threads of PyTorch do not survive."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [tiny(7), tiny(7), tiny(8)]


def none_failed(row: dict[str, Any]) -> None:
    wrong = {kind: row[kind] for kind in operations.FAILURES if row[kind]}
    assert not wrong, "see the sequences above; `--first` of the benchmark runs one again"


def test_operations_leave_everything_where_it_belongs() -> None:
    row = operations.walk(1_500, seed=1)
    none_failed(row)
    assert row["operations"] >= 1_500 and len(row["by_kind"]) >= 20


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_operations_leave_everything_where_it_belongs(seed: int) -> None:
    none_failed(operations.walk(100_000, seed=seed))


# -- what breaks the oracle's peace ----------------------------------------------------------------


@pytest.fixture
def walk(models: list[Any], tmp_path: Path) -> Iterator[Walk]:
    one = Walk("0/0", models, tmp_path)
    with at_time(one.clock):
        yield one
    one.close()


def read(walk: Walk, name: str, tokens: int = 40) -> Place:
    """Text of a session in the first place, which the oracle knows."""
    place, ids = walk.places[0], walk.fresh(tokens)
    place.actor.memory.read(torch.tensor(ids), sessions=[name])
    walk.settle(place, Change(pieces(walk.made(place, name), ids, 8, walk.clock.now), writes=True))
    return place


def test_text_that_nobody_read_is_foreign(walk: Walk) -> None:
    place = read(walk, "anna")
    place.actor.memory.read(torch.tensor(walk.fresh(8)), sessions=["anna"])
    with pytest.raises(Failure, match=r"was never stored|or their order") as failed:
        walk.settle(place)
    assert failed.value.kind in ("foreign", "lost")


def test_another_sessions_states_are_foreign(walk: Walk) -> None:
    place = read(walk, "anna")
    ring = place.actor.memory._core.ring
    ring.index[0] = ring.index[1]
    with pytest.raises(Failure, match="that of another block"):
        walk.look_at_everything()


def test_a_block_that_goes_uncounted_is_lost(walk: Walk) -> None:
    place = read(walk, "anna")
    ring = place.actor.memory._core.ring
    ring.empty(ring.ledger.slots_of(None)[:1])
    with pytest.raises(Failure, match="0 evicted") as failed:
        walk.settle(place)
    assert failed.value.kind == "lost"


def test_what_is_left_of_a_block_in_a_slot_is_seen(walk: Walk) -> None:
    place = read(walk, "anna")
    ring = place.actor.memory._core.ring
    ring.index[ring.ledger.tiers[0].end - 1] = 1.0
    with pytest.raises(Failure, match="an empty slot is not 0"):
        walk.look_at_everything()


def test_a_forgotten_block_that_stays_is_seen(walk: Walk) -> None:
    place = read(walk, "anna")
    with pytest.raises(Failure, match="was forgotten") as failed:
        walk.settle(place, Change(gone=set(list(place.blocks)[:1])))
    assert failed.value.kind == "resurrected"


def test_ids_of_a_forgotten_block_in_a_tensor_are_seen(walk: Walk) -> None:
    place = read(walk, "anna")
    kept = list(place.blocks.values())
    held = torch.tensor(kept[0].content.tokens)
    place.actor.memory.forget("anna", files=False)
    for one in kept:
        walk.forgotten(one)
    place.stored.end(place.texts["anna"])
    walk.settle(place, Change(gone=set(place.blocks)))
    with pytest.raises(Failure, match="ids of a forgotten block"):
        walk.look_at_tensors()
    held.zero_()
    walk.look_at_tensors()


def test_text_left_in_a_folder_is_seen(walk: Walk) -> None:
    read(walk, "anna")
    (walk.folder / "a").mkdir()
    walk.rng.choice = lambda _: "a"  # type: ignore[method-assign]
    walk.begin(walk.places[0], "save")
    walk.op_save(walk.places[0])
    walk.shelves["a"].blocks.pop()
    with pytest.raises(Failure, match="was never saved there"):
        walk.look_at_folder("a")


def test_a_recall_of_another_text_is_foreign(walk: Walk) -> None:
    place = read(walk, "anna")
    text = place.texts["anna"]
    walk.recalled([text], [[("anna", 0, 8, tuple(text.tokens[:8]))]])
    for passage in (("ben", 0, 8, tuple(text.tokens[:8])), ("anna", 0, 8, (9,) * 8)):
        with pytest.raises(Failure, match="recalls"):
            walk.recalled([text], [[passage]])


def test_a_link_over_text_that_is_gone_is_seen() -> None:
    stored, text = Stored(fills=True), Text("anna", 1)
    stored.texts["anna"] = text
    blocks = pieces(text, list(range(1, 25)), 8, 0.0)

    def state(after: int) -> State:
        rows = [
            Row(1, "anna", "recent", blocks[0].positions, blocks[0].tokens, float("inf"), False,
                after),
            Row(3, "anna", "recent", blocks[2].positions, blocks[2].tokens, float("inf"), False),
        ]  # fmt: skip
        return State(rows, [("anna", 24, False, None)], {}, 1, 0)

    assert not list(stored.agree(state(0), Change(blocks, writes=True), 0.0))
    stored._evicted = 1
    assert [kind for kind, _ in stored.agree(state(3), Change(), 0.0)] == ["foreign"]


def test_the_oracles_window_is_the_models(models: list[Any]) -> None:
    """What leaves it, token by token and in long pieces."""
    with cmr.attach(models[0], **SETTINGS) as memory, torch.no_grad():
        anna = memory.session("anna", create=True)
        ids = torch.randint(1, 2048, (1, 70), generator=torch.Generator().manual_seed(1))
        text = Text("anna", 1)
        window, cache, at = Window([text], 4, 28, 8, [[]]), None, 0
        for count in (3, 30, 1, 12, 1, 1, 20, 2):
            part = ids[:, at : at + count]
            cache = anna.forward(part, past_key_values=cache, use_cache=True).past_key_values
            text.tokens += window.step(part.tolist())[0]
            at += count
            assert memory._core.table.info(0).position == len(text.tokens)
        assert len(text.tokens) >= 24


# -- what sequences of operations have found -------------------------------------------------------


def test_a_cache_whose_session_ended_reads_nobodys_memory(models: list[Any]) -> None:
    """Going on without a name it would be row 0, and read what session '0' has stored."""
    with cmr.attach(models[0], **SETTINGS) as memory, torch.no_grad():
        memory.read(torch.arange(1, 61), sessions=["0"])
        anna = memory.session("anna", create=True)
        ids = torch.arange(100, 160)[None]
        for end in ("forget", "pause"):
            cache = anna.forward(ids, use_cache=True).past_key_values
            if end == "forget":
                memory.forget("anna")
                anna = memory.session("anna", create=True)
            else:
                memory.pause()
                models[0](ids[:, :1], past_key_values=cache)
                memory.resume()
            models[0](ids[:, :12], past_key_values=cache)
            assert {p.session for row in memory.recalled for p in row} <= {"anna"}
        models[0](ids[:, :12])
        assert {p.session for row in memory.recalled for p in row} == {"0"}


def test_of_sessions_without_names_all_are_made_or_none(models: list[Any]) -> None:
    with cmr.attach(models[0], **SETTINGS, max_sessions=2) as memory, torch.no_grad():
        memory.session("anna", create=True).tokens  # noqa: B018
        with pytest.raises(ValueError, match="max_sessions"):
            models[0](torch.ones(2, 4, dtype=torch.int64))
        assert memory.sessions == ["anna"]


def test_a_cache_in_use_lets_go_of_text_that_left_it(models: list[Any]) -> None:
    """Forgotten text must not stay in the storage that a view of what stayed keeps alive."""
    with cmr.attach(models[0], **SETTINGS) as memory, torch.no_grad():
        anna = memory.session("anna", create=True)
        cache = anna.forward(torch.arange(1, 51)[None], use_cache=True).past_key_values
        (chunk,) = cache.layers[0].owner.record._chunks
        for column in chunk.values():
            assert column.untyped_storage().nbytes() == column.numel() * column.element_size()


def newest_leads_to_nothing(memory: cmr.Memory, name: str) -> None:
    """The next block of a session is read behind no block that ends further in front."""
    memory.read(torch.arange(500, 508), sessions=[name])
    ring = memory._core.ring
    slot = ring.ledger.newest(memory._core.table.require(name))
    assert int(ring.predecessor[slot]) == -1


def test_a_copy_whose_newest_block_is_gone_leads_nowhere(models: list[Any]) -> None:
    with cmr.attach(models[0], **SETTINGS) as memory:
        memory.read(torch.arange(1, 25), sessions=["anna"])
        memory.forget("anna", ids=memory.inspect("anna")[-1].id)
        memory.fork("anna", "ben")
        newest_leads_to_nothing(memory, "ben")


def test_text_behind_one_that_was_forgotten_leads_nowhere(models: list[Any]) -> None:
    with cmr.attach(models[0], **SETTINGS) as memory:
        memory.read(torch.arange(1, 25), sessions=["anna"])
        memory.read(torch.arange(101, 125), sessions=["ben"])
        memory.forget("ben", older_than=0.0)
        memory.merge("ben", "anna")
        newest_leads_to_nothing(memory, "anna")


def test_a_copy_lives_no_longer_than_its_original(models: list[Any]) -> None:
    class Clock:
        now = 1000.0

    with cmr.attach(models[0], **SETTINGS) as memory, at_time(Clock):
        anna = memory.session("anna", create=True, ttl=10.0)
        anna.read(torch.arange(1, 25))
        memory.session("anna", create=True, ttl=1000.0).tokens  # noqa: B018
        memory.fork("anna", "ben")
        assert {block.expires for block in memory.inspect("ben")} == {1010.0}
        Clock.now = 1011.0
        assert not memory.inspect()
