"""`python -m benchmarks.gpu --tiny`, whole, and its page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")  # kernels are compiled

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.log import BROKEN, NAME, Broken, Run
from benchmarks.gpu.parts import compiling
from benchmarks.shared import rows
from benchmarks.shared.device import Gpu
from tests.benchmarks.gpu.fake import Fake
from tests.gpu.every import EVERY

PAGE = rows.ROOT / "docs" / "profiling.md"
BEGIN = "$ python -m benchmarks.gpu --tiny"


def shown() -> list[str]:
    """The lines of the output on the page."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN + "\n")
    assert rest, "the page shows no output"
    return rest.partition("```")[0].rstrip().splitlines()


def shape(line: str) -> str:
    """A line without its figures and what is the machine's."""
    part, _, rest = line.partition(" ")
    if part == "environment":
        rest = rest.partition(":")[0]
    rest = re.sub(r"Nothing here ran on a GPU: .*", "", rest)
    rest = re.sub(r"The worst step is.*|rows: .*", "", rest)
    return re.sub(r"\d[\d.,]*", "#", f"{part} {rest}")


def test_all_of_it_small_on_a_cpu(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--tiny", "--device", "cpu", "--results", str(place)]) is None
    found = rows.load(NAME, place)
    said = capsys.readouterr().out
    assert {row["part"] for row in found} == set(command.PARTS)
    assert len({row["run"] for row in found}) == 1
    for row in found:
        assert row["device"] == "cpu" and row["tiny"] and row["backend"].startswith("reference")
        assert row["outcome"] == "ok" or row["why"] == "small sizes only", row
    left = next(row for row in found if row["outcome"] == "left out")
    checked = [row for row in found if row["part"] == "checks" and row is not left]
    assert len(left["jobs"]) + len(checked) == len(EVERY)
    assert "Nothing here ran on a GPU" in said
    uneven = "The worst step is"  # one or none, as the machine has it
    have, page = (
        [shape(line) for line in lines if not line.startswith((uneven, "rows:"))]
        for lines in (said.rstrip().splitlines(), shown())
    )
    assert have == page, "docs/profiling.md shows another output than this"


def test_a_part_in_a_process_of_its_own_goes_on_where_the_last_one_ended(place: Path) -> None:
    words = ["--tiny", "--device", "cpu", "--parts", "environment", "--run", "abc", "--from", "1"]
    assert command.main([*words, "--command", "as typed", "--results", str(place)]) == 0
    assert rows.written == [], "the process that began it says where they are"
    (row,) = rows.load(NAME, place)
    assert row["command"] == "as typed"
    assert (row["run"], row["job"], row["number"]) == ("abc", "a launch", 1)


def test_on_a_gpu_every_part_has_its_process(
    fake: Fake, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, list[str]]] = []

    def supervise(run: Run, name: str, words, start: int = 0) -> None:
        begun.append((run.part, words(start, run.left())))

    monkeypatch.setattr(command, "supervise", supervise)
    monkeypatch.setattr(command, "_begin", lambda run: pytest.fail("in this process"))
    command.main(["--minutes", "10", "--results", str(place)])
    assert [part for part, _ in begun] == list(command.PARTS)
    assert begun[0][1][begun[0][1].index("--command") + 1].startswith("python -m ")
    words = dict(begun)["checks"]
    assert words[1:3] == ["-m", "benchmarks.gpu"] and words[words.index("--parts") + 1] == "checks"
    assert words[words.index("--results") + 1] == str(place)
    minutes = float(words[words.index("--minutes") + 1])
    assert 2.4 < minutes < 4.0, "what those before did not use is its, too"


def test_a_single_part_runs_here_and_goes_on_elsewhere_where_the_device_breaks(
    fake: Fake, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def breaking(run: Run) -> None:
        raise Broken(6)

    monkeypatch.setattr(command, "_begin", breaking)
    monkeypatch.setattr(command, "supervise", lambda run, name, words, start: begun.append(start))
    command.main(["--parts", "step", "--results", str(place)])
    assert begun == [7]
    assert command.main(["--parts", "step", "--run", "r", "--results", str(place)]) == BROKEN


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--tiny runs small sizes on the CPU"),
        (["--device", "cuda"], "there is no CUDA device"),
        (["--tiny", "--minutes", "0"], "minutes above 0 expected, got '0'"),
        (["--tiny", "--parts", "speed"], "invalid choice: 'speed'"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "target", "why"),
    [
        ((9, 0), "sm_90", "this device's"),
        ((10, 3), "sm_100", "the nearest to this device's sm_103"),
        ((7, 5), "sm_120", "the nearest to this device's sm_75"),
    ],
)
def test_the_architecture_to_compile_for(
    version: tuple[int, int], target: str, why: str, fake: Fake
) -> None:
    fake.properties.major, fake.properties.minor = version
    known = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942"]
    assert compiling.target_of("cuda", known) == (target, why)


def test_the_architecture_of_an_amd_gpu(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.torch.version, "hip", "7.0")
    assert compiling.target_of("cuda", ["sm_80", "gfx942"]) == ("gfx942", "this device's")


def test_where_kernels_are_interpreted_none_is_compiled(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    compiling.begin(Run("compile", Gpu(), True, 60.0, {"run": "r"}))
    (row,) = rows.load(NAME, place)
    assert row["outcome"] == "left out" and "interprets" in row["why"]


def test_what_spills_or_does_not_compile_is_a_row(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.compiled import table

    def made(jobs, workers, left):
        yield jobs[0][0], table.Compiled([{"kernel": "k", "spills": 3, "stack": 8}], 0.5)
        yield jobs[1][0], RuntimeError("b: no such instruction")

    monkeypatch.setattr(table, "as_they_come", made)
    compiling.begin(Run("compile", SimpleNamespace(kind="cpu"), True, 60.0, {"run": "r"}))
    one, other, whole = rows.load(NAME, place)
    assert one["spills"] == 11 and one["seconds"] == 0.5
    assert other["outcome"] == "failed" and "no such instruction" in other["said"]
    assert whole["spilled"] == [one["job"]] and whole["calls"] == 2


def test_compiling_ends_when_its_time_is_over() -> None:
    from benchmarks.compiled import table

    assert list(table.as_they_come([("ring_link.ring_link/16", "sm_90")], 1, lambda: 0.0)) == []
    assert "torch" in sys.modules
