"""A `cmr serve` in a process of its own: a tiny random model, the small one's tokenizer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from benchmarks.shared.tiny import tiny_llama

START = "from cmr.cli import main; main()"
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
def serving(model: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server that runs inside; gives its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", START, "serve", "--model", str(model), "--port", str(port)]
    environment = {**os.environ, "CMR_MEMORY_KEY": ""}
    process = subprocess.Popen([*words, *options], env=environment, stdout=subprocess.DEVNULL)
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
    try:
        while True:
            try:
                if httpx2.get(f"{url}/ready").status_code == 200:
                    break
            except httpx2.HTTPError:
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError("the server did not start") from None
                time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def held(process: psutil.Process) -> dict[str, float]:
    """What a process holds: resident memory, threads and open files."""
    return {
        "rss_mb": process.memory_info().rss / 1e6,
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }
