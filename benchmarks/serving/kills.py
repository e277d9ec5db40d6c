"""A server killed while it answers: does its folder open, and what of the memory is lost?

Clients tell sessions one number after the other, and now and then end one, until SIGKILL ends the
server at a random moment behind its first save. The next server goes on in the folder, and is asked
for all that it holds. Told is what a client has its reply to.

After each kill:
open: the next server starts and answers. early: numbers told before the last save began that are
missing. foreign: numbers of another session. back: numbers of sessions that were ended, where that
had been replied to. beyond: missing numbers that were told more than an interval (`save_every`)
before the kill. Each of them is to be 0. late: numbers that were told after that save began and are
missing, with `oldest`, how long before the kill the oldest of them was told, and `age`, how long
before it that save began, in seconds.

With `--shared` two servers have one folder, and each request goes to either: sessions move from one
to the other all the time. One of them is killed, again and again, and the other one is asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.serving.client import CHAT
from benchmarks.serving.process import figure, save_tiny, serving
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

SAVE_EVERY = 1.0
OPTIONS = ("--window", "64", "--budget", "131072", "--save-every", str(SAVE_EVERY))
SESSIONS = 16
ENDS = 0.02
"""Share of what a client does that ends its session."""
MEMORY = "/v1/memory/sessions"


@dataclass
class Session:
    """What one session was told: each number with the time of its reply.

    `gone`: numbers that a deletion was replied to for; `unsure`: those that the kill left open;
    `begun`: first digits of all.
    """

    name: str
    told: dict[str, float] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)

    def number(self, rng: random.Random) -> str:
        """One that begins like no other of it: a beginning that is known is not stored again."""
        while (number := str(rng.randrange(10**7, 10**8)))[:4] in self.begun:
            pass
        self.begun.add(number[:4])
        return number


@dataclass
class Campaign:
    """A folder's sessions through several kills.

    `killed`: Unix time of the last kill; `saved`: when the last save before it began, as far as the
    server had said so.
    """

    rng: random.Random
    sessions: list[Session] = field(
        default_factory=lambda: [Session(f"s{number}") for number in range(SESSIONS)]
    )
    killed: float = 0.0
    saved: float = 0.0

    async def until_killed(
        self, urls: Sequence[str], process: psutil.Process, seconds: float
    ) -> None:
        """Tell numbers until the first server is killed, so many seconds after its first save."""
        self.saved = self.killed = 0.0
        async with AsyncExitStack() as stack:
            https = [
                await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=60))
                for url in urls
            ]
            clients = [asyncio.create_task(self._client(https, one)) for one in self.sessions]
            looking = asyncio.create_task(self._look(https[0]))
            while not self.saved:  # from then on there is something to lose
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            process.kill()
            self.killed = time.time()
            await asyncio.gather(*clients, looking)

    async def _client(self, https: Sequence[httpx2.AsyncClient], session: Session) -> None:
        try:
            while not self.killed:
                http = self.rng.choice(https)
                if session.told and self.rng.random() < ENDS:
                    # Whether they are there is not known until the reply comes.
                    session.unsure |= set(session.told)
                    session.told.clear()
                    reply = await http.delete(f"{MEMORY}/{session.name}")
                    reply.raise_for_status()
                    session.gone |= session.unsure
                    session.unsure.clear()
                number = session.number(self.rng)
                session.unsure.add(number)
                body = {
                    "messages": [{"role": "user", "content": f"The number is {number}."}],
                    "max_tokens": self.rng.randrange(1, 8),
                    "user": session.name,
                }
                reply = await http.post(CHAT, json=body)
                reply.raise_for_status()
                session.told[number] = time.time()
                session.unsure.discard(number)
        except httpx2.TransportError:
            return

    async def _look(self, http: httpx2.AsyncClient) -> None:
        try:
            while True:
                page = (await http.get("/metrics")).text
                self.saved = figure(page, "cmr_saved_until_seconds") or self.saved
                await asyncio.sleep(0.05)
        except httpx2.TransportError:
            return

    def judge(self, url: str) -> dict[str, float]:
        """What the next server holds, beside what was told."""
        found = dict.fromkeys(("told", "early", "foreign", "back", "late", "beyond"), 0)
        oldest, whose = 0.0, {}
        for session in self.sessions:
            known = {*session.told, *session.gone, *session.unsure}
            whose.update(dict.fromkeys(known, session.name))
        with httpx2.Client(base_url=url, timeout=60) as http:
            evicted = figure(http.get("/metrics").text, "cmr_evicted_blocks_total")
            for session in self.sessions:
                held = _held(http, session.name)
                missing = {n: at for n, at in session.told.items() if n not in held}
                found["told"] += len(session.told)
                found["early"] += sum(at < self.saved for at in missing.values())
                found["late"] += sum(at >= self.saved for at in missing.values())
                found["beyond"] += sum(self.killed - at > SAVE_EVERY for at in missing.values())
                found["foreign"] += sum(whose[n] != session.name for n in held)
                found["back"] += len(held & session.gone)
                oldest = max([oldest, *(self.killed - at for at in missing.values())])
                # From here on it is known what there is.
                session.told = {n: session.told.get(n, 0.0) for n in held - session.gone}
                session.unsure.clear()
        return {**found, "oldest": oldest, "age": self.killed - self.saved, "evicted": evicted}


def _held(http: httpx2.Client, session: str) -> set[str]:
    """The numbers that a session holds; none where there is no such session."""
    reply = http.get(f"{MEMORY}/{session}/export")
    if reply.status_code == 404:
        return set()
    reply.raise_for_status()
    text = "".join(json.loads(line)["text"] for line in reply.text.splitlines())
    return set(re.findall(r"number is (\d{8})\.", text))


def campaign(model: Path, folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """So many kills, each with what was found after it."""
    rng, found = random.Random(seed), list[dict[str, Any]]()
    kept, one, seconds = folder / "kept0", Campaign(rng), 0.0
    for number in range(kills + 1):
        try:
            with serving(model, *OPTIONS, "--folder", str(kept)) as (url, process):
                if seconds:
                    found.append({"open": 1, "seconds": seconds, **one.judge(url)})
                    print(found[-1], flush=True)
                seconds = rng.uniform(0.01, 3 * SAVE_EVERY)
                if number < kills:
                    asyncio.run(one.until_killed([url], process, seconds))
        except RuntimeError:
            found.append({"open": 0, "seconds": seconds})
            print("the folder did not open", flush=True)
            kept, one, seconds = folder / f"kept{number + 1}", Campaign(rng), 0.0
    return found


def shared_campaign(model: Path, folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """The same of one of two servers on one folder, of which the other one goes on."""
    rng, found = random.Random(seed), list[dict[str, Any]]()
    one, options = Campaign(rng), (*OPTIONS, "--shared", "--folder", str(folder / "kept"))
    with serving(model, *options) as (other, _):
        for _ in range(kills):
            with serving(model, *options) as (url, process):
                seconds = rng.uniform(0.01, 3 * SAVE_EVERY)
                asyncio.run(one.until_killed([url, other], process, seconds))
                found.append({"open": 1, "seconds": seconds, **one.judge(other)})
                print(found[-1], flush=True)
    return found


def main() -> int:
    """Command line; 1 where anything was found."""
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole(), default=20)
    parser.add_argument("--shared", action="store_true", help="one of two servers on one folder")
    parser.add_seed()
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = save_tiny(Path(place) / "tiny")
        run_one = shared_campaign if args.shared else campaign
        found = run_one(model, Path(place), args.kills, args.seed)
    names = ("open", "told", "early", "foreign", "back", "late", "beyond", "evicted")
    total = {name: sum(one.get(name, 0) for one in found) for name in names}
    most = {name: max(one.get(name, 0.0) for one in found) for name in ("oldest", "age")}
    row = {"kills": args.kills, **total, **most, "save_every": SAVE_EVERY}
    settings = {"options": " ".join(OPTIONS), "sessions": SESSIONS, "shared": args.shared}
    conditions = rows.conditions(None, seed=args.seed, settings=settings)
    rows.append("serving_kills", {**conditions, **row})
    print(row)
    wrong = ("early", "foreign", "back", "beyond", "evicted")
    return int(total["open"] < args.kills or any(total[name] for name in wrong))


if __name__ == "__main__":
    run(main)
