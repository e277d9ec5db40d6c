"""Every kernel as it is shipped, compiled for GPUs that are not here, and held to its limits."""

import importlib
import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

from benchmarks.compiled.cases import all_cases  # noqa: E402 - needs triton
from benchmarks.compiled.compiler import compile_launches, recording  # noqa: E402
from benchmarks.compiled.integers import compiles, launches, together  # noqa: E402
from benchmarks.compiled.table import compile_all, read  # noqa: E402
from cmr.kernels.dispatch import REGISTERED  # noqa: E402
from cmr.kernels.gpu._launch import TARGETS  # noqa: E402

CASES = all_cases()

pytestmark = pytest.mark.timeout(1200)  # whichever test comes first waits for the compiler


@pytest.fixture(scope="module")
def rows():
    """The figures of everything, compiled anew: by case and architecture."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in compile_all(workers=min(2, os.cpu_count() or 1)):
        found.setdefault((row["case"], row["target"]), []).append(row)
    return found


def test_everything_compiles_for_every_architecture(rows) -> None:
    assert set(rows) == {(case, target) for case in CASES for target in TARGETS}


@pytest.mark.parametrize("name", sorted(CASES))
def test_gates(rows, name: str) -> None:
    case = CASES[name]
    for target in TARGETS:
        launched = rows[name, target]
        assert len(launched) == case.launches, f"{name} on {target}: {len(launched)} launches"
        for row in launched:
            where = f"{row['kernel']} of {name} on {target}: {row}"
            assert row["stack"] == 0 and row["spills"] == 0, f"spills: {where}"
            assert row["registers"] <= case.registers, f"registers: {where}"
            assert row["shared"] <= TARGETS[target].shared, f"shared memory: {where}"
            assert row["occupancy"] is None or row["occupancy"] > 0, f"does not fit: {where}"
            if row["kernel"] in case.matrix:
                assert row["matrix"], f"no matrix instruction: {where}"
            if row["kernel"] in case.wide:
                assert row["wide_loads"], f"no 128-bit load: {where}"


def test_the_table_is_what_the_code_compiles_to(rows) -> None:
    kept = read()
    if kept[0]["triton"] != triton.__version__:
        pytest.skip(f"the table was made by triton {kept[0]['triton']}")
    fresh = [row for key in sorted(rows) for row in rows[key]]
    kept.sort(key=lambda row: (row["case"], row["target"]))
    differing = [(a, b) for a, b in zip(kept, fresh, strict=False) if a != b]
    assert len(kept) == len(fresh) and not differing, (
        f"run python -m benchmarks.compiled and look at the differences; first: {differing[:1]}"
    )


def test_every_operation_has_a_case() -> None:
    importlib.import_module("cmr.integration.core")  # registers those of a search, too
    hosts = {host.replace(":", ".") for host in REGISTERED.values()}
    assert hosts == {name.partition("/")[0] for name in CASES}


def test_a_new_length_does_not_recompile() -> None:
    """The text's length is an argument, never a constant: only its divisibility may matter."""
    import torch

    from benchmarks.compiled.cases.score import _state_scores as at

    sources = set()
    for tokens in (512, 1024, 4096):
        launch = compile_launches(at(tokens, 576, torch.bfloat16).call, "sm_90")[0]
        sources.add(launch.compiled.asm["ptx"])
    assert len(sources) == 1


def test_importing_the_library_imports_no_triton() -> None:
    code = "import cmr.kernels, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_grid_launches_nothing() -> None:
    import torch

    from benchmarks.compiled.cases.score import _state_scores as at

    with recording() as noted:
        at(0, 576, torch.bfloat16).call()
    assert noted == []


def _of_each_kernel() -> list[tuple[str, int]]:
    """The first case of each kernel, with the number of its launch."""
    found: dict[str, tuple[str, int]] = {}
    for name in sorted(CASES):
        for number, (kernel, *_) in enumerate(launches(name, "sm_90")):
            found.setdefault(kernel.fn.__name__, (name, number))
    return sorted(found.values())


@pytest.mark.parametrize(("name", "number"), _of_each_kernel())
def test_integers_of_one_compile(name: str, number: int) -> None:
    """Triton makes a constant of an argument that is 1: of one token, one block, one row."""
    launched = launches(name, "sm_90")[number]
    ones = next(together(launched))
    assert ones and set(ones.values()) == {1}
    assert compiles(launched, ones, "sm_90") is None
