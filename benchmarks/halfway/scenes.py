"""What is broken off: operations on a small memory with all tiers, and how each is set up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.halfway import told
from benchmarks.halfway.oracle import canary

SETTINGS: dict[str, Any] = {
    "window": 48,
    "sinks": told.SINKS,
    "block_size": told.SIZE,
    "budget": 64,
    "working_budget": 64,
    "long_term_budget": 128,
    "threshold": 0.0,
    "gain": 0.0,
    "blocks": 4,
    "refresh": 2,
    "calibration": "none",
    # What breaks is to be seen to break.
    "strict": True,
}
"""Eight blocks in each of the upper tiers and sixteen in the last one."""
ANNA, BEN, CARL = (torch.tensor(text) for text in (told.ANNA, told.BEN, told.CARL))


@dataclass(frozen=True)
class Stage:
    """Where an operation is done.

    Attributes:
        model: the decoder.
        memory: of it; None: the operation attaches it.
        folder: a saved memory, where the scene has one, or a place for one.
    """

    model: Any
    memory: Any
    folder: Path


@dataclass(frozen=True)
class Scene:
    """An operation, and what may be expected of it.

    Attributes:
        call: does it.
        prepare: is done before, with nothing in its way.
        begins: `stored`: with what is stored at first; `empty`: with nothing; `folder`: loaded from
            the folder, which is known by that; `none`: with no memory at all.
        again: whether the same call, made again, brings about what it was to.
        forgets: the session whose blocks are in no tensor afterwards, and in no file of the folder
            where that is known.
        writes: whether it saves to the folder.
    """

    call: Callable[[Stage], Any]
    prepare: Callable[[Stage], Any] | None = None
    begins: str = "stored"
    again: bool = False
    forgets: str | None = None
    writes: bool = False


def begin(memory: cmr.Memory) -> None:
    """What is stored at first: two sessions over all tiers, one of them with a pinned block."""
    memory.read(ANNA[None], sessions=["anna"])
    memory.read(BEN[None], sessions=["ben"])
    memory.read(CARL[None], sessions=["carl"])
    memory.pin([block.id for block in memory.inspect("ben")][:1])


def _generate(stage: Stage) -> Any:
    prompt = canary("anna", 66, seed=4)[None]
    handle = stage.memory.session("anna")
    return handle.generate(prompt, max_new_tokens=4, do_sample=False)


def _forwards(stage: Stage) -> Any:
    ben = stage.memory.session("ben")
    out = ben.forward(canary("ben", 40, seed=5)[None], use_cache=True)
    more = canary("ben", 20, seed=6)[None]
    return ben.forward(more, past_key_values=out.past_key_values, use_cache=True)


def _begin_cache(stage: Stage) -> None:
    ben = stage.memory.session("ben")
    out = ben.forward(canary("ben", 30, seed=7)[None], use_cache=True)
    stage.memory.cache = out.past_key_values


def _expire(stage: Stage) -> None:
    ledger = stage.memory._core.ring.ledger
    slots = ledger.slots_of(stage.memory._core.table.require("anna"))[3:]
    ledger.let_expire(slots, torch.full((len(slots),), time.time() - 1.0, dtype=torch.float64))


def _use_lower(stage: Stage) -> None:
    """Blocks low down are recalled, and a text is stored twice."""
    memory = stage.memory
    memory.read(BEN[None, :24], sessions=["ben"])
    ring = memory._core.ring
    slots = torch.cat([ring.ledger.held(tier)[:2] for tier in (1, 2)])
    ring.access_count[slots] += 1
    ring.last_access[slots] = ring.clock


def _end_of_ben(stage: Stage) -> None:
    stage.memory.forget(ids=[block.id for block in stage.memory.inspect("ben")][2:])


def _span(stage: Stage) -> Any:
    return stage.memory.forget("anna", text=ANNA[30:50].tolist())


def _choose(stage: Stage) -> None:
    stage.memory.chosen = [block.id for block in stage.memory.inspect("anna")][2:7]


SCENES: dict[str, Scene] = {
    "read": Scene(lambda s: s.memory.read(canary("dora", 80, seed=8)[None], sessions=["dora"])),
    "read_recalling": Scene(
        lambda s: s.memory.read(
            torch.stack([canary("anna", 40, seed=9), canary("ben", 40, seed=9)]),
            sessions=["anna", "ben"],
            recall=True,
        )
    ),
    "generate": Scene(_generate),
    "forward": Scene(_forwards),
    "absorb": Scene(lambda s: s.memory.absorb(s.memory.cache), _begin_cache),
    "forget_session": Scene(lambda s: s.memory.forget("anna"), again=True, forgets="anna"),
    "forget_text": Scene(_span, again=True),
    "forget_ids": Scene(lambda s: s.memory.forget(ids=s.memory.chosen), _choose, again=True),
    "forget_saved": Scene(
        lambda s: s.memory.forget("anna"), begins="folder", again=True, forgets="anna"
    ),
    "clear": Scene(lambda s: s.memory.clear(), again=True, forgets="anna"),
    "clear_session": Scene(lambda s: s.memory.clear("anna"), again=True, forgets="anna"),
    "expire": Scene(lambda s: s.memory.inspect(), _expire, again=True),
    "save": Scene(lambda s: s.memory.save(s.folder / "new"), again=True, writes=True),
    "save_again": Scene(
        lambda s: s.memory.save(s.folder),
        lambda s: s.memory.read(canary("dora", 20, seed=8)[None], sessions=["dora"]),
        begins="folder",
        again=True,
        writes=True,
    ),
    "load": Scene(lambda s: s.memory.load(s.folder), begins="empty", again=True),
    "load_beside": Scene(
        lambda s: s.memory.load(s.folder),
        lambda s: s.memory.read(canary("dora", 120, seed=8)[None], sessions=["dora"]),
        begins="empty",
        again=True,
    ),
    "consolidate": Scene(lambda s: s.memory.consolidate(), _use_lower),
    "lift": Scene(lambda s: s.memory.lift("anna"), _end_of_ben),
    "fork": Scene(lambda s: s.memory.fork("carl", "dora"), again=True),
    "merge": Scene(lambda s: s.memory.merge("anna", into="ben"), again=True),
    "rename": Scene(lambda s: s.memory.rename("anna", "dora"), again=True),
    "session": Scene(
        lambda s: s.memory.session("dora", "eve", create=True, ephemeral=True, ttl=100.0),
        again=True,
    ),
    "pin": Scene(lambda s: s.memory.pin(s.memory.chosen[:3]), _choose, again=True),
    "attach": Scene(lambda s: cmr.attach(s.model, **SETTINGS), begins="none"),
    "load_model": Scene(lambda s: cmr.load(s.folder, s.model), begins="none"),
    "detach": Scene(lambda s: s.memory.detach(), again=True),
    "reattach": Scene(lambda s: s.memory.reattach(), lambda s: s.memory.detach(), again=True),
}
