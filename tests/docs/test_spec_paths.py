"""The table of the specification's names is complete, true, and the one in the documents."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

import cmr
from tests.docs.blocks import ROOT
from tests.docs.spec_paths import BEGIN, END, MODULES, table

SPEC = sorted((ROOT / "docs" / "spec").glob("*.md"))
CLASSES = re.compile(
    r"\b(?:[A-Z][A-Za-z]+(?:Transformer|Model|Manager|Optimizer|Prefetcher|Scheduler|Scorer|"
    r"Retriever|Matcher|Ranker|Hierarchy|Cache|Reconstructor|Integrator|Blender|Adapter|Monitor|"
    r"Buffer|Entry|Context)|create_[a-z_]+)\b"
)
FOLDERS = re.compile(r"\]\((\w+)/README\.md\)")
FILES = re.compile(r"\(`(\w+)\.py`\)")
PATHS = re.compile(r"\bfrom (models(?:\.\w+)?) import|\b(models\.[a-z_]+)\b")


def written(pattern: re.Pattern[str]) -> set[str]:
    """What the pattern's groups, or all of it, find in the specification."""
    found = set()
    for path in SPEC:
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            found.add(next((group for group in match.groups() if group), match.group()))
    return found


def test_every_class_of_the_specification_is_in_the_table() -> None:
    classes = written(CLASSES)
    assert "FullCMRModel" in classes and len(classes) > 25
    assert classes <= {name for names in MODULES.values() for name in names}


def test_every_module_of_the_specification_is_in_the_table() -> None:
    paths = written(PATHS) | {f"models.{name}" for name in written(FILES)}
    folders = written(FOLDERS)
    assert len(folders) == 7 and "models.cmr_integrated" in paths
    assert paths | folders <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_name_imports_from_the_package(module: str) -> None:
    for name in MODULES[module]:
        assert name in cmr.__all__
        assert callable(getattr(cmr, name))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_the_specification_imports_under_the_package(module: str) -> None:
    found = importlib.import_module(f"cmr.{module}")
    assert set(MODULES[module]) <= set(found.__all__) <= set(dir(found))
    for name in MODULES[module]:
        assert getattr(found, name) is getattr(cmr, name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        found.Nothing  # noqa: B018


def test_they_load_what_is_asked_for_and_no_more() -> None:
    modules = ", ".join(f"cmr.{module}" for module in MODULES)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_documents_show_the_table() -> None:
    page = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")
    start = page.index(BEGIN)
    shown = page[start : page.index(END, start) + len(END)]
    assert shown == table(), "paste the output of `python -m tests.docs.spec_paths`"
