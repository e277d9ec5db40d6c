"""A `cmr serve` in a process of its own: a tiny random model, the small one's tokenizer."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

# What is forked has it, then.
import cmr.cli.serve
import cmr.serving.app
from benchmarks.shared.tiny import tiny_llama

READY_SECONDS = 120.0


def save_tiny(folder: Path) -> Path:
    """Save the tiny model; returns the folder."""
    from cmr.demo import load_smollm2

    _, tokenizer = load_smollm2()
    model = tiny_llama(
        5,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(model: Path | None, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server that runs inside, of the small model for None; gives its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["cmr", "serve", "--port", str(port), *options]
    if model is not None:
        words += ["--model", str(model)]
    # A fork begins with all that has been imported: a server that is begun twenty times takes
    # seconds for that each time otherwise.
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(words,))
    process.start()
    assert process.pid is not None
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
    try:
        while True:
            try:
                if httpx2.get(f"{url}/ready").status_code == 200:
                    break
            except httpx2.HTTPError:
                if not process.is_alive() or time.monotonic() > ends:
                    raise RuntimeError("the server did not start") from None
                time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


def _serve(words: list[str]) -> None:
    os.environ["CMR_MEMORY_KEY"] = ""
    sys.argv, sys.stdout = words, open(os.devnull, "w")  # noqa: SIM115 (it ends with the process)
    cmr.cli.main()


def held(process: psutil.Process) -> dict[str, float]:
    """What a process holds: resident memory, threads and open files."""
    return {
        "rss_mb": process.memory_info().rss / 1e6,
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


def figure(page: str, name: str) -> float:
    """One of the figures of `/metrics`, which has no labels."""
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(name + " "))
