"""A folder in place of the hub, a folder of its own for each block, and nothing left attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

import cmr
import cmr.demo
from cmr.demo.conversion import quiet
from cmr.integration.calibration import calibrate as calibrating
from cmr.integration.calibration.facts import FACTS
from tests.docs import tiny
from tests.docs.given import HUB, TEXT, Given


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family to the folder of its tiny decoder."""
    root = tmp_path_factory.mktemp("hub")
    with quiet():
        return {family: tiny.save(family, root / family) for family in sorted(set(HUB.values()))}


@pytest.fixture(scope="session")
def loaded(folders: dict[str, str]) -> Callable[[str], tuple[Any, Any]]:
    """Family to its model and tokenizer, loaded once: whoever attaches detaches."""
    found: dict[str, tuple[Any, Any]] = {}
    models, tokenizers = transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    from_folder = (models.from_pretrained, tokenizers.from_pretrained)

    def get(family: str) -> tuple[Any, Any]:
        if family not in found:
            with quiet():
                model, tokenizer = (load(folders[family]) for load in from_folder)
            found[family] = model.eval(), tokenizer
        return found[family]

    return get


@pytest.fixture
def given(loaded: Callable[[str], tuple[Any, Any]]) -> Given:
    return Given(loaded)


def short_text(tokenizer: Any, tokens: int, seed: int) -> list[list[int]]:
    """In place of 36,000 tokens: a calibration of random weights says nothing, but must run."""
    return [tokenizer(f"{TEXT} Page {number}.").input_ids for number in range(8)]


@pytest.fixture(autouse=True)
def a_place(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    folders: dict[str, str],
    loaded: Callable[[str], tuple[Any, Any]],
) -> Iterator[None]:
    """Names of hub models mean tiny ones, files lie in `tmp_path`, memories end with the test."""
    for auto in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"):
        kind = getattr(transformers, auto)

        def load(name: Any, *args: Any, _load: Any = kind.from_pretrained, **kwargs: Any) -> Any:
            return _load(folders[HUB[name]] if name in HUB else name, *args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cmr.demo, "load_smollm2", lambda: loaded("llama"))
    monkeypatch.setattr(calibrating, "FACTS", FACTS[:3])
    monkeypatch.setattr(calibrating, "ordinary_text", short_text)
    made: list[cmr.Memory] = []
    begin = cmr.Memory.__init__

    def note(self: cmr.Memory, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        begin(self, *args, **kwargs)

    monkeypatch.setattr(cmr.Memory, "__init__", note)
    yield
    for memory in made:
        if getattr(memory, "_attached", False):
            memory.detach()
