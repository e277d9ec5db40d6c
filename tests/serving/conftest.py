"""A tiny model with a chat template, and a server of it that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.cli.saved import build
from tests.serving.page.browser import browser
from tests.serving.served import TEMPLATE, Served, served


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random decoder with a token a byte, and its tokenizer."""
    folder = build(tmp_path_factory.mktemp("models") / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


@pytest.fixture(scope="module")
def server(tiny: tuple[Any, Any]) -> Iterator[Served]:
    """A server without keys."""
    with served(*tiny) as found:
        yield found


@pytest.fixture(autouse=True)
def without_sessions(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """No test sees what another one told the shared server."""
    if "server" in request.fixturenames:
        found: Served = request.getfixturevalue("server")
        found.idle()
        found.memory.clear()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser that tests share; see `browser`."""
    with browser() as found:
        yield found


@pytest.fixture
def driver(chromium: Any) -> Iterator[Any]:
    """The browser, which knows no key and has no complaints."""
    chromium.get_log("browser")
    yield chromium
    chromium.execute_script("sessionStorage.clear()")
    # Nothing of the page asks a server any more that ends now.
    chromium.get("about:blank")
