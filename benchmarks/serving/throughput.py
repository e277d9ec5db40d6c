"""What a server costs beside the batched `generate` that it runs.

Each of some sessions was told a fact and is asked for it, all at once: by the library's own batched
`generate` with a session a row, and by as many clients of a server in this process, in turns. Both
read memory and store nothing, so that every round asks the same; the answers are compared before
anything is timed. Shares are by the clock and by the process's CPU time, which says the same on a
machine that has other things to do; the clients are in it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import torch
import uvicorn

import cmr
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin, described
from benchmarks.shared.stats import quantiles
from cmr.evaluation.prompts import chat
from cmr.serving.app import create_app
from cmr.serving.engines.storing import Storing
from cmr.serving.settings import ServerSettings

FACT = "The locker of visitor {0} is number {1}, and the visitor comes on foot. "
QUESTION = "Which number is the locker of visitor {0}?"


def name(number: int) -> str:
    """What a session is called in the memory."""
    return f"local/s{number}"


def direct(
    model: Any, tokenizer: Any, memory: cmr.Memory, storing: Storing, sessions: int, tokens: int
) -> tuple[list[str], int]:
    """The answers by one batch of the library, and how many tokens they have."""
    prompts = [chat(tokenizer, QUESTION.format(number)) for number in range(sessions)]
    longest = max(map(len, prompts))
    ids = torch.full((sessions, longest), tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with storing.nothing():
        found = memory.session(*map(name, range(sessions))).generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    answers = found[:, longest:]
    count = int((answers != tokenizer.eos_token_id).sum())
    return tokenizer.batch_decode(answers, skip_special_tokens=True), count


async def served(url: str, sessions: int, tokens: int) -> tuple[list[str], int]:
    """The same by as many clients of a server."""

    async def ask(number: int) -> tuple[str, int]:
        body = {
            "messages": [{"role": "user", "content": QUESTION.format(number)}],
            "max_tokens": tokens,
            "memory": "read",
            "user": f"s{number}",
        }
        reply = (await http.post("/v1/chat/completions", json=body)).json()
        return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]

    async with httpx2.AsyncClient(base_url=url, timeout=600) as http:
        found = await asyncio.gather(*map(ask, range(sessions)))
    return [text for text, _ in found], sum(count for _, count in found)


@contextmanager
def server(app: Any) -> Iterator[str]:
    """The application on a port of this machine; gives its address."""
    running = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--sessions", type=whole(), default=16)
    parser.add_argument("--tokens", type=whole(), default=24, help="of an answer")
    parser.add_argument("--rounds", type=whole(), default=5)
    parser.add_argument("--lanes", type=whole(), default=2)
    attached = {"remember": "all", "unnamed": "refuse"}
    args, model, tokenizer, conditions = begin(parser, words, **attached)
    storing = Storing()
    limits = ServerSettings(lanes=args.lanes, rows=args.sessions, deadline=600.0)
    seconds: dict[str, list[float]] = {"direct": [], "served": []}
    speed: dict[str, list[float]] = {"direct": [], "served": []}
    by_cpu: dict[str, list[float]] = {"direct": [], "served": []}
    with cmr.attach(model, tokenizer=tokenizer, keep=storing, **args.settings) as memory:
        conditions["memory"] = described(memory)
        for number in range(args.sessions):
            told = [{"role": "user", "content": FACT.format(number, 1000 + 37 * number)}]
            memory.session(name(number), create=True).remember(told)
        app = create_app(model, memory, storing, tokenizer, name="model", settings=limits)
        with server(app) as url:
            ways = {
                "direct": lambda: direct(
                    model, tokenizer, memory, storing, args.sessions, args.tokens
                ),
                "served": lambda: asyncio.run(served(url, args.sessions, args.tokens)),
            }
            answers = {way: call()[0] for way, call in ways.items()}
            pairs = zip(*answers.values(), strict=True)
            same = sum(mine.split() == its.split() for mine, its in pairs)
            for _ in range(args.rounds):
                for way, call in ways.items():
                    began, cpu = time.perf_counter(), time.process_time()
                    tokens = call()[1]
                    by_cpu[way].append(tokens / (time.process_time() - cpu))
                    seconds[way].append(time.perf_counter() - began)
                    speed[way].append(tokens / seconds[way][-1])
    share, cpu_share = (
        [its / own for own, its in zip(found["direct"], found["served"], strict=True)]
        for found in (speed, by_cpu)
    )
    row = {
        "sessions": args.sessions, "tokens": args.tokens, "rounds": args.rounds,
        "lanes": args.lanes, "same_answers": same, "share_of_direct": quantiles(share),
        "share_by_cpu": quantiles(cpu_share),
        **{f"{way}_tokens_per_cpu_second": quantiles(found) for way, found in by_cpu.items()},
        **{f"{way}_tokens_per_second": quantiles(found) for way, found in speed.items()},
    }  # fmt: skip
    rows.append("serving_throughput", {**conditions, **row})
    print(f"{same} of {args.sessions} answers the same; tokens a second "
          f"{row['direct_tokens_per_second']} direct, {row['served_tokens_per_second']} served; "
          f"share {row['share_of_direct']}, by CPU time {row['share_by_cpu']}")  # fmt: skip


if __name__ == "__main__":
    run(main)
