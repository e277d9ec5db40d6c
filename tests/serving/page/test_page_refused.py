"""The page and who is not served: without the right key, or for the moment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cmr.serving.keys import make_key
from cmr.serving.settings import ServerSettings
from tests.serving.page.browser import Page, told, url
from tests.serving.served import served


def test_a_key_opens_its_tenants_sessions_for_one_tab(
    driver: Any, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    file = tmp_path / "keys.jsonl"
    both = make_key(file, "acme", ["use", "admin"])
    use, other = make_key(file, "acme", ["use"]), make_key(file, "other", ["use", "admin"])
    with served(*tiny, keys=file) as server:
        for key, name in ((both, "anna"), (other, "carl")):
            server.http.headers["authorization"] = f"Bearer {key}"
            told(server, "Some words of this session.", name)
        page = Page(driver, url(server))
        page.one("#notice", "wants a valid key")
        assert page.focus == "key"
        page.type("#key", "cmr-wrong")
        page.one("#notice", "wants a valid key")
        page.type("#key", both)
        page.one("#sessions button", "anna")
        assert len(page.all("#sessions button")) == 1 and not page.all("#notice")
        kept = "return [sessionStorage.getItem('key'), localStorage.length, document.cookie]"
        assert driver.execute_script(kept) == [both, 0, ""]
        assert driver.find_element("id", "key").get_attribute("value") == ""

        page.type("#key", use)
        page.one("#sessions", "may ask, and not look")
        page.open("anna")
        page.say("Hello")
        assert not page.all(".said.failed") and page.all(".recalled")
    # Who is refused is told so by the browser's console, too, and nothing else is there.
    assert all("401" in line or "403" in line for line in page.complaints())


def test_who_asks_too_much_is_told_when_to_try_again(driver: Any, tiny: tuple[Any, Any]) -> None:
    # The model, and the sessions before and after the session is opened, are asked for.
    with served(*tiny, settings=ServerSettings(max_tokens=8, rate=3)) as server:
        page = Page(driver, url(server))
        page.one("#sessions", "Nobody was told anything yet.")
        page.open("anna")
        page.type("#words", "Hello")
        assert re.search(r"at most 3 requests a minute\. Try again in \d+ s", page.one(
            "#notice.wait", "Too much at once").text)  # fmt: skip
        page.one(".said.failed", "No answer.")
        assert page.all("#send")
