"""Does a server under load keep everybody's memory apart, and hold no more than at first?

Clients ask at once, each for any of the sessions, of which each is told a number of its own. Some
leave in the middle of an answer, send nonsense, or read slowly. Counted are passages that were
recalled with another session's number, replies that docs/serving.md does not tell of, and what the
server's process holds after a part of the requests, to warm up, and at the end. The model is tiny
and random: this is about whose memory is read, not about what it says.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from benchmarks.serving.client import Seen, ask
from benchmarks.serving.process import held, save_tiny, serving
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

WARM = 0.4
"""Share of the requests after which nothing should grow any more."""
OPTIONS = ("--window", "64", "--budget", "65536", "--queue", "128", "--at-once", "128",
           "--save-every", "5")  # fmt: skip


async def load(
    url: str, process: psutil.Process, clients: int, sessions: int, requests: int, seed: int
) -> dict[str, Any]:
    """All requests, by so many clients at once."""
    seen, names = Seen(), range(sessions)
    numbers = iter(range(requests))
    samples: list[dict[str, float]] = []

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        rng = random.Random(f"{seed}.{number}")
        for done in numbers:
            await ask(http, seen, rng, names)
            if done >= WARM * requests and done % 50 == 0:
                samples.append(held(process))

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.perf_counter()
    async with httpx2.AsyncClient(base_url=url, timeout=150, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(clients)))
        page = (await http.get("/metrics")).text
    seconds = time.perf_counter() - began
    third = max(1, len(samples) // 3)
    means = {
        when: {name: float(np.mean([sample[name] for sample in part])) for name in samples[0]}
        for when, part in (("warm", samples[:third]), ("end", samples[-third:]))
    }
    return {
        "clients": clients, "sessions": sessions, "requests": requests, "seconds": seconds,
        "requests_per_second": requests / seconds, "foreign": seen.foreign,
        "recalls": seen.recalls, "wrong": len(seen.wrong), "wrong_first": seen.wrong[:8],
        "replies": dict(sorted(seen.replies.items())), **means,
        "seconds_p50_p95": np.quantile(seen.seconds, [0.5, 0.95]).tolist(),
        "first_p50_p95": np.quantile(seen.first, [0.5, 0.95]).tolist(),
        "saves": _figure(page, "cmr_saves_total"),
        "evicted_blocks": _figure(page, "cmr_evicted_blocks_total"),
    }  # fmt: skip


def _figure(page: str, name: str) -> float:
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(name + " "))


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clients", type=whole(), default=64)
    parser.add_argument("--sessions", type=whole(), default=64)
    parser.add_argument("--requests", type=whole(), default=10_000)
    parser.add_seed()
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        model = save_tiny(Path(place) / "tiny")
        folder = str(Path(place) / "kept")
        with serving(model, *OPTIONS, "--folder", folder) as (url, process):
            asked = load(url, process, args.clients, args.sessions, args.requests, args.seed)
            row = asyncio.run(asked)
    conditions = rows.conditions(None, seed=args.seed, settings={"options": " ".join(OPTIONS)})
    rows.append("serving", {**conditions, **row})
    print(f"{row['requests']} requests in {row['seconds']:.0f} s, {row['wrong']} wrong replies")
    print(f"{row['foreign']} foreign passages in {row['recalls']} replies that recalled")
    for when in ("warm", "end"):
        print(when, {name: round(value, 1) for name, value in row[when].items()})
    print(row["replies"], row["wrong_first"])


if __name__ == "__main__":
    run(main)
