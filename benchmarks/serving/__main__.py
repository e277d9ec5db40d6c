"""Does a server under load keep everybody's memory apart, and hold no more than at first?

Clients ask at once, each for any of the sessions, of which each is told a number of its own. Some
leave in the middle of an answer, send nonsense, or read slowly. Counted are passages that were
recalled with another session's number, replies that docs/serving.md does not tell of, and what the
server's process holds in the middle, when the store has long been full, and at the end. The model
is tiny and random: this is about whose memory is read, not about what it says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from benchmarks.serving.client import KINDS, Seen, ask
from benchmarks.serving.process import figure, held, save_tiny, serving
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

WARM = 0.4
"""Share of the requests after which nothing should grow any more: the store is full by then."""
LAST = 0.8
"""Share behind which is the end."""
OPTIONS = ("--window", "64", "--budget", "4096", "--queue", "128", "--at-once", "128",
           "--save-every", "5")  # fmt: skip


async def load(
    url: str,
    process: psutil.Process,
    clients: int,
    sessions: int,
    requests: int,
    minutes: float,
    kinds: list[str],
    seed: int,
) -> dict[str, Any]:
    """All requests, or those of so many minutes, of some kinds, by so many clients at once."""
    seen, names = Seen(), range(sessions)
    ends = time.monotonic() + 60 * minutes
    numbers = itertools.takewhile(lambda _: time.monotonic() < ends, range(requests))
    samples: list[dict[str, float]] = []

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        rng = random.Random(f"{seed}.{number}")
        for done in numbers:
            await ask(http, seen, rng, names, kinds)
            if done % 20 == 0:
                page = (await http.get("/metrics")).text
                stored = figure(page, "cmr_stored_tokens")
                samples.append({"done": done, **held(process), "stored_tokens": stored})

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.perf_counter()
    async with httpx2.AsyncClient(base_url=url, timeout=150, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(clients)))
        page = (await http.get("/metrics")).text
    seconds = time.perf_counter() - began
    done = sum(seen.replies.values())
    means = {
        when: {name: float(np.mean([one[name] for one in samples if a <= one["done"] / done <= b]))
               for name in samples[0]}
        for when, a, b in (("warm", WARM, 1 - WARM), ("end", LAST, 1.0))
    }  # fmt: skip
    return {
        "clients": clients, "sessions": sessions, "requests": done, "kinds": kinds,
        "seconds": seconds,
        "requests_per_second": done / seconds, "foreign": seen.foreign,
        "recalls": seen.recalls, "wrong": len(seen.wrong), "wrong_first": seen.wrong[:8],
        "replies": dict(sorted(seen.replies.items())), **means,
        "seconds_p50_p95": quantiles(seen.seconds), "first_p50_p95": quantiles(seen.first),
        "saves": figure(page, "cmr_saves_total"),
        "evicted_blocks": figure(page, "cmr_evicted_blocks_total"),
    }  # fmt: skip


def quantiles(seconds: list[float]) -> list[float]:
    """Median and 95th percentile; none of nothing."""
    return np.quantile(seconds, [0.5, 0.95]).tolist() if seconds else []


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clients", type=whole(), default=64)
    parser.add_argument("--sessions", type=whole(), default=16)
    parser.add_argument("--requests", type=whole(), default=10_000)
    parser.add_argument("--minutes", type=whole(), default=60, help="at most")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS),
        help="of requests: what grows is looked for in one of them alone",
    )  # fmt: skip
    parser.add_seed()
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        model = save_tiny(Path(place) / "tiny")
        folder = str(Path(place) / "kept")
        with serving(model, *OPTIONS, "--folder", folder) as (url, process):
            counts = args.clients, args.sessions, args.requests, args.minutes
            row = asyncio.run(load(url, process, *counts, args.kinds, args.seed))
    conditions = rows.conditions(None, seed=args.seed, settings={"options": " ".join(OPTIONS)})
    rows.append("serving", {**conditions, **row})
    print(f"{row['requests']} requests in {row['seconds']:.0f} s, {row['wrong']} wrong replies")
    print(f"{row['foreign']} foreign passages in {row['recalls']} replies that recalled")
    for when in ("warm", "end"):
        print(when, {name: round(value, 1) for name, value in row[when].items()})
    print(row["replies"], row["wrong_first"])


if __name__ == "__main__":
    run(main)
