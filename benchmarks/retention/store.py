"""A bounded store in numbers only: which blocks are there when they are asked for.

What leaves is chosen by the library's own `choose_victims`, as it is in a memory. Whoever asks
reads a passage: the block and its neighbours where it is still there, some other passage where it
is not, as a search always finds something.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from benchmarks.retention.relevance import PIECE
from benchmarks.retention.scores import BLOCK
from benchmarks.texts.stream import Place
from cmr.memory.eviction import Candidates, choose_victims

BEFORE, BEHIND = 1, 2  # blocks that a passage has around the block that was looked for
NEAREST = 1_024  # tokens behind its place that a question comes at the earliest: out of the window
AGAIN = 0.5  # share of the questions that are asked once more
_PIECE_BLOCKS = PIECE // BLOCK


@dataclass(frozen=True)
class Asked:
    """A question at a time: its place's number, the block, and when, in tokens read.

    `repeat` counts how often the place was asked for before; `distance` is since it was read.
    """

    place: int
    block: int
    time: int
    repeat: int
    distance: int


def questions(places: list[Place], tokens: int, seed: int) -> list[Asked]:
    """Questions about the places, in order of time.

    The gap between a place and its question, and between one question and the next about the same
    place, is drawn log-uniformly between 1,024 tokens and the whole stream; what would come behind
    its end is left out.
    """
    rng = random.Random(f"questions {seed}")
    found = []
    for number, place in enumerate(places):
        block = main_block(place)
        time, repeat = place.end, 0
        while True:
            time += int(NEAREST * (tokens / NEAREST) ** rng.random())
            if time >= tokens:
                break
            found.append(Asked(number, block, time, repeat, time - place.end))
            repeat += 1
            if rng.random() >= AGAIN:
                break
    return sorted(found, key=lambda a: (a.time, a.place))


def main_block(place: Place) -> int:
    """The block that holds most of a place; of equals the first."""
    inside = {
        block: min(place.end, (block + 1) * BLOCK) - max(place.start, block * BLOCK)
        for block in range(place.start // BLOCK, (place.end - 1) // BLOCK + 1)
    }
    return max(inside, key=lambda block: (inside[block], -block))


def simulate(
    strategy: str,
    relevance: torch.Tensor,
    asked: list[Asked],
    slots: int,
    seed: int,
    recent: int = 0,
) -> list[bool]:
    """Whether each question found its block, in their order.

    Args:
        strategy: as `choose_victims` takes it.
        relevance: `[blocks]` of the whole stream.
        asked: the questions in order of time.
        slots: blocks that fit.
        seed: of the passages that are read in place of blocks that are gone.
        recent: slots of an upper tier, from which the least recently used blocks sink; the strategy
            chooses among those below.
    """
    rng = random.Random(f"wrong passages {seed}")
    blocks = len(relevance)
    last_access = torch.zeros(blocks, dtype=torch.int64)
    access_count = torch.zeros(blocks, dtype=torch.int64)
    there = torch.zeros(blocks, dtype=torch.bool)
    held = torch.empty(0, dtype=torch.int64)
    found, waiting = [], iter(asked)
    question = next(waiting, None)
    for start in range(0, blocks, _PIECE_BLOCKS):
        new = torch.arange(start, min(start + _PIECE_BLOCKS, blocks))
        need = len(held) + len(new) - slots
        if need > 0:
            last_use = torch.maximum(held + 1, last_access[held])
            below = held[last_use.argsort(stable=True)[: len(held) - max(0, recent - len(new))]]
            zeros = torch.zeros_like(below)
            candidates = Candidates(
                owner=zeros,
                created=below + 1,
                last_access=last_access[below],
                access_count=access_count[below],
                relevance=relevance[below],
                pinned=zeros.bool(),
            )
            out = choose_victims(
                candidates, need, strategy=strategy, capacity=slots, incoming={0: len(new)}
            )
            assert len(out) == need
            there[below[out]] = False
        there[new] = True
        held = there.nonzero().view(-1)
        clock = int(new[-1]) + 1
        while question is not None and question.time <= clock * BLOCK:
            hit = bool(there[question.block])
            found.append(hit)
            centre = question.block if hit else int(held[rng.randrange(len(held))])
            passage = torch.arange(max(0, centre - BEFORE), min(clock, centre + BEHIND + 1))
            passage = passage[there[passage]]
            last_access[passage] = clock
            access_count[passage] += 1
            question = next(waiting, None)
    assert question is None
    return found
