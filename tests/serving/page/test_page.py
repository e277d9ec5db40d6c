"""The page at `/`: what is sent, and what people do with it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any

from cmr.serving.engines.ticket import Ticket
from cmr.serving.settings import ServerSettings
from tests.docs.blocks import ROOT
from tests.serving.page.browser import ESCAPE, Page, told, url
from tests.serving.served import Served, served

FACT = "The meeting with Mr Harlow is on Thursday at the town hall."
QUESTION = "On which day is the meeting with Mr Harlow?"
BAD = "<script>document.title='run'</script> <img src=x onerror=\"document.title='run'\"> <b>x</b>"


def photograph(page: Page, name: str, dark: bool) -> None:
    """The window as it stands, kept where somebody wants new images for the docs."""
    folder = os.environ.get("CMR_IMAGES")
    if folder is None:
        return
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# -- what is sent ----------------------------------------------------------------------------------


def test_the_page_runs_its_own_script_alone_and_loads_nothing(server: Served) -> None:
    reply = server.http.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    for tag in ("script", "style"):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?:|//\w+\.|url\(|@import|<link rel=\"stylesheet|src=", reply.text)
    code = reply.text.partition("<script>")[2]
    wrong = r"\.(innerHTML|outerHTML|insertAdjacentHTML|write)\b|localStorage|cookie|\beval\b"
    assert not re.search(wrong, code)


def test_the_page_is_in_the_wheel() -> None:
    packed = (ROOT / "pyproject.toml").read_text("utf-8").partition("package-data]\ncmr = [")[2]
    parts = re.findall('"([^"]+)"', packed.partition("]")[0])
    held = {path for part in parts for path in (ROOT / "cmr").glob(part)}
    assert ROOT / "cmr" / "serving" / "page" / "index.html" in held


# -- in a browser ----------------------------------------------------------------------------------


def test_a_fact_is_told_recalled_and_forgotten(driver: Any, smollm2: tuple[Any, Any]) -> None:
    """By the keyboard where that is natural; the answers are a real model's."""
    few, name = ServerSettings(max_tokens=40), "SmolLM2-135M-Instruct"
    with served(*smollm2, attached={}, settings=few, name=name) as server:
        told(server, "My sister Mara moved to Lisbon in May.", "ben")
        page = Page(driver, url(server))
        page.open("anna")
        assert page.focus == "words"
        page.say(FACT)
        assert "Thursday" in page.say(QUESTION)
        page.one(".recalled > p", "Recalled for this answer: 1")
        assert FACT in page.one(".recalled .passage .words").text
        assert float(re.findall(r"read at ([0-9.]+)", page.one(".passage .facts").text)[0]) > 0
        assert FACT in page.blocks
        photograph(page, "page-light", dark=False)

        page.click(".recalled .danger", "Forget")
        assert FACT in page.one("#sure-list").text and page.focus == "sure-no"
        photograph(page, "page-forget", dark=True)
        driver.switch_to.active_element.send_keys(ESCAPE)
        page.until(lambda: not page.all("#sure"))
        assert FACT in server.stored()

        page.click(".recalled .danger", "Forget")
        page.click("#sure-yes")
        page.one("#notice", "Forgotten: ")
        page.one(".recalled mark", "forgotten")
        page.until(lambda: FACT not in page.blocks)
        assert FACT not in server.stored() and not page.all(".recalled .passage .words")

        page.click("#forget-text")
        page.type("#sure-field input", "harlow")
        page.one("#notice.wait", "Nothing of it is stored here")
        page.click("#forget-text")
        page.type("#sure-field input", "Harlow")
        page.until(lambda: "Harlow" not in page.blocks)
        assert "Harlow" not in server.stored() and "Lisbon" in server.stored("ben")
        assert "town hall" not in page.say(QUESTION)
        assert page.complaints() == []


def test_stored_markup_stays_text(driver: Any, server: Served) -> None:
    told(server, BAD)
    page = Page(driver, url(server))
    page.click("#sessions button", "anna")
    page.until(lambda: "onerror" in page.blocks)
    shown = "".join(one.text for one in page.all("#blocks .words"))
    assert "<script>document.title='run'</script>" in shown.replace("\n", "")
    page.say(BAD)
    page.one(".said.mine", "<img src=x onerror")
    page.one(".recalled .passage")
    page.type("#query", "Which title?")
    page.one("#shown", "found: ")
    page.click("#blocks .danger")
    page.one("#sure-list .words")
    for tag in ("img", "b", "main script"):
        assert driver.find_elements("css selector", tag) == []
    assert driver.title == "Memory · cmr" and page.complaints() == []
    # The policy stands behind it: markup that came in by a mistake is no markup.
    driver.set_script_timeout(5)
    refused = driver.execute_script(
        "try { document.body.innerHTML = arguments[0]; return 'laid out'; }"
        "catch (error) { return error.name; }", BAD)  # fmt: skip
    assert refused == "TypeError" and driver.title == "Memory · cmr"


def test_blocks_are_pinned_ordered_and_a_session_is_ended(driver: Any, server: Served) -> None:
    told(server, "The gate code is 4712. The dog is called Bruno. The boat lies at pier nine.")
    told(server, "Ben's own words.", "ben")
    page = Page(driver, url(server))
    page.click("#sessions button", "anna")
    held = server.memory.inspect("local/anna")
    page.one("#shown", f"{len(held)} of {len(held)} blocks")
    page.click("#blocks li:first-child button[aria-pressed=false]")
    page.one("#blocks li:first-child button[aria-pressed=true]", "Pinned")
    assert [one.id for one in server.memory.inspect() if one.pinned] == [held[0].id]
    page.click("#order option[value=newest]")
    page.until(lambda: page.blocks.startswith((held[-1].text or "").strip()))
    page.click("#tier option[value=long_term]")
    page.one("#blocks .empty", "Nothing is stored here")
    page.click("#forget-all")
    page.click("#sure-yes")
    page.until(lambda: [row.text.split()[0] for row in page.all("#sessions button")] == ["ben"])
    assert server.memory.sessions == ["local/ben"]
    assert page.complaints() == []


def test_a_server_that_is_gone_is_looked_for_until_it_is_back(driver: Any, server: Served) -> None:
    told(server, "The boat lies at pier nine.")
    page = Page(driver, url(server))
    page.click("#sessions button", "anna")
    page.one("#blocks .words")
    driver.set_network_conditions(offline=True, latency=0, throughput=-1)
    try:
        page.type("#words", "Hello")
        page.one("#notice.bad", "does not answer")
        page.one("#state.gone", "no connection")
        told(server, "Said meanwhile: the key lies below the mat.")
    finally:
        driver.delete_network_conditions()
    page.until(lambda: "below the mat" in page.blocks.replace("\n", ""))
    page.one("#state", "connected")
    assert not page.all("#notice")


def test_an_answer_is_stopped(driver: Any, server: Served, monkeypatch: Any) -> None:
    """The client that leaves is not worked for any more; the page can be asked again."""
    own, held = Ticket.say, threading.Event()

    def slow(ticket: Ticket, text: str) -> None:
        own(ticket, text)
        if not ticket.cancelled:
            held.wait(0.3)

    monkeypatch.setattr(Ticket, "say", slow)
    page = Page(driver, url(server))
    page.open("anna")
    page.type("#words", "Hello")
    page.until(lambda: page.all(".said.under-way") and page.all(".said.under-way")[0].text)
    page.click("#stop")
    page.until(lambda: page.all("#send") and not page.all(".said.under-way"))
    server.idle()
    assert not page.all(".said.failed") and not page.all("#notice")
    held.set()
    page.say("Again")
    assert len(page.all(".said")) == 4
