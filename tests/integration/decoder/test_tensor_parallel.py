"""A model that two processes share, each with half of its heads, remembers as it does in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from tests.integration.decoder.parallel import STORES, answers
from tests.integration.tiny import READS_ALL, text
from tests.kernels.helpers.compare import assert_close

PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], nn.Module]) -> Path:
    """What both processes found, and the model and a memory of one process."""
    folder = tmp_path_factory.mktemp("parallel")
    tiny("llama").save_pretrained(folder / "model")
    with cmr.attach(tiny("llama"), **READS_ALL, window=64) as memory:
        memory.read(text(2, 96, seed=1))
        memory.save(folder / "whole")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(PROCESSES):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(PROCESSES),
            "LOCAL_WORLD_SIZE": str(PROCESSES),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.integration.decoder.parallel", str(folder)]
        running.append(
            subprocess.Popen(
                command,
                cwd=Path(__file__).parents[3],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in running:
            said = process.communicate(timeout=240)[0]
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return folder


@pytest.fixture(params=range(PROCESSES), ids=lambda rank: f"rank{rank}")
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    return torch.load(folder / f"rank{request.param}.pt")


@pytest.mark.parametrize("store", STORES)
def test_each_process_says_and_recalls_what_one_process_does(
    store: str, found: dict[str, Any], llama: nn.Module
) -> None:
    want, want_added, want_recalled = answers(llama, store)
    have, added, recalled = found[store]
    assert all(want_recalled) and recalled == want_recalled
    assert_close("logits", have, want, atol=2e-4, rtol=1e-4)
    assert torch.equal(added, want_added)


def test_each_process_stores_its_own_heads(found: dict[str, Any]) -> None:
    assert found["kv_heads"] == {1}


def test_each_process_loads_what_it_saved_and_nothing_else(found: dict[str, Any]) -> None:
    assert found["loaded"]
    assert "other weights" in found["of another process"]
    assert "kv_heads 1 expected (from this model), got 2" in found["of one process"]
