"""Every block of Python in the documents runs as it is written.

What is changed before it runs stands in `given.py` (names of hub models, sizes) and in
`spec_paths.py` (imports). A block that is not run is named below, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from cmr import CMRConfig
from cmr.integration.models.backbone.descriptions import config_of
from tests.docs.blocks import ROOT, Block, blocks, documents, of_file
from tests.docs.given import Given
from tests.docs.running import run, wanted

NOT_RUN = {
    "docs/platforms.md#1": "torchrun starts it in several processes, as "
    "tests/integration/decoder/test_tensor_parallel.py does",
    "docs/serving.md#1": "a server must run that it asks, as in tests/serving/test_answers.py",
    "docs/serving.md#2": "a server must run that it asks, as in tests/serving/test_responses.py",
}
"""Block (file and number) to the reason why it cannot run."""
READ_ON = {"docs/models.md"}
"""Documents whose blocks go on with the names of those before them; elsewhere each stands alone."""

SECTIONS = ("memory_config", "retrieval_config", "reconstruction_config", "optimization_config")


def settings(names: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a memory among the names that a block makes."""
    found = {name: names[name] for name in SECTIONS if isinstance(names.get(name), dict)}
    return {**found, **names.get("cmr_config", {})}


def pieces() -> list[list[Block]]:
    """What is run at once: a block, or all of a document that is read on."""
    found: dict[str, list[Block]] = {}
    for block in blocks("python"):
        if block.name not in NOT_RUN:
            found.setdefault(block.file if block.file in READ_ON else block.name, []).append(block)
    return list(found.values())


@pytest.mark.parametrize("piece", pieces(), ids=lambda piece: piece[0].name)
def test_the_blocks_run(piece: list[Block], given: Given) -> None:
    names: Mapping[str, Any] = {}
    for block in piece:
        names = run(block, given, names)
    CMRConfig.from_dict(settings(names))
    if "model_config" in names:
        assert config_of(names["model_config"]).num_hidden_layers == 12


def test_the_first_program_answers_from_the_letter(
    smollm2: Any, given: Given, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmr.demo.load_smollm2", lambda: smollm2)
    run(of_file("docs/index.md", "python")[0], given)
    answer, passage = capsys.readouterr().out.strip().splitlines()
    assert "Marta Lindqvist" in answer and passage.startswith("Dear Anna")


def test_the_offline_quick_start_gives_what_it_says(given: Given) -> None:
    stats = run(of_file("docs/spec/project-readme.md", "python")[0], given)["outputs"][
        "memory_stats"
    ]
    assert stats["total_captured_states"] == 2 * 3  # two layers, a buffer of three
    assert sorted(stats["layers_with_memory"]) == [2, 4]


@pytest.mark.parametrize(
    ("file", "number"),
    [("docs/spec/project-readme.md", 1), ("docs/spec/python-documentation.md", 0)],
)
def test_the_quick_starts_give_what_they_say(file: str, number: int, given: Given) -> None:
    names = run(of_file(file, "python")[number], given)
    assert names["generated_states"].shape == (1, len("Your input text here"), 256)
    assert set(names["memory_stats"]) == {"memory_stats", "performance_stats", "retrieval_stats"}


def test_what_is_not_run_is_there_and_has_a_reason() -> None:
    names = {block.name for block in blocks("python")}
    assert set(NOT_RUN) <= names
    for reason in NOT_RUN.values():  # each says where else it is held
        assert all((ROOT / path).is_file() for path in re.findall(r"tests/\S+\.py", reason))
        assert "tests/" in reason


@pytest.mark.parametrize("file", documents())
def test_no_python_stands_outside_of_the_blocks(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for block in of_file(file, "python"):
        assert block.code in text
        text = text.replace(block.code, "")
    code = re.compile(
        r"^(?:(?:from|import) [\w.]+.* import|\w+ = (?:[\w.]+\(|\{)|print\().*$", re.M
    )
    assert code.findall(text) == []


def test_every_document_with_code_is_found() -> None:
    files = {block.file for block in blocks("python")}
    assert {"README.md", "docs/memory.md", "docs/spec/project-readme.md"} <= files


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a = b\nc = a", ["b"]),
        ("with f() as a:\n    a.b(c)", ["f", "c"]),
        ("class A:\n    x: int = 0\n    def g(self):\n        return y + x", ["y", "x"]),
        ("import a\nfrom b import c\nprint(a, c, len)", []),
        ("m.x\nm = 1", ["m"]),
    ],
)
def test_names_taken_for_given_are_told_from_those_made(code: str, names: list[str]) -> None:
    assert wanted(compile(code, "block", "exec")) == names
