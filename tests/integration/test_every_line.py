"""Operations broken off at drawn points; `python -m benchmarks.halfway.every_line` has them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from benchmarks.halfway.afterwards import PROBE, bare, dressed
from benchmarks.halfway.every_line import draw, summary
from benchmarks.halfway.scenes import SCENES
from benchmarks.halfway.told import TOLD, unlike_told
from benchmarks.halfway.trap import KINDS, Place
from benchmarks.halfway.world import Failure, Point, World
from cmr.integration.files.folders import Files
from cmr.integration.hooks.generation import GenerationPlug
from cmr.memory.block_store import BlockStore
from cmr.memory.keeper import Keeper
from cmr.memory.sessions import SessionTable

CHEAP = ("forget_session", "forget_ids", "lift", "merge", "load_beside", "attach", "detach")

"""Operations without a forward of the model, which cost little to break off."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with torch.no_grad(), World(tmp_path_factory.mktemp("every_line")) as made:
        yield made


def test_whatever_breaks_half_way_nothing_is_lost_or_left(world: World) -> None:
    points = draw(world.counted([*CHEAP, "read", "forget_saved"], KINDS), 150, seed=1)
    assert len({point.operation for point in points}) > 5
    failures = [failure for point in sorted(points) for failure in world.broken_off(point)]
    assert not failures, "\n".join(summary(failures))


def test_points_are_drawn_from_all_places_first() -> None:

    here, there = Place("a.py", 1, "f"), Place("a.py", 2, "f")
    counted = {("read", "line"): [here] * 50 + [there], ("pin", "before"): [there]}
    first = draw(counted, 3, seed=0)
    assert {(p.operation, counted[p.operation, p.kind][p.at - 1]) for p in first} == {
        ("read", here), ("read", there), ("pin", there),
    }  # fmt: skip
    assert len(draw(counted, 1000, seed=0)) == 52
    assert {p.error for p in first} == {"KeyboardInterrupt", "MemoryError", "OSError"}


def test_an_operation_that_runs_undisturbed_is_held_to_what_is_told(world: World) -> None:
    right = world.seen("rename")[-1][0]
    assert not unlike_told(right, TOLD["rename"], over=True)
    for told in (TOLD["merge"], TOLD["forget_text"], TOLD["read"]):
        assert unlike_told(right, told, over=True)
    assert set(TOLD) == {name for name, scene in SCENES.items() if scene.begins != "none"}


BROKEN = {
    "nothing is zeroed": (BlockStore, "_zero", "forget_session", "of an empty slot"),
    "a session's end is forgotten": (SessionTable, "remove", "forget_session", "again"),
    "nothing expires": (Keeper, "expire", "expire", "not what was to be"),
    "files are left alone": (Files, "owe", "forget_saved", "in a file"),
}


@pytest.mark.parametrize("how", BROKEN.values(), ids=BROKEN)
def test_what_is_left_is_seen(
    how: tuple[type, str, str, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, method, operation, said = how
    world.seen(operation)  # as it is to be
    monkeypatch.setattr(owner, method, lambda *_, **__: ())
    found = world.broken_off(Point(operation, "line", 20, "OSError"))
    assert [Failure] == [type(failure) for failure in found]
    assert any(said in wrong for wrong in found[0].wrong), found


def test_an_attach_that_breaks_half_way_leaves_the_model_as_it_was(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    before, plain = dressed(llama), llama(PROBE, use_cache=False).logits
    monkeypatch.setattr(GenerationPlug, "attach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cmr.attach(llama)
    assert not bare(llama, plain, before)
    monkeypatch.undo()
    with cmr.attach(llama):
        assert bare(llama, plain, before)  # what is compared does tell a memory
    assert not bare(llama, plain, before)
