"""No session ever reads another one's text, whatever is done; what is forgotten is nowhere.

Sessions whose texts share no token are read, talked to, evicted, forked, merged, renamed,
forgotten, saved and loaded in any order, in batches and with beams, in a store so small that they
displace each other all the time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import cmr
from tests.integration.canaries import NAMES, Traces, canary, is_of
from tests.kernels.conftest import poisoned_buffers

__all__ = ["poisoned_buffers"]

SETTINGS: dict[str, Any] = {
    "window": 64,
    "threshold": 0.0,
    "gain": 0.0,
    "blocks": 4,
    "budget": 160,
    "working_budget": 96,
    "long_term_budget": 320,
    "refresh": 2,
}

who = st.sampled_from(NAMES)
read = st.tuples(st.just("read"), who, st.integers(1, 150))
batch = st.tuples(st.just("batch"), st.permutations(NAMES), st.integers(1, 100))
chat = st.tuples(st.just("chat"), who, st.integers(70, 130))
beams = st.tuples(st.just("beams"), st.permutations(NAMES), st.integers(1, 3))
step = st.tuples(st.just("step"), who, st.integers(1, 4))
fork = st.tuples(st.just("fork"), who, st.integers(0, 2))
merge = st.tuples(st.just("merge"), who, st.integers(0, 2))
rename = st.tuples(st.just("rename"), who, st.integers(0, 2))
forget = st.tuples(st.just("forget"), who, st.booleans())
save = st.tuples(st.just("save"), st.integers(0, 1), st.just(0))
load = st.tuples(st.just("load"), st.integers(0, 1), st.just(0))
tidy = st.tuples(st.just("tidy"), st.just(0), st.just(0))
actions = st.lists(
    st.one_of(read, read, batch, chat, step, step, beams, fork, merge, rename, forget, save, load,
              tidy),
    min_size=4,
    max_size=14,
)  # fmt: skip


class World:
    """A memory, and whose text each of its sessions holds.

    A session is named after its owner; forks carry a number behind it.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.memory = cmr.attach(model, **SETTINGS)
        self.caches: dict[str, Any] = {}

    def sessions(self, owner: str) -> list[str]:
        return [name for name in self.memory.sessions if name.split("-")[0] == owner]

    def act(self, what: str, which: Any, how: Any) -> None:
        getattr(self, what)(which, how)
        self.check()

    def check(self) -> None:
        for block in self.memory.inspect():
            assert is_of(block.session.split("-")[0], block.token_ids)
        for row in self.memory.recalled:
            for passage in row:
                assert is_of(passage.session.split("-")[0], passage.token_ids)

    def read(self, owner: str, tokens: int) -> None:
        self.memory.read(canary(owner, tokens, seed=tokens), sessions=[owner])

    def batch(self, owners: list[str], tokens: int) -> None:
        ids = torch.stack([canary(name, tokens) for name in owners])
        mask = torch.ones_like(ids)
        mask[1, tokens // 2 + 1 :] = 0
        self.memory.read(ids, mask, sessions=owners)

    def chat(self, owner: str, tokens: int) -> None:
        with self.memory.session(owner, create=True):
            ids = canary(owner, tokens)[None]
            self.caches[owner] = self.model(ids, use_cache=True).past_key_values

    def step(self, owner: str, tokens: int) -> None:
        """Goes on with a chat, whatever was done to its session meanwhile."""
        if owner in self.caches and self.sessions(owner):
            with self.memory.session(self.sessions(owner)[0]):
                for token in canary(owner, tokens, seed=9):
                    self.model(token.view(1, 1), past_key_values=self.caches[owner])
                    self.check()

    def beams(self, owners: list[str], count: int) -> None:
        ids = torch.stack([canary(name, 20, seed=3) for name in owners])
        with self.memory.session(*owners, create=True):
            self.model.generate(
                ids, num_beams=count, max_new_tokens=3, do_sample=False, bad_words_ids=None
            )
            rows = self.memory.recalled
            assert [len(rows), len(owners) * count] == [len(owners) * count] * 2
            # What a beam says is the model's own; it is stored by no one here: it fits the window.

    def fork(self, owner: str, copy: int) -> None:
        if owner in self.memory.sessions and f"{owner}-{copy}" not in self.memory.sessions:
            before = [b.token_ids for b in self.memory.inspect(owner)]
            try:
                self.memory.fork(owner, f"{owner}-{copy}")
            except ValueError as error:
                assert "no room for a copy" in str(error)
                assert f"{owner}-{copy}" not in self.memory.sessions
            else:
                assert [b.token_ids for b in self.memory.inspect(f"{owner}-{copy}")] == before
            assert [b.token_ids for b in self.memory.inspect(owner)] == before

    def merge(self, owner: str, copy: int) -> None:
        if {owner, f"{owner}-{copy}"} <= set(self.memory.sessions):
            count = sum(len(self.memory.inspect(name)) for name in (owner, f"{owner}-{copy}"))
            self.memory.merge(f"{owner}-{copy}", owner)
            blocks = self.memory.inspect(owner)
            assert len(blocks) == count
            assert all(a.end <= b.start for a, b in itertools.pairwise(blocks))

    def rename(self, owner: str, copy: int) -> None:
        if f"{owner}-{copy}" in self.memory.sessions and owner not in self.memory.sessions:
            self.memory.rename(f"{owner}-{copy}", owner)

    def forget(self, owner: str, whole: bool) -> None:
        """All sessions of an owner; or only the oldest block of one of them."""
        if not whole:
            for block in list(self.memory.inspect(owner) if self.sessions(owner)[:1] == [owner]
                              else [])[:1]:  # fmt: skip
                self.memory.forget(ids=block.id)
            return
        traces = [Traces(self.memory, name) for name in self.sessions(owner)]
        for name in self.sessions(owner):
            self.memory.forget(name)
        # The user's own cache holds the window, and what is being said is not memory's to forget.
        self.caches.pop(owner, None)
        for trace in traces:
            assert not trace.in_process()
            assert not trace.in_folder(self.folder)

    def save(self, where: int, _: int) -> None:
        self.memory.save(self.folder / str(where))

    def load(self, where: int, _: int) -> None:
        if (self.folder / str(where)).exists():
            self.memory.detach()
            self.memory.clear()  # whoever still holds it holds nothing
            self.caches.clear()
            self.memory = cmr.load(self.folder / str(where), self.model)
            # Known folders are part of what is forgotten from now on: the other one as well.
            for other in (0, 1):
                if other != where and (self.folder / str(other)).exists():
                    self.memory.save(self.folder / str(other))

    def tidy(self, *_: int) -> None:
        tokens = self.memory.tokens
        report = self.memory.consolidate()
        assert report.merged or self.memory.tokens == tokens


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=actions)
def test_whatever_is_done(
    actions: list[tuple[str, Any, Any]], tiny: Callable[[str], nn.Module]
) -> None:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        world = World(tiny("llama"), Path(folder))
        try:
            for what, which, how in actions:
                world.act(what, which, how)
            for owner in NAMES:
                world.act("forget", owner, True)
            assert world.memory.tokens == 0 and world.memory.sessions == []
        finally:
            world.memory.detach()
