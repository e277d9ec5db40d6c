from __future__ import annotations

import io
import re
import sys

import pytest

from cmr.cli import demo, main
from cmr.cli.app import app
from cmr.demo.text import PLANTED
from tests.cli.conftest import Model


@pytest.fixture
def staged(fake, monkeypatch):
    class Forgetful(Model):
        def generate(self, input_ids, **options):
            paused = self.memory.paused
            asked = fake.tokenizer.decode(input_ids[0])
            right = next(q for q in PLANTED if q.text in asked)
            self.says = "I do not know." if paused else f"It is {right.answer}."
            return super().generate(input_ids, **options)

    fake.model = Forgetful()
    monkeypatch.setattr(demo, "load_smollm2", lambda: (fake.model, fake.tokenizer))
    monkeypatch.setattr(demo, "is_cached", lambda: True)
    return fake


@pytest.mark.parametrize("columns", [80, 120])
def test_it_shows_both_sides_and_fits(runner, staged, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = runner.invoke(app, ["demo", "--max-new-tokens", "30"])
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "PSF License" in shown
    assert "6 invented facts are planted" in shown
    assert "0 of 6" in shown and "6 of 6" in shown
    assert "1,200–1,264" in shown
    assert "20.0 MB" in shown
    assert "\x1b" not in shown
    assert not staged.memory.paused and staged.memory.detached


def test_a_plain_encoding_is_no_trouble(staged, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    assert end.value.code == 0
    sys.stdout.flush()
    assert b"6 of 6" in raw.getvalue()


@pytest.mark.slow
def test_the_real_model_answers_only_with_memory(runner):
    result = runner.invoke(app, ["demo", "--tokens", "6000"])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if "right answers" in line)
    without, with_memory = (int(count) for count in re.findall(r"(\d+) of 6", line))
    assert without == 0
    assert with_memory >= 5
