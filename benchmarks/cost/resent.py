"""A conversation that is sent whole with every turn: what is stored, and what storing it costs.

Each turn has as many new tokens as any other. Storing is what the memory does beside the model's
own forwards: recognising what was sent before, and everything from a token's leaving the window, or
the end of a `generate`, to its block. The prompt runs through the model each time, which grows with
it; `remember`, which takes the same conversation in the row's second half, reads what is new alone.
Times are those of the processor, as other programs on the machine slow down the clock's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.stream import make_stream

SAID, ANSWERED = 48, 16
"""Tokens of a message and of an answer."""
NEAR = 8
"""Turns at either end whose median counts."""


@contextmanager
def storing() -> Iterator[list[float]]:
    """The seconds that are spent on storing inside, in a list of one."""
    from cmr.integration.hooks import forward, generation, windows

    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.process_time() - began

        return around

    places: list[tuple[Any, str]] = [
        (forward, "leave"),
        (generation, "leave_rest"),
        (generation, "follow"),
        (windows, "follow"),
    ]
    before = [getattr(module, name) for module, name in places]
    for (module, name), call in zip(places, before, strict=True):
        setattr(module, name, timed(call))
    try:
        yield spent
    finally:
        for (module, name), call in zip(places, before, strict=True):
            setattr(module, name, call)


def talked(memory: Any, ids: torch.Tensor, name: str, turns: int) -> tuple[list[float], list[int]]:
    """Seconds of storing of each turn, and the conversation, every turn sent whole."""
    anna, said, found = memory.session(name, create=True), list[int](), []
    for turn in range(turns):
        said += ids[turn * SAID : (turn + 1) * SAID].tolist()
        with storing() as spent, torch.inference_mode():
            out = anna.generate(
                torch.tensor([said]),
                max_new_tokens=ANSWERED + 1,
                min_new_tokens=ANSWERED + 1,
                do_sample=False,
                pad_token_id=0,
            )
        found.append(spent[0])
        said = out[0, :-1].tolist()  # the last one never went through the model
    return found, said


def remembered(memory: Any, said: list[int], name: str, turns: int) -> list[float]:
    """Seconds of each `remember` of a conversation that grows by a turn."""
    ben, length, found = memory.session(name, create=True), len(said) // turns, []
    for turn in range(turns):
        began = time.process_time()
        ben.remember(said[: (turn + 1) * length])
        found.append(time.process_time() - began)
    return found


def ends(seconds: list[list[float]]) -> tuple[float, float]:
    """Median milliseconds of turns from the second on, and of the last ones."""
    early = [turn for one in seconds for turn in one[1 : 1 + NEAR]]
    late = [turn for one in seconds for turn in one[-NEAR:]]
    return 1e3 * statistics.median(early), 1e3 * statistics.median(late)


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--turns", type=whole(2 * NEAR), default=50)
    parser.add_argument("--conversations", type=whole(1), default=1)
    parser.add_seed()
    parser.add_threads()
    parser.add_settings("remember=all")
    args = parser.parse_args(words)
    model, tokenizer = load_model()
    stream = make_stream(tokenizer, args.conversations * args.turns * SAID, args.seed).ids
    ids = torch.tensor(stream)[: args.conversations * args.turns * SAID].view(
        args.conversations, -1
    )
    import cmr

    talking, reading, twice = [], [], 0
    with cmr.attach(model, **args.settings) as memory:
        for number, messages in enumerate(ids):
            seconds, said = talked(memory, messages, f"anna {number}", args.turns)
            have = [t for b in memory.inspect(f"anna {number}") for t in b.token_ids]
            assert have == said, "each token once, in the order of the text"
            twice += len(have) - len(said)
            talking.append(seconds)
            reading.append(remembered(memory, said, f"ben {number}", args.turns))
            memory.clear()  # room for the next one
            print(number, [round(x, 1) for x in (*ends(talking), *ends(reading))], flush=True)
        shown = described(memory)
    (early, late), (first, last) = ends(talking), ends(reading)
    row = {
        **rows.conditions(model, args.seed, memory=shown),
        "turns": args.turns, "conversations": args.conversations, "tokens_a_turn": SAID + ANSWERED,
        "tokens_in_all": args.turns * (SAID + ANSWERED), "stored_twice": twice,
        "storing_ms_early": early, "storing_ms_late": late, "late_to_early": late / early,
        "remember_ms_early": first, "remember_ms_late": last,
        "remember_late_to_early": last / first,
    }  # fmt: skip
    rows.append("resent", row)
    print(row)


if __name__ == "__main__":
    run(main)
