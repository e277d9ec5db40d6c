"""Replicas by Ray Serve: a session on one of them, and on the other one where that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
import transformers

from benchmarks.serving.process import save_tiny
from cmr.memory import archive
from cmr.memory.store.checked import open_memory
from cmr.serving.homes.claims import OWNED
from tests.serving.served import until

pytest.importorskip("ray.serve", reason="the extra `ray`")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
START = "from cmr.cli import main; main()"
NAMES = [f"user{number}" for number in range(8)]


def told(name: str) -> str:
    return f"The gate code of {name} is {name[::-1]}."


def say(url: str, name: str, text: str, **fields: object) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, **fields}
    headers = {"x-session-id": name}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def owners(folder: Path) -> dict[str, int]:
    """Which process has which session: those that hold its file open."""
    found = {}
    for process in psutil.process_iter():
        try:
            files = [Path(file.path) for file in process.open_files()]
        except psutil.Error:
            continue
        for file in files:
            if file.parent == folder / OWNED:
                name = file.name.partition("@")[2]
                assert found.setdefault(name, process.pid) == process.pid, "two have one session"
    return found


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    """Two replicas: their address, their folder, and the process that started them."""
    port, folder = 18500 + os.getpid() % 1000, tmp_path / "kept"
    words = [sys.executable, "-c", START, "serve", "--ray", "--replicas", "2", "--shared",
             "--model", str(save_tiny(tmp_path / "tiny")), "--folder", str(folder),
             "--port", str(port), "--window", "64", "--budget", "4096",
             "--save-every", "0.2"]  # fmt: skip
    environment = {
        k: v for k, v in os.environ.items() if k not in ("CMR_MEMORY_KEY", "RAY_ADDRESS")
    }
    log = open(tmp_path / "log", "w")  # noqa: SIM115 (it ends with the fixture)
    process = subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment)
    try:
        until(lambda: "on http://" in (tmp_path / "log").read_text() or process.poll(), 240)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}", folder, process
    finally:
        process.terminate()
        process.wait(120)
        log.close()


def recalls(url: str, name: str) -> bool:
    reply = say(url, name, "Which code?", memory="read", blocks=4)
    assert reply.status_code == 200, reply.text
    return told(name) in "".join(one["text"] for one in reply.json()["memory"]["recalled"])


def test_each_session_on_one_replica_and_on_the_other_when_that_is_killed(
    replicas: tuple[str, Path, subprocess.Popen[str]],
) -> None:
    url, folder, process = replicas
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda name: say(url, name, told(name)), NAMES))
    assert {reply.status_code for reply in replies} == {200}
    before = owners(folder)
    assert set(before) == set(NAMES) and len(set(before.values())) == 2
    assert all(recalls(url, name) for name in NAMES)
    # By their header they come to the same one again and again.
    assert owners(folder) == before

    until(lambda: all((folder / f"local@{name}" / "manifest.json").exists() for name in NAMES))
    victim = before[NAMES[0]]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()

    def answers() -> bool:
        try:
            return say(url, NAMES[0], "Which code?", memory="read").status_code == 200
        except httpx2.HTTPError:
            return False

    until(answers, 60)
    seconds = time.monotonic() - began
    assert all(recalls(url, name) for name in NAMES)
    after = owners(folder)
    assert set(after) == set(NAMES) and victim not in after.values()
    # Not by the one that Ray starts in its place: that one takes longer to load anything.
    assert after[NAMES[0]] in before.values(), seconds

    say(url, NAMES[0], "Told last of all.")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert os.listdir(folder / OWNED) == []
    saved = open_memory(folder / f"local@{NAMES[0]}", None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.parent / "tiny")
    text = "".join(block.text or "" for block in archive.stored_blocks(saved, tokenizer.decode))
    assert told(NAMES[0]) in text and "Told last of all." in text
