"""What does it cost to keep a memory in front of another server?

The small model keeps and searches the memory, and a tiny random one on another server answers at
once, so that what is seen is the memory's. The same questions go to that server itself and through
the one in front, without memory, with it read, and with it read and written: in turns, round by
round. `wall` is the median of seconds to the whole answer, `cpu` the seconds of CPU time of the
server in front for one request, of all its threads. Each session holds `stored` tokens, and
`recalled_right` questions recalled the sentence that answers them. None is asked twice: it would
recall itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil

from benchmarks.serving.client import CHAT
from benchmarks.serving.process import save_tiny, serving
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole

SESSIONS, TOKENS = 4, 8
PLACES = (
    "harbour", "mill", "bakery", "library", "lighthouse", "tannery", "chapel", "brewery",
    "orchard", "quarry", "foundry", "stable", "museum", "theatre", "school", "clinic",
    "market", "garage", "bridge", "castle", "station", "cinema", "bank", "prison",
)  # fmt: skip
KEEPERS = ("Mr Harlow", "Ms Ito", "Dr Okafor", "Mrs Lindqvist", "Mr Baptiste", "Ms Novak")
MODES = ("off", "read", "read_write")


def say(http: httpx2.Client, text: str, **fields: Any) -> dict[str, Any]:
    """One answer."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, **fields}
    reply = http.post(CHAT, json=body)
    reply.raise_for_status()
    found: dict[str, Any] = reply.json()
    return found


def used(process: psutil.Process) -> float:
    """Seconds of CPU time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> int:
    """Command line; 1 where less than half of the questions recall what answers them."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=whole(most=len(PLACES)), default=24)
    args = parser.parse_args()
    wall: dict[str, list[float]] = {mode: [] for mode in ("direct", *MODES)}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    right = 0
    with tempfile.TemporaryDirectory() as place:
        tiny = save_tiny(Path(place) / "tiny")
        with serving(tiny) as (other, _):
            options = ("--upstream", other, "--upstream-model", "tiny",
                       "--upstream-extra-body", json.dumps({"memory": "off"}))  # fmt: skip
            with (
                serving(None, *options) as (front, process),
                httpx2.Client(base_url=front, timeout=120) as http,
                httpx2.Client(base_url=other, timeout=120) as direct,
            ):
                for at, spot in enumerate(PLACES):
                    for number in range(SESSIONS):
                        keeper = KEEPERS[(at + number) % len(KEEPERS)]
                        say(http, f"The keeper of the {spot} is {keeper}.", user=f"s{number}")
                stored = http.get("/v1/memory/sessions").json()["data"][0]["tokens"]
                for number in range(args.rounds):
                    name, spot = f"s{number % SESSIONS}", PLACES[5 * number % len(PLACES)]
                    text = f"Who is the keeper of the {spot}?"
                    began = time.perf_counter()
                    say(direct, text, memory="off")
                    wall["direct"].append(time.perf_counter() - began)
                    for mode in MODES:
                        before, began = used(process), time.perf_counter()
                        whose = {} if mode == "off" else {"user": name}
                        reply = say(http, text, memory=mode, **whose)
                        wall[mode].append(time.perf_counter() - began)
                        cpu[mode].append(used(process) - before)
                        if mode == "read":
                            held = " ".join(one["text"] for one in reply["memory"]["recalled"])
                            right += f"keeper of the {spot} is" in held
    row = {
        "rounds": args.rounds, "stored": stored, "recalled_right": right,
        "wall": {mode: median(values) for mode, values in wall.items()},
        "cpu": {mode: sum(values) / len(values) for mode, values in cpu.items()},
    }  # fmt: skip
    settings = {"sessions": SESSIONS, "facts": len(PLACES), "tokens": TOKENS}
    rows.append("serving_front", {**rows.conditions(None, settings=settings), **row})
    print(row)
    return int(2 * right < args.rounds)


if __name__ == "__main__":
    run(main)
