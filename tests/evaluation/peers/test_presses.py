"""Presses answer from another process; a stand-in for kvpress says what they keep."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr.evaluation import EvaluationError, evaluate, register_system
from cmr.evaluation.peers import presses as peers
from cmr.evaluation.peers.presses import PRESSES, PYTHON, Presses
from cmr.evaluation.prompts import chat, up_to_question
from cmr.evaluation.registry import MAKERS
from cmr.evaluation.systems import Reply, Spans, System
from tests.evaluation.conftest import DOCUMENTS, QUESTIONS, SETTINGS

STAND_IN = '''
from contextlib import contextmanager


class BasePress:
    def post_init_from_model(self, model):
        self.ready = True

    @contextmanager
    def __call__(self, model):
        self.post_init_from_model(model)
        hooks = [
            layer.self_attn.register_forward_hook(self.forward_hook, with_kwargs=True)
            for layer in model.model.layers
        ]
        yield
        for hook in hooks:
            hook.remove()


class _Press(BasePress):
    """Keeps the newest tokens."""

    def __init__(self, compression_ratio):
        self.ratio = compression_ratio

    def forward_hook(self, module, input, kwargs, output):
        assert self.ready
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        many = round(layer.keys.shape[-2] * (1 - self.ratio))
        layer.keys = layer.keys[..., -many:, :]
        layer.values = layer.values[..., -many:, :]
        return output


SnapKVPress = ExpectedAttentionPress = KnormPress = StreamingLLMPress = _Press
print("a word that is no answer")
'''
TOKENS = 24


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that finds a package of kvpress' name."""
    package = tmp_path / "site" / "kvpress"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    about = tmp_path / "site" / "kvpress-0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kvpress\nVersion: 0.0\n")
    place = tmp_path / "python"
    place.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON, str(place))
    return place


@pytest.fixture
def presses(there: Path, decoder: tuple[Any, Any]) -> Iterator[Presses]:
    found = Presses(decoder[0])
    yield found
    found.close()


def test_all_that_is_kept_answers_as_the_model_does(
    presses: Presses, decoder: tuple[Any, Any]
) -> None:
    """Also a second time: what was asked before is not in the text."""
    model, tokenizer = decoder
    ids = tokenizer(DOCUMENTS["garden.txt"], add_special_tokens=False)["input_ids"]
    start = up_to_question(tokenizer, ids)
    assert presses.versions["kvpress"] == "0.0"
    held = presses.prefill(start, {"all": ("knorm", len(start))})["all"]
    layer = model.config.num_key_value_heads * model.config.head_dim * 4 * 2
    assert held["kept_tokens"] == len(start) and held["seconds"] > 0
    assert held["kept_bytes"] == len(start) * layer * model.config.num_hidden_layers
    for question in ("What is in the bread?", "Why?", "What is in the bread?"):
        prompt = chat(tokenizer, question, ids)
        with torch.inference_mode():
            row = torch.tensor([prompt])
            out = model.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=TOKENS, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        want = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()
        said = presses.answer("all", prompt[len(start) :], TOKENS)
        assert said["text"] == want
        assert 0 < said["first_seconds"] <= said["seconds"]


def test_so_many_are_kept_as_is_said(presses: Presses) -> None:
    """Several presses of one reading know nothing of each other."""
    ids = list(range(3, 203))
    held = presses.prefill(
        ids,
        {
            "tokens": ("snapkv", 40),
            "share": ("knorm", 0.25),
            "all": ("snapkv", 1_000),
            "as many": ("streaming-llm", 40),
        },
    )
    assert {name: of["kept_tokens"] for name, of in held.items()} == {
        "tokens": 40, "share": 50, "all": 200, "as many": 40,
    }  # fmt: skip
    said = {name: presses.answer(name, [7, 8, 9], TOKENS)["text"] for name in held}
    assert said["tokens"] == said["as many"] != said["all"], "what was kept changes nothing"


def test_they_are_systems_of_an_evaluation(there: Path, decoder: tuple[Any, Any]) -> None:
    found = evaluate(
        *decoder, DOCUMENTS, QUESTIONS, systems=["full-context", "kvpress"], kept=30,
        settings=SETTINGS, new_tokens=2,
    )  # fmt: skip
    assert [row["system"] for row in found.summary()] == ["full-context", *PRESSES]
    for row in found.rows:
        if row["system"] in PRESSES:
            assert row["shown"] is None and row["found"] is None
            assert row["shown_tokens"] == row["kept_tokens"] == 30 and row["kept_bytes"] > 0
            assert row["kvpress"] == "0.0"
    assert "30" in found.report()


def test_other_weights_are_refused(there: Path, decoder: tuple[Any, Any]) -> None:
    model, _ = decoder
    weight = model.model.norm.weight
    with torch.no_grad():
        weight.add_(1.0)
    try:
        with pytest.raises(EvaluationError, match="has other weights than the one"):
            Presses(model)
    finally:
        with torch.no_grad():
            weight.sub_(1.0)


def test_what_went_wrong_there_is_told(presses: Presses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PRESSES, "new", "NewPress")
    with pytest.raises(EvaluationError, match=r"kvpress: AttributeError: .*NewPress"):
        presses.prefill([3, 4, 5], {"one": ("new", 0.5)})
    presses._process.kill()
    with pytest.raises(EvaluationError, match="kvpress: its process ended"):
        presses.prefill([3, 4, 5], {"one": ("knorm", 0.5)})


@pytest.mark.parametrize(
    ("place", "said"), [("gone", "no interpreter with kvpress at"), ("python", "has no package")]
)
def test_where_it_is_not_it_is_said_how_to_get_it(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a link, an interpreter finds no environment's packages.
    os.symlink(sys._base_executable, tmp_path / "python")
    monkeypatch.setenv(PYTHON, str(tmp_path / place))
    with pytest.raises(EvaluationError, match=said) as error:
        peers.python()
    assert "pip install kvpress" in str(error.value) and PYTHON in str(error.value)


class Parrot(System):
    """Somebody's own system."""

    def ask(self, question: str, recalled: Spans | None) -> Reply:
        return Reply(self.document.name, 0.1, 0.2, [(0, 3)])


def test_a_system_of_ones_own(decoder: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MAKERS, "parrot", raising=False)
    register_system("parrot", Parrot)
    with pytest.raises(EvaluationError, match="'parrot' is a system"):
        register_system("parrot", Parrot)
    found = evaluate(*decoder, DOCUMENTS, QUESTIONS, systems=["parrot"], settings=SETTINGS)
    assert [row["reply"] for row in found.rows] == [q.document for q in QUESTIONS]
    assert found.rows[0]["shown_tokens"] == 3
    monkeypatch.delitem(MAKERS, "parrot")
