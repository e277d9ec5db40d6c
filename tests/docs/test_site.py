"""The documentation builds as a site without a warning, whole, and asks nobody for anything."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import cmr
import cmr.kernels
from cmr.cli.app import app
from tests.docs.blocks import ROOT

pytest.importorskip("mkdocs", reason="the extra `docs`")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)")


def hook(name: str) -> ModuleType:
    """A hook of the site, as the build loads it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `mkdocs build --strict` does: a warning is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    place = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return place


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: FETCHED.findall(text(page)) for page in pages} == {
        page.name: [] for page in pages
    }


def test_files_of_the_repository_are_in_the_site(site: Path) -> None:
    rows = "benchmarks/results/tiers.jsonl"
    assert text(site / "repository" / rows) == text(ROOT / rows)
    assert f'href="repository/{rows}"' in text(site / "concepts.html")
    assert 'href="../retrieval.html#a-strategy' not in text(site / "contributing.html")
    assert 'href="retrieval.html#a-strategy-of-ones-own"' in text(site / "contributing.html")


def test_every_public_name_stands_in_the_reference_once(site: Path) -> None:
    shown = Counter(
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in DIRECTIVE.findall(text(page))
    )
    public = {f"cmr.{name}" for name in cmr.__all__}
    public |= {f"cmr.kernels.{name}" for name in cmr.kernels.__all__ if name != "OPERATIONS"}
    assert public - set(shown) == set()
    assert [name for name, times in shown.items() if times > 1] == []
    pages = "".join(text(page) for page in (site / "api").glob("*.html"))
    assert [name for name in shown if f'id="{name}"' not in pages] == []


def test_every_setting_stands_on_its_page_with_its_default(site: Path) -> None:
    settings = hook("settings")
    page = text(site / "settings.html")
    for kind in settings.TITLES:
        for item in dataclasses.fields(kind):
            if item.metadata:
                _, found, behind = page.partition(f'id="{settings.anchor(kind, item.name)}"')
                default = f"Default <code>{item.default!r}</code>".replace("'", "['x27&#;]+")
                assert found and re.search(default, behind.partition("<h3")[0]), item.name


def test_what_a_setting_needs_is_a_setting_and_not_the_default() -> None:
    needed = hook("settings").FIRST_SET
    usual = flat(cmr.CMRConfig())
    for name, others in needed.items():
        assert name in usual
        assert others.items() <= flat(cmr.CMRConfig().with_overrides(**others)).items()
        assert not others.items() <= usual.items()


def flat(config: cmr.CMRConfig) -> dict[str, Any]:
    """Settings by their names, whatever their topic."""
    found = config.to_dict()
    return {
        name: value
        for topic in found.values()
        if isinstance(topic, dict)
        for name, value in topic.items()
    }


def test_a_meaning_is_the_whole_of_what_its_docstring_says() -> None:
    said = hook("settings").meanings(cmr.RetrievalConfig)
    assert said["refresh"] == "Decode steps between retrievals, 1 or more."
    assert said["ratio"].endswith("so that it may be the one that is meant.")
    assert "`'multi_criteria'`" in said["strategy"]


def test_every_command_stands_on_its_page(site: Path) -> None:
    page = text(site / "command-line.html")
    commands = typer.main.get_command(app).commands
    for name in {*commands} - {"memory"}:
        assert re.search(rf"<h2[^>]*>cmr {name}<", page), name
    for option in commands["serve"].params:
        assert f"<code>{option.opts[0]}</code>" in page


def test_links_that_leave_the_documents_are_told_from_others() -> None:
    linked = hook("links").linked
    words = (
        "[a](../benchmarks/results/tiers.jsonl), [b](memory.md#tiers), [c](https://example.org/x), "
        "[d](#here), [e](no-such-file.md), ![f](../benchmarks/results/retrieval.png)"
    )
    assert linked("docs/concepts.md", words) == {
        "benchmarks/results/tiers.jsonl",
        "docs/memory.md",
        "benchmarks/results/retrieval.png",
    }
