"""`docs/misuse.md` is what is really printed, a line each."""

from __future__ import annotations

import pytest

from tests.docs import misuses


@pytest.fixture(scope="module")
def said() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return misuses.found()


def test_each_mistake_is_one_line(said) -> None:
    commands, calls = said
    assert len(commands) + len(calls) >= 30
    for done, line in commands:
        assert line.startswith("error: "), done
    for done, line in [*commands, *calls]:
        assert "\n" not in line and "Traceback" not in line, done
        assert "/tmp" not in line, done


def test_the_page_says_what_is_printed(said, monkeypatch) -> None:
    monkeypatch.setattr(misuses, "found", lambda: said)
    assert misuses.PAGE.read_text(encoding="utf-8") == misuses.page(), (
        "run `python -m tests.docs.misuses`"
    )
