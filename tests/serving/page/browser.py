"""A real browser that looks at the server's page: the system's chromium, driven by selenium."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.serving.served import Served

SIZE = (1360, 900)
SECONDS = 120.0
ENTER, ESCAPE = "\ue007", "\ue00c"
"""Keys, as WebDriver writes them."""


class Page:
    """The page of one server, in a browser's tab. What it looks for it waits for."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def all(self, selector: str) -> list[Any]:
        """Elements that are seen."""
        found = self.driver.find_elements("css selector", selector)
        return [one for one in found if one.is_displayed()]

    def one(self, selector: str, holds: str = "") -> Any:
        """The first element that is seen and holds a text."""
        kept: list[Any] = []

        def there() -> bool:
            kept[:] = [one for one in self.all(selector) if holds in one.text]
            return bool(kept)

        self.until(there)
        return kept[0]

    def until(self, true: Any) -> None:
        """Wait until something is so; what the page lays out anew meanwhile is looked for again."""
        from selenium.common.exceptions import StaleElementReferenceException

        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            try:
                if true():
                    return
            except StaleElementReferenceException:
                continue
            # To look takes the browser as long as the model needs for a token.
            time.sleep(0.1)
        raise AssertionError(f"it did not come to be; the browser says {self.complaints()}")

    def click(self, selector: str, holds: str = "") -> None:
        self.one(selector, holds).click()

    def type(self, selector: str, words: str) -> None:
        """Write into a field, and press Enter."""
        self.one(selector).send_keys(words + ENTER)

    def open(self, session: str) -> None:
        self.type("#name", session)
        self.one("#h-chat", session)

    def say(self, words: str) -> str:
        """Send a message, wait for the end of its answer, and return that."""
        before = len(self.all(".said"))
        self.type("#words", words)
        self.until(lambda: len(self.all(".said")) == before + 2 and self.all("#send"))
        return str(self.all(".said")[-1].text)

    @property
    def focus(self) -> str:
        """The id of the element that has the keyboard."""
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    @property
    def blocks(self) -> str:
        """What the memory's column shows."""
        return "\n".join(one.text for one in self.all("#blocks .words"))

    def complaints(self) -> list[str]:
        """What the browser wrote to its console: refusals of the policy, errors of the script."""
        return [line["message"] for line in self.driver.get_log("browser")]


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs a browser: chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument(f"--window-size={SIZE[0]},{SIZE[1]}")
    if os.geteuid() == 0:  # chromium's own sandbox does not work for root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield made
    finally:
        made.quit()


def url(server: Served) -> str:
    return str(server.http.base_url)


def told(server: Served, text: str, session: str = "anna") -> None:
    reply = server.http.post(f"/v1/memory/sessions/{session}/read", json={"text": text})
    assert reply.status_code == 200, reply.text
