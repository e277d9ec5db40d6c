"""The house: imports point one way, no circle, folders in order, files that are read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cmr"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cmr.errors", "cmr._folders", "cmr._frames"),
    ("cmr._fork",),
    ("cmr._warning", "cmr._names"),
    ("cmr.config",),
    ("cmr.kernels",),
    ("cmr.memory",),
    ("cmr.memory.buffer",),
    ("cmr.retrieval", "cmr.reconstruction"),
    ("cmr.retrieval.entries",),
    ("cmr.integration.decoder",),
    ("cmr.integration.window",),
    ("cmr.integration.reweave",),
    ("cmr.integration.capture",),
    ("cmr.integration.requests",),
    # Where a calibration lies is asked to attach; to measure one takes an attached memory.
    ("cmr.integration.calibration.files", "cmr.integration.calibration.sampled"),
    ("cmr.integration.layout",),
    ("cmr.integration.footprint",),
    ("cmr.integration.core",),
    ("cmr.integration.hooks",),
    ("cmr.integration.files",),
    ("cmr.integration",),
    ("cmr.integration.calibration", "cmr.integration.user_hooks"),
    ("cmr.integration.models",),
    ("cmr.optimization", "cmr.monitoring"),
    # The fullest classes have everything, what steers and watches them as well.
    ("cmr.integration.models.full",),
    ("cmr.integration.models.mistral",),
    ("cmr.demo",),
    ("cmr.evaluation",),
    ("cmr.experiments", "cmr.models", "cmr.services", "cmr.utils"),
    # The command line starts a server and knows it; the server knows nothing of the command line.
    ("cmr.serving",),
    ("cmr.cli",),
    ("cmr.__main__",),
)
"""From the ground up: a module imports from its own floor's part and from the floors below."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, types: bool) -> Iterator[str]:
    """The package's modules that a file imports, wherever the import stands.

    Args:
        path: the file.
        types: with those that only type checkers run.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            skipped |= {inner for each in node.body for inner in ast.walk(each)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield node.module


def part_of(module: str) -> tuple[int, str]:
    """A module's floor and the part of it that the module belongs to."""
    fitting = [
        (len(part), floor, part)
        for floor, parts in enumerate(FLOORS)
        for part in parts
        if module == part or module.startswith(part + ".")
    ]
    if not fitting:
        raise AssertionError(f"{module}: on no floor; say in FLOORS where it belongs")
    _, floor, part = max(fitting)
    return floor, part


def test_imports_point_down() -> None:
    """The package's front door, `cmr/__init__.py`, names everything and is left out."""
    wrong = []
    for module, path in MODULES.items():
        if module == "cmr":
            continue
        floor, part = part_of(module)
        for other in imported(path, types=False):
            if other == "cmr":
                continue  # the version, or a public name where the front door is meant
            below, its = part_of(other)
            if below > floor or (below == floor and its != part):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = {
        module: set(imported(path, types=False)) - {module, "cmr"}
        for module, path in MODULES.items()
        if module != "cmr"
    }
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(edges.get(module, ())):
                follow(other, (*way, module))
            done.add(module)

    for module in edges:
        follow(module, ())


@pytest.mark.parametrize("top", ["cmr", "benchmarks", "tests"])
def test_no_folder_has_more_than_twenty_files(top: str) -> None:
    folders = {path.parent for path in (ROOT / top).rglob("*.py")}
    full = {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if (count := len([*folder.glob("*.py")]) - (folder / "__init__.py").exists()) > 20
    }
    assert not full


def test_files_are_short() -> None:
    """The last two are ratchets: what the package has is the most that it may have."""
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    long = {name: lines for name, lines in lengths.items() if lines > 400}
    assert not long, "a file with more than 400 lines has a second job: split it"
    middle, total = median(lengths.values()), sum(lengths.values())
    assert middle <= 136, f"the median file has {middle} lines: new code in a file of its own?"
    assert total <= 56_650, f"{total} lines in cmr/: what has lost its caller since?"


def test_the_why_is_told() -> None:
    subtle = ("kernels", "memory", "retrieval", "reconstruction", "integration")
    lines = [
        line.strip()
        for name, path in MODULES.items()
        if name.startswith(tuple(f"cmr.{part}" for part in subtle))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    share = sum(line.startswith("#") for line in lines) / len(lines)
    assert share >= 0.03, (
        f"{100 * share:.1f} % of the lines are comments: subtle code lacks its why"
    )
