"""How long does one wait for the first token where the queue is full?

First as many clients as a batch has rows ask at once, alone: what a batch takes. Then many more
clients than can be answered or wait ask over and over, so that the queue is full all the time; who
is refused (429) comes again when the reply says so. A request that is the last in the queue has
`queue / rows` batches in front of it and those of the lanes beside it, so its first token should
come within `(queue / rows + lanes)` times what a batch takes alone: `bound`. Nobody may wait longer
than the deadline. The model is tiny and random.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np

from benchmarks.serving.client import CHAT
from benchmarks.serving.process import save_tiny, serving
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

ROWS, LANES, QUEUE, DEADLINE, TOKENS = 8, 2, 32, 120.0, 12


@dataclass
class Waited:
    """Seconds to first tokens and to the ends of answers, and replies by status."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    replies: Counter[int] = field(default_factory=Counter)
    retry: list[int] = field(default_factory=list)


async def ask(http: httpx2.AsyncClient, session: int, waited: Waited) -> None:
    """One streamed answer; who is refused comes again later, and that is another request."""
    body = {
        "messages": [{"role": "user", "content": f"The number of the day is {session}."}],
        "max_tokens": TOKENS,
        "stream": True,
        "user": f"s{session}",
    }
    began, spoke = time.perf_counter(), False
    async with http.stream("POST", CHAT, json=body) as reply:
        waited.replies[reply.status_code] += 1
        if reply.status_code == 429:
            waited.retry.append(int(reply.headers["retry-after"]))
            await asyncio.sleep(waited.retry[-1])
            return
        async for line in reply.aiter_lines():
            event: dict[str, Any] = json.loads(line[6:]) if line.startswith("data: {") else {}
            if "error" in event:
                waited.replies[504] += 1  # the status had gone out
                return
            choices = event.get("choices") or [{}]
            if not spoke and choices[0].get("delta", {}).get("content"):
                waited.first.append(time.perf_counter() - began)
                spoke = True
    waited.whole.append(time.perf_counter() - began)


async def together(url: str, clients: int, times: int) -> Waited:
    """So many clients, each of a session of its own, as often as is said."""
    waited = Waited()
    limits = httpx2.Limits(max_connections=clients)

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        for _ in range(times):
            await ask(http, number, waited)

    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(clients)))
    return waited


def main() -> int:
    """Command line; 1 where p95 is over the bound, or somebody waited beyond the deadline."""
    parser = Parser(__doc__)
    parser.add_argument("--times", type=whole(), default=5, help="requests of each client")
    args = parser.parse_args()
    clients = QUEUE + ROWS * LANES + 16
    words = {"--batch": ROWS, "--lanes": LANES, "--queue": QUEUE, "--at-once": clients,
             "--deadline": DEADLINE, "--window": 64, "--budget": 65536}  # fmt: skip
    options = [str(word) for pair in words.items() for word in pair]
    with tempfile.TemporaryDirectory() as place:
        model = save_tiny(Path(place) / "tiny")
        with serving(model, *options) as (url, _):
            alone = [max(asyncio.run(together(url, ROWS, 1)).whole) for _ in range(5)]
            waited = asyncio.run(together(url, clients, args.times))
    batch = median(alone[1:])  # the first one warms up
    p50, p95 = np.quantile(waited.first, [0.5, 0.95]).tolist()
    row = {
        "rows": ROWS, "lanes": LANES, "queue": QUEUE, "deadline": DEADLINE, "clients": clients,
        "batch_seconds": batch, "bound": (QUEUE / ROWS + LANES) * batch, "first_p50": p50,
        "first_p95": p95, "first_most": max(waited.first), "answers": len(waited.whole),
        "replies": {str(status): count for status, count in sorted(waited.replies.items())},
        "retry_after_p50": median(waited.retry) if waited.retry else None,
    }  # fmt: skip
    rows.append("serving_waiting", {**rows.conditions(None, server=words), **row})
    print(row)
    return int(p95 > row["bound"] or max(waited.first) > DEADLINE)


if __name__ == "__main__":
    run(main)
