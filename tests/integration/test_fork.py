"""After a fork both processes have a memory each: nothing that one does is seen by the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forking import LAYOUTS

pytestmark = pytest.mark.timeout(900)  # the first one waits for all of forking.py
DEEP = ("states", "codes", "hierarchical")
"""Layouts with a long-term tier."""


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    """What forking.py found, by case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.forking"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {name: what for name, what, _ in lines}
    errors = {name: what["error"] for name, what in found.items() if "error" in what}
    assert not errors, "\n\n".join(f"{name}: {error}" for name, error in errors.items())
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_go_on_with_what_they_had(layout: str, cases: dict[str, Any]) -> None:
    found = cases[f"beside {layout}"]
    deep, all_before = found["long_term"]
    assert (deep > 0) == (layout in DEEP)
    # The upper tiers come along, bit for bit; the long-term tier is dropped, and said to be once.
    assert found["carl"] == [all_before - deep, True]
    assert len(found["warned"]) == (layout in DEEP)
    assert all("long-term tier is in the parent alone" in said for said in found["warned"])
    assert found["asked"] == [["carl"], ["anna"]]
    assert found["anna"] == ["anna"] and found["sessions"] == ["carl", "anna"]
    assert found["ben"] == [] and found["slots"] == [] and found["left"] == ["anna"]
    # What the child has read, forgotten and saved is nothing to the parent.
    assert found["parent"] == {
        "asked": [["ben"], ["carl"]],
        "same": True,
        "stored": [["ben"], ["carl"]],
        "sessions": ["carl", "ben"],
        "slots": [],
    }
    assert found["saved"] == ["anna"]


@pytest.mark.parametrize("layout", ["recent", "working", "states", "codes"])
def test_what_the_parent_writes_before_the_first_use_is_not_seen(
    layout: str, cases: dict[str, Any]
) -> None:
    found = cases[f"sleeping {layout}"]
    assert found.pop("needles") > 10
    empty: list[str] = []
    assert found == {
        "first": empty,
        "again": empty,
        "parent": empty,
        "ben": empty,
        "slots": empty,
        "stats": 0,
        "tokens": 96,
    }


@pytest.mark.parametrize("layout", ["working", "states"])
def test_workers_of_a_server_serve_their_own_users(layout: str, cases: dict[str, Any]) -> None:
    assert cases[f"server {layout}"] == {"wrong": [[], [], [], []], "parent": []}


@pytest.mark.parametrize("layout", ["working", "states"])
def test_threads_of_the_parent_may_be_anywhere(layout: str, cases: dict[str, Any]) -> None:
    found = cases[f"beside_threads {layout}"]
    for child in found.pop("found"):
        assert child["anna"] == [["anna"], ["anna"]]
        # What was being read at that moment is not there: of a first text nothing.
        assert child["ben"] in ([["ben"]], [[]])
    assert found == {"broken": [], "anna": False}


def test_forks_leave_nothing_open_or_mapped(cases: dict[str, Any]) -> None:
    found = cases["many"]
    before = found["before"]
    assert before["files"] and abs(found["after"].pop("maps") - before.pop("maps")) < 5
    assert found["after"] == before
    mapped = {len(now["files"]) for _, now in found["children"]}
    assert mapped == {len(before["files"])}
    for asked, now in found["children"]:
        assert asked == ["carl"]
        assert not {*now["files"]} & {*before["files"]}  # none of the parent's is mapped,
        assert now["nameless"] == 0  # and none is open
    first, *later = found["generations"]
    for turn, now in enumerate(later, 1):
        assert len(now["files"]) == len(first["files"]) and now["nameless"] == 0
        assert now["open"] == first["open"] + 2 * turn  # the pipes to those before it
        assert abs(now["maps"] - first["maps"]) < 5 * turn


def test_a_fork_inside_of_a_forward_is_refused(cases: dict[str, Any]) -> None:
    found = cases["inside"]
    assert found.pop("asked") == ["carl"]
    assert set(found) == {"forward", "inspect", "release"}
    assert all("forked in the middle of a forward" in said for said in found.values())


def test_locks_and_threads_of_the_parent_hang_nobody(cases: dict[str, Any]) -> None:
    assert cases["held"] == {
        "waiting": 0,
        "upkeep": False,
        "again": True,
        "asked": ["anna"],
        "parent": ["carl"],
    }


def test_what_cannot_come_along_is_refused(cases: dict[str, Any]) -> None:
    *refused, asked, stored = cases["elsewhere"]["room"]
    assert len(refused) == 2
    assert all("long-term tier expected in FOLDER, got: No such file" in said for said in refused)
    assert (asked, stored) == ("anna", "carl")
    assert "a memory on cuda cannot be used" in cases["elsewhere"]["device"]


def test_a_save_is_that_of_the_process_that_began_it(cases: dict[str, Any]) -> None:
    found = cases["saving"]
    unwound, committed = found["left"]
    assert unwound == "left" and committed.endswith("that of the process that was forked")
    assert found["staged"] == ["mine"]
    # The folder is free for the parent, though a child of that moment lives on.
    assert found["blocks"] == found["stored"] > 0
