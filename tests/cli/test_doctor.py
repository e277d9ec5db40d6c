"""`cmr doctor`: what holds here, what it says of what does not, and what it never says."""

from __future__ import annotations

import pytest
import torch

import cmr
from cmr.cli.app import app
from cmr.cli.watch import self_test
from cmr.integration.hooks.reading import Reading
from cmr.integration.hooks.stepper import Stepper
from cmr.memory.block_store import BlockStore
from cmr.retrieval import Retriever


def test_everything_holds_here(runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMR_KERNELS", "reference")
    monkeypatch.setenv("CMR_MEMORY_KEY", "a passphrase")
    before = torch.random.get_rng_state()
    result = runner.invoke(app, ["doctor", "--quick"])
    assert result.exit_code == 0, result.output
    assert f"all {len(self_test.CHECKS)} checks hold" in result.stdout
    assert torch.__version__ in result.stdout and "CMR_KERNELS=reference" in result.stdout
    assert "passphrase" not in result.stdout and cmr.__path__[0] not in result.stdout
    assert torch.equal(torch.random.get_rng_state(), before)


def _raises(*_: object) -> None:
    raise RuntimeError("what anna said")


def test_what_raises_is_named_without_what_it_says(runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retriever, "search", _raises)
    result = runner.invoke(app, ["doctor", "--quick"])
    assert result.exit_code == 1
    assert "FAILED  memory changes an answer: RuntimeError at test_doctor.py:" in result.stdout
    assert "ok      what is forgotten is gone" in result.stdout
    assert "what anna said" not in result.stdout and "of 5 checks failed" in result.stdout


def test_a_memory_that_changes_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "of", lambda *_, **__: None)
    found = dict(self_test.tried("cpu"))
    assert found["memory changes an answer"] == "what was recalled changes no logits"


def test_a_detach_that_leaves_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    detach = Stepper.detach

    def leaves(self: Stepper) -> None:
        detach(self)
        self.core.adapter.model.lm_head.weight.data[3] += 1

    monkeypatch.setattr(Stepper, "detach", leaves)
    assert dict(self_test.tried("cpu"))["detach restores the model bit for bit"]


def test_a_session_that_reads_anothers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def everybodys(self: object, *_: object) -> torch.Tensor:
        return torch.full((1,), self.table.find("two"))  # type: ignore[attr-defined]

    monkeypatch.setattr("cmr.integration.core.Core.numbers", everybodys)
    monkeypatch.setattr(BlockStore, "has", lambda *_: True)
    found = dict(self_test.tried("cpu"))
    assert found["a session reads nothing of another"]


def test_what_is_not_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmr.Memory, "forget", lambda *_, **__: None)
    assert dict(self_test.tried("cpu"))["what is forgotten is gone"]


def test_a_memory_that_is_loaded_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = cmr.load
    monkeypatch.setattr(cmr, "load", lambda *a: load(*a, memory_weight=0.0))
    assert "another answer" in dict(self_test.tried("cpu"))["a saved memory answers the same"]
