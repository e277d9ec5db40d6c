"""NVTX ranges: off by default and free then; on, they are named as documented."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cmr.errors import KernelError
from cmr.kernels import dispatch, ranges
from cmr.kernels.score import state_scores


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A stand-in for the package `nvtx`: the (name, domain) of every range opened."""
    seen: list[tuple[str, str]] = []

    def annotate(name: str, domain: str) -> nullcontext[None]:
        seen.append((name, domain))
        return nullcontext()

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    monkeypatch.setattr(ranges, "annotate", None)
    return seen


def score() -> None:
    state_scores(torch.ones(1, 4, 8), 2)


def in_a_process(code: str, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != ranges.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**known, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_off_by_default_and_nothing_imported() -> None:
    code = (
        "import sys, cmr.kernels; from cmr.kernels import ranges; "
        "print(ranges.annotate, 'nvtx' in sys.modules)"
    )
    assert in_a_process(code) == "None False"


def test_the_variable_turns_them_on() -> None:
    pytest.importorskip("nvtx")
    code = (
        "import sys, torch, cmr.kernels; from cmr.kernels import ranges, score; "
        "score.state_scores(torch.ones(1, 4, 8), 2); "  # runs inside a real range
        "print(callable(ranges.annotate), 'nvtx' in sys.modules)"
    )
    assert in_a_process(code, **{ranges.VARIABLE: "1"}) == "True True"


def test_a_range_around_an_operation(opened: list[tuple[str, str]]) -> None:
    score()
    assert opened == []
    with ranges.shown():
        score()
    assert opened == [("cmr.score", "cmr")]
    score()
    assert len(opened) == 1


def test_the_documented_names() -> None:
    assert ranges.NAMES == ("cmr.score", "cmr.write", "cmr.retrieve", "cmr.reweave")
    for name in ranges.NAMES:
        assert name in (ranges.__doc__ or "")


def test_nested_and_restored_after_an_exception(opened: list[tuple[str, str]]) -> None:
    with pytest.raises(ZeroDivisionError), ranges.shown():
        outer = ranges.annotate
        with pytest.raises(KeyError), ranges.shown():
            raise KeyError
        assert ranges.annotate is outer is not None
        raise ZeroDivisionError
    assert ranges.annotate is None


def test_without_the_package_a_request_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # import nvtx then raises ImportError
    monkeypatch.setattr(ranges, "annotate", None)
    with pytest.raises(KernelError, match="nvtx is not installed"), ranges.shown():
        pytest.fail("shown() let it pass")
    assert ranges.annotate is None


def test_an_error_inside_a_range_closes_it(opened: list, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Range:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *error: object) -> None:
            closed.append(error[0])

    monkeypatch.setattr(ranges, "annotate", lambda name: Range())
    monkeypatch.setattr("cmr.kernels.score.pool_blocks", _fail)
    with pytest.raises(ZeroDivisionError):
        score()
    assert closed == [ZeroDivisionError]


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_off_they_run_no_code(opened: list[tuple[str, str]]) -> None:
    """What is called while ranges are off and on, seen by the interpreter's own profiler."""

    def called() -> set[str]:
        files: set[str] = set()

        def note(frame, event: str, _: object) -> None:
            if event == "call":
                files.add(frame.f_code.co_filename)

        sys.setprofile(note)
        try:
            score()
        finally:
            sys.setprofile(None)
        return files

    score()
    off = called()
    assert dispatch.__file__ in off, "the operation was not seen"
    assert ranges.__file__ not in off
    with ranges.shown():
        assert ranges.__file__ in called()
