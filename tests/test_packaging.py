"""What is shipped: a whole wheel that runs by itself, a source distribution that can be tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import cmr

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}
IMPORTED = {
    "faiss-cpu": "faiss",
    "faiss-gpu": "faiss",
    "opentelemetry-api": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "pytest-benchmark": "benchmark",
    "pytest-timeout": "timeout",
    "pytest-xdist": "xdist",
    "rank-bm25": "rank_bm25",
    "ray[serve]": "ray",
    "mkdocs-material": "material",
    "mkdocstrings[python]": "mkdocstrings",
    "pre-commit": "pre-commit",
}
"""Packages that are named otherwise where they are used."""


def tracked() -> set[str]:
    """Files of the repository, new ones too, without what git ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout of git")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made of the source distribution, and that: of the tracked files alone."""
    pytest.importorskip("build", reason="the extra `dev`")
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(place.glob("*.whl")), next(place.glob("*.tar.gz"))


@pytest.mark.slow
def test_the_wheel_has_all_of_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        described = wheel.read(metadata).decode()
    assert names == {name for name in tracked() if name.startswith("cmr/")}
    assert {"cmr/py.typed", "cmr/integration/calibration/facts.json"} <= names
    assert any(name.startswith("cmr/calibrations/") for name in names)
    assert f"Version: {cmr.__version__}\n" in described


@pytest.mark.slow
def test_the_source_distribution_can_be_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {name for name in tracked() if not name.startswith(".github/")} - names <= NOT_SHIPPED


@pytest.mark.slow
def test_an_installed_wheel_runs_by_itself(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In a new environment, whose dependencies are those of this one; nothing is downloaded."""
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*command, "--no-index", str(built[0])], check=True, env=clean)
    # A path in it is added behind; ours knows `cmr` by a finder that only its own `.pth` starts.
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    program = (
        "import cmr, importlib.metadata, importlib.resources as r; from cmr.cli import main; "
        "print(cmr.__file__, importlib.metadata.version('cmr')); "
        "assert r.files('cmr').joinpath('py.typed').is_file(); "
        "from cmr.integration.calibration.facts import FACTS; assert len(FACTS) == 48"
    )
    for words in ([python, "-c", program], [home / "bin" / "cmr", "info"]):
        done = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if words[1] == "-c":
            assert done.stdout.split() == [str(site / "cmr" / "__init__.py"), cmr.__version__]
        else:
            assert cmr.__version__ in done.stdout


def extras() -> dict[str, list[str]]:
    """Extra to what it names, as written."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    found = re.findall(r"^(\w+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL)
    return {extra: re.findall(r'"([^"]+)"', names) for extra, names in found}


def package(written: str) -> str:
    """The package in a requirement."""
    return re.split(r"[<>=;]", written)[0].strip()


def test_every_package_of_an_extra_is_used_somewhere() -> None:
    places = [path for top in ("cmr", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    places += [ROOT / name for name in (".ci/run", "CONTRIBUTING.md", "mkdocs.yml", "setup.py")]
    words = set(re.findall(r"[\w-]+", "\n".join(path.read_text("utf-8") for path in places)))
    named = {package(one) for names in extras().values() for one in names}
    named = {name for name in named if not name.startswith("cmr[")}
    assert len(named) > 25
    assert {name for name in named if IMPORTED.get(name, name) not in words} == set()


def test_every_extra_that_another_one_names_is_there() -> None:
    known = extras()
    wanted = [one for names in known.values() for one in names if one.startswith("cmr[")]
    assert wanted
    for one in wanted:
        assert set(one.removeprefix("cmr[").rstrip("]").split(",")) <= set(known)


def test_what_an_extra_names_is_pinned() -> None:
    """`faiss-gpu` is left to whoever has a GPU, where its build must fit the driver."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {package(line) for line in lines if not line.startswith("#")}
    named = {package(one).partition("[")[0] for names in extras().values() for one in names}
    assert named - pinned - {"cmr", "faiss-gpu"} == set()


def test_the_version_is_the_same_wherever_it_stands() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\nversion: {cmr.__version__}\n" in citation
    assert f'\nversion = "{cmr.__version__}"\n' in project


def test_the_forms_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert content["name"] and content["description"]
            assert all("label" in part["attributes"] for part in content["body"][1:])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0" and citation["authors"]
