"""A server that is killed has its sessions taken up by another one on the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from benchmarks.serving.process import save_tiny, serving
from tests.serving.served import until

TOLD = "The gate code of {} is {}."


def say(url: str, name: str, text: str, **fields: Any) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": text}], "user": name, "max_tokens": 2}
    return httpx2.post(f"{url}/v1/chat/completions", json={**body, **fields}, timeout=60)


def test_the_sessions_of_a_killed_server_answer_from_the_other(tmp_path: Path) -> None:
    model, folder = save_tiny(tmp_path / "tiny"), tmp_path / "kept"
    options = ("--folder", str(folder), "--shared", "--window", "64", "--budget", "4096",
               "--save-every", "0.2")  # fmt: skip
    names = [f"user{number}" for number in range(4)]
    with serving(model, *options) as (first, process), serving(model, *options) as (second, _):
        for number, name in enumerate(names):
            told = say((first, second)[number % 2], name, TOLD.format(name, 4000 + number))
            assert told.status_code == 200
        until(lambda: all((folder / f"local@{name}" / "manifest.json").exists() for name in names))
        process.kill()
        process.wait()
        for number, name in enumerate(names):
            path = f"{second}/v1/memory/sessions/{name}/export"
            assert TOLD.format(name, 4000 + number) in httpx2.get(path, timeout=60).text, name
            again = say(second, name, "Which code?", memory="read", blocks=4)
            recalled = "".join(one["text"] for one in again.json()["memory"]["recalled"])
            others = [n for n in names if n != name]
            assert not any(other in recalled for other in others)
        listed = httpx2.get(f"{second}/v1/memory/sessions").json()
        assert [one["id"] for one in listed["data"]] == names
        assert all(one["tokens"] for one in listed["data"])
