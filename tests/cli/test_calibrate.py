"""`cmr calibrate` on a tiny decoder: what it shows, where it saves, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmr.retrieval.calibration import Calibration


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory) -> Path:
    """A text that is long enough for the widths of a tiny model."""
    words = (f"In year {n} the {n % 7}th boat of the harbour came home early. " for n in range(60))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(words))
    return path


def test_it_measures_shows_and_saves_a_calibration(cmr, ordinary, tmp_path):
    out = tmp_path / "there.safetensors"
    result = cmr("calibrate", "--text", ordinary, "--out", out)
    assert result.code == 0, result.err
    found = Calibration.load(out)
    assert "chosen" in result.out and "paraphrased" in result.out
    assert str(found.index_layer) in result.out
    # Lines are cut where a terminal would be too narrow for a path.
    assert out.name in result.out.replace("\n", "")
    assert "calibration=" in result.out


def test_without_a_place_every_attach_finds_it(cmr, ordinary, tmp_path, monkeypatch):
    monkeypatch.setenv("CMR_CACHE", str(tmp_path))
    result = cmr("calibrate", "--text", ordinary)
    assert result.code == 0, result.err
    (file,) = (tmp_path / "calibrations").iterdir()
    assert Calibration.load(file).identity
    assert "calibration=" not in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--text", "no.txt"), "no.txt: no such file"),
        (("--out", "."), "is a folder"),
        (("--out", f"{__file__}/x"), "nothing can be written"),
    ],
)
def test_what_cannot_be_done_is_one_line_at_once(cmr, words, said):
    result = cmr("calibrate", *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --") and said in result.err
    assert result.err.count("\n") == 1


def test_a_text_that_is_too_short_is_one_line(cmr, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("A short text.")
    result = cmr("calibrate", "--text", short, "--out", tmp_path / "x")
    assert result.code == 2 and result.err.startswith("error: calibrate: a text of")
    assert not (tmp_path / "x").exists()
