"""transformers' own server answers, and the memory is kept here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import transformers
from transformers.utils import import_utils

from cmr.serving.engines.upstream.client import Upstream
from tests.cli.saved import build
from tests.serving.served import TEMPLATE, served

# Older ones have no such check, and no such server that a folder can be given to.
there = getattr(import_utils, "is_serve_available", lambda: False)
pytestmark = pytest.mark.skipif(not there(), reason="pip install 'transformers[serving]'")
STARTS = 120.0


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its address, and the name of its model."""
    folder = build(tmp_path_factory.mktemp("theirs") / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cli = Path(sys.executable).with_name("transformers")
    words = [sys.executable, str(cli), "serve", str(folder), "--port", str(port), "--device", "cpu"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=offline)
    try:
        ends = time.monotonic() + STARTS
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx2.HTTPError:
                text = (folder / "log").read_text("utf-8", "replace")
                assert process.poll() is None and time.monotonic() < ends, text[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", str(folder)
    finally:
        process.terminate()
        process.wait()


def test_it_answers_and_what_was_told_is_recalled(
    tiny: tuple[Any, Any], theirs: tuple[str, str]
) -> None:
    with served(*tiny, name="theirs", upstream=Upstream(*theirs)) as server:
        first = server.say("The gate code of anna is 4712. ", max_tokens=6).json()
        said = first["choices"][0]["message"]["content"]
        assert first["choices"][0]["finish_reason"] == "length"
        assert first["usage"]["completion_tokens"] == 6 and said.strip() in server.stored()
        again = server.say("Which code?", memory="read", max_tokens=6).json()
        assert "4712" in "".join(one["text"] for one in again["memory"]["recalled"])
        # What was recalled is in the prompt of the other server.
        alone = server.say("Which code?", None, memory="off", max_tokens=6).json()
        told = again["usage"]["prompt_tokens"] - alone["usage"]["prompt_tokens"]
        assert told > len("The gate code of anna is 4712.")
        # It leaves stop words in the answer; here that ends in front of them.
        text = alone["choices"][0]["message"]["content"]
        stop = text[2:4]
        stopped = server.say("Which code?", None, memory="off", max_tokens=6, stop=[stop]).json()
        choice = stopped["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (
            text[: text.index(stop)],
            "stop",
        )
        chunks = server.client.chat.completions.create(
            model="theirs",
            messages=[{"role": "user", "content": "Which code?"}],
            max_tokens=6,
            stream=True,
            extra_body={"memory": "off"},
        )
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(pieces) == text and len([piece for piece in pieces if piece]) > 1
        prompt = {"prompt": "Once upon", "max_tokens": 5, "user": "carl"}
        reply = server.http.post("/v1/completions", json=prompt).json()
        assert server.stored("carl") == "Once upon" + reply["choices"][0]["text"]
