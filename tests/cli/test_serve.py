"""`cmr serve`: what is refused before a model is loaded, and a process from start to SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cmr.memory.store.folder import Folder
from tests.serving.served import until

START = "from cmr.cli import main; main()"


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_what_cannot_be_served_is_told_before_a_model_is_loaded(
    cmr, tmp_path: Path, port: int
) -> None:
    missing = ("--model", tmp_path / "nothing")
    others = tmp_path / "others"
    others.mkdir()
    (others / "letter.txt").write_text("mine")
    other = ("--upstream", "http://127.0.0.1:8001", "--upstream-model", "m")
    for words, told in (
        (("--host", "0.0.0.0"), "cmr serve-key"),
        (("--host", "example.org"), "cmr serve-key"),
        (("--keys", tmp_path / "none"), "`cmr serve-key --keys"),
        (("--key-file", others / "letter.txt"), "--folder"),
        (("--folder", others), "other files"),
        (("--budget", "many"), "--budget"),
        (("--replicas", "2"), "--ray, which is not given"),
        (("--ray",), "--folder and --shared"),
        (("--ray", "--shared", "--folder", others), "letter.txt"),
        (("--shared",), "--folder, which is not given"),
        (("--shared", "--folder", others), "letter.txt"),
        (("--upstream-model", "m"), "--upstream, which is not given"),
        (("--upstream", "http://127.0.0.1:8001"), "--upstream-model NAME"),
        (("--upstream", "nowhere", "--upstream-model", "m"), "--upstream: "),
        ((*other, "--upstream-extra-body", "[]"), "a JSON object"),
        ((*other, "--upstream-extra-body", '{"stream": true}'), "stream"),
        ((*other, "--memory-weight", "0.5"), "--memory-weight"),
        (other, "--model"),
        ((), "--model"),
    ):
        found = cmr("serve", "--port", port, *missing, *words)
        assert found.code == 2 and told in found.err, (words, found)


def test_a_key_is_shown_once_and_its_hash_kept(cmr, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    words = ("serve-key", "--keys", file, "--tenant", "acme", "--model", "None")
    key = cmr(*words).out.strip()
    assert key.startswith("cmr-") and key not in file.read_text()
    assert cmr(*words, "--scope", "admin", "--scope", "use").code == 0
    found = [json.loads(line)["scopes"] for line in file.read_text().splitlines()]
    assert found == [["use"], ["admin", "use"]]
    assert cmr(*words, "--scope", "root").code == 2
    assert len(file.read_text().splitlines()) == 2


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(cmr, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        found = cmr("serve", "--port", port, "--model", "nothing/to/load")
    assert found.code == 2 and f"--port {port}: cannot be listened at" in found.err
    assert found.err.count("\n") == 1


@contextmanager
def running(model: Path, folder: Path, port: int, *more: str) -> Iterator[Any]:
    """A process that serves, ready; its lines are read from where it said so."""
    words = [sys.executable, "-c", START, "serve", "--model", str(model), "--folder", str(folder)]
    words += ["--port", str(port), "--window", "64", "--budget", "4096", "--save-every", "3600"]
    # Of a passphrase in the environment of whoever runs this, nothing is encrypted here.
    environment = {k: v for k, v in os.environ.items() if k != "CMR_MEMORY_KEY"}
    process = subprocess.Popen(
        [*words, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        while "on http://" not in (line := process.stdout.readline()):
            assert line, "it ended before it served"
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:

            def ready() -> bool:
                try:
                    return http.get("/ready").status_code == 200
                except httpx2.HTTPError:
                    return False

            until(ready, 60)
            yield process, http
    finally:
        process.kill()
        process.wait()


def told(cmr, folder: Path) -> str:
    """What a folder holds of Anna's session, the only one in it."""
    stored = cmr("memory", "inspect", folder, "--json", "--limit", 0).out
    blocks = [json.loads(line) for line in stored.splitlines()]
    assert {block["session"] for block in blocks} == {"local/anna"}
    return "".join(block["text"] for block in blocks)


SAID = {"prompt": "The gate code is 4712. " * 3, "user": "anna", "stream": True}


def test_a_server_ends_when_it_has_answered_and_saved(
    cmr, tiny_model: Path, tmp_path: Path, port: int
) -> None:
    folder = tmp_path / "kept"
    with running(tiny_model, folder, port) as (process, http):
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["tiny"]
        with http.stream("POST", "/v1/completions", json={**SAID, "max_tokens": 200}) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            # What was begun is answered to its end.
            assert [line for line in lines if line][-1] == "data: [DONE]"
        rest = process.stdout.read()
        assert process.wait(60) in (0, -signal.SIGTERM), rest
        assert "4712" not in rest and "Traceback" not in rest, rest
    assert Folder(folder).exists() and told(cmr, folder).startswith(SAID["prompt"])


def test_ctrl_c_twice_ends_answers_where_they_are_and_says_so_in_a_line(
    cmr, tiny_model: Path, tmp_path: Path, port: int
) -> None:
    folder, long = tmp_path / "kept", {**SAID, "max_tokens": 30_000}
    with running(tiny_model, folder, port, "--max-tokens", "30000") as (process, http):
        with http.stream("POST", "/v1/completions", json=long) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGINT)
            assert "Ctrl-C once more" in process.stdout.readline()
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert '"code": "closing"' in [line for line in lines if line][-1]
        rest = process.stdout.read()
        assert process.wait(60) == 130 and time.monotonic() - began < 20, rest
        assert "Traceback" not in rest and rest.splitlines()[-1] == "interrupted", rest
        assert len(rest.splitlines()) == 2, rest  # what was saved, and that
    assert told(cmr, folder).startswith(SAID["prompt"])
