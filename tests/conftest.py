"""Fixtures that every test shares: the small real model, seeds, no network, no GPU by accident."""

from __future__ import annotations

import os
import random
from typing import Any

# Before transformers is imported: a test never asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported: threads that wait by spinning are ten times slower on busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker of `pytest -n` has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
import pytest
import torch
from hypothesis import settings

# The same examples in every run: a red suite is a change, never luck. To look for new ones:
# pytest --hypothesis-profile=explore
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", max_examples=500)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def strategies_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known in that test alone: others look at all strategies."""
    from cmr.config import topics

    monkeypatch.setattr(topics, "_PLUGGED_IN", set(topics._PLUGGED_IN))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct and its tokenizer: ``(model, tokenizer)``, as this CPU runs it.

    Shared by the whole session: whoever attaches to the model detaches again.
    """
    from cmr.demo import load_smollm2

    return load_smollm2()


@pytest.fixture(scope="session")
def qwen():
    """Qwen2.5-Coder-0.5B-Instruct and its tokenizer, for tests marked slow.

    Shared by the whole session: whoever attaches to the model detaches again.
    """
    from benchmarks.models import qwen as another

    if not another.is_there():
        pytest.skip(f"{another.NAME} is not there: python -m benchmarks.models brings it")
    return another.load()


STARTED_FIRST = ("test_interpreter.py",)
"""Files whose few tests take minutes: with `pytest -n` nothing waits for them at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n`: a file stays on one worker, so what its tests share is made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in STARTED_FIRST)
    if "nightly" not in config.option.markexpr:
        # Not in `addopts`: a `-m` of somebody's would stand in place of it.
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders, too
            item.add_marker(skip)
