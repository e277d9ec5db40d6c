"""Search by clusters beside the exact search, over a million real index states.

Blocks of `index_states` are written into a ring buffer that keeps the index alone, 120 questions of
three kinds are asked, and the first four passages and the times of both searches are compared, in
turns in one run. Then half of the blocks give way to other text, and the questions are asked again,
before and after the clusters are found anew.

Kinds: `fact`, wordings of `facts` that no text answers; `about`, a few words of a sentence of the
text; `changed`, a sentence of it with a third of its words replaced. The query is the chat turn.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.retrieval.index_states import LAYER, IndexStates, index_states, load
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.texts.facts import KINDS, POOLS, slots
from benchmarks.texts.stream import SENTENCE, documents
from cmr.demo import load_smollm2
from cmr.evaluation.machine import version
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.reference.select import Rule, SearchColumns
from cmr.kernels.select import maxsim_select
from cmr.memory.batch import BlockBatch
from cmr.memory.block_store import BlockStore
from cmr.memory.keeper import Keeper
from cmr.retrieval.clusters.hierarchy import MemoryHierarchy
from cmr.retrieval.selection import TUNED

BLOCK, K, TOKENS = 32, 4, 64
RULE: Rule = TUNED._replace(threshold=0.0)
ENTRIES: Rule = RULE._replace(passage=1, clamp=1e9)  # of one query vector: the order of its cosines
ASKED = ("fact", "about", "changed")
TEXTS = 80  # documents that questions are taken from: they lie within every size asked for


@dataclass(frozen=True)
class Question:
    """A question and its states at the index layer, `[1, tokens, hidden]` float32, norm 1."""

    kind: str
    text: str
    states: torch.Tensor


def wordings(kind: str, count: int, rng: random.Random) -> Iterator[str]:
    """Questions of a kind."""
    prose = [text.text for text in documents(0)[:TEXTS] if text.prose]
    words = [word for text in prose[:40] for word in re.findall(r"[A-Za-z]{4,}", text)]
    for number in range(count):
        if kind == "fact":
            wording = KINDS[number % len(KINDS)].questions[number % 4]
            yield wording.format(**{slot: rng.choice(POOLS[slot]) for slot in slots(wording)})
            continue
        sentence = ""
        while not 60 <= len(sentence) <= 260:
            found = [match[0] for match in SENTENCE.finditer(rng.choice(prose))]
            sentence = rng.choice(found) if found else ""
        parts = sentence.split()
        if kind == "about":
            length = rng.randint(4, 8)
            start = rng.randrange(max(1, len(parts) - length))
            topic = " ".join(parts[start : start + length]).strip(".,;!?")
            yield f"What is said about {topic}?"
        else:
            for at in rng.sample(range(len(parts)), len(parts) // 3):
                parts[at] = rng.choice(words)
            yield " ".join(parts)


def questions(count: int, seed: int) -> list[Question]:
    """`count` questions of each kind, each read by itself as a turn of a chat."""
    model, tokenizer = load_smollm2()
    adapter, rng, asked = ModelAdapter(model), random.Random(seed), []
    for kind in ASKED:
        for text in wordings(kind, count, rng):
            turn = [{"role": "user", "content": text}]
            chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
            begin = chat[: chat.index(text)]
            before = len(tokenizer(begin, add_special_tokens=False)["input_ids"])
            states = index_states(adapter, torch.tensor([ids]))[:, before:][:, -TOKENS:]
            asked.append(Question(kind, text, states))
    return asked


def new_ring(blocks: int, hidden: int, dtype: torch.dtype, block: int = BLOCK) -> BlockStore:
    """A store that keeps the index alone."""
    return BlockStore(
        slots=blocks,
        block_size=block,
        hidden=hidden,
        layers={},
        index_dtype=dtype,
        device=torch.device("cpu"),
    )


def write(ring: BlockStore, states: IndexStates, first: int, count: int) -> None:
    """Store blocks of the text; the oldest ones give way."""
    block, keeper = ring.block_size, Keeper(ring)
    step = 16384 // block
    for start in range(first, first + count, step):
        many = min(step, first + count - start)
        place = torch.arange(start * block, (start + many) * block)[None]
        ids = torch.from_numpy(states.ids[place[0].numpy()]).long()[None]
        index = states.blocks(start, many, block).float().view(1, many * block, -1)
        keeper.write(BlockBatch([0] * many, ids, place, index, {}))


def rule_of(ring: BlockStore) -> Rule:
    """How passages of blocks, or single entries, are scored."""
    return ENTRIES if ring.block_size == 1 else RULE


def exactly(ring: BlockStore, query: torch.Tensor, sessions: torch.Tensor) -> tuple[Any, ...]:
    """The exact search: starts, scores and the similarity of every passage."""
    size = ring.high_water
    unit = torch.nn.functional.normalize(query, dim=-1).to(ring.index.dtype)
    maxima = ring.maxima(unit, sessions, 0, size)
    columns = SearchColumns(
        ring.session[:size],
        ring.positions[:size],
        ring.successor[:size],
        ring.predecessor[:size],
        ring.created[:size],
    )
    found = maxsim_select(maxima, None, columns, sessions, None, rule_of(ring), K)
    return found.starts[0].tolist(), found.scores[0].tolist()


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and milliseconds."""
    start = time.perf_counter()
    found = act()
    return found, 1e3 * (time.perf_counter() - start)


def compare(ring: BlockStore, near: MemoryHierarchy, asked: list[Question]) -> dict[str, Any]:
    """Overlap of the first four, and times of both searches in turns."""
    sessions, rule = torch.zeros(1, dtype=torch.int64), rule_of(ring)
    same: dict[str, list[float]] = {kind: [] for kind in ASKED}
    first, exact_ms, near_ms = [], [], []
    for number, question in enumerate(asked):
        ways = {
            "exact": lambda q=question.states: exactly(ring, q, sessions),
            "near": lambda q=question.states: near.search(ring, q, None, sessions, rule, K),
        }
        if not number:  # what is made at the first search is not the search
            for way in ways.values():
                way()
        found = {}
        for name in sorted(ways, reverse=bool(number % 2)):
            found[name], spent = timed(ways[name])
            (exact_ms if name == "exact" else near_ms).append(spent)
        starts, _ = found["exact"]
        got = found["near"].starts[0].tolist()
        same[question.kind].append(len(set(starts) & set(got)) / K)
        first.append(starts[0] == got[0])
    everything = [share for shares in same.values() for share in shares]
    spent, beside = statistics.median(exact_ms), statistics.median(near_ms)
    return {
        "overlap_at_4": round(statistics.mean(everything), 4),
        "overlap_by_kind": {k: round(statistics.mean(v), 4) for k, v in same.items()},
        "first_alike": round(statistics.mean(first), 4),
        "questions": len(everything),
        "exact_ms": round(spent, 2),
        "hierarchy_ms": round(beside, 2),
        "ratio": round(beside / spent, 4),
        "ratio_of_pairs": round(
            statistics.median(b / a for a, b in zip(exact_ms, near_ms, strict=True)), 4
        ),
    }


@torch.inference_mode()
def main(words: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(), default=1_000_000)
    parser.add_argument("--questions", type=whole(), default=40, help="of each kind")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--entries", action="store_true", help="one token a block and a query")
    parser.add_argument("--no-replacing", action="store_true")
    parser.add_seed()
    parser.add_threads(1)
    options = parser.parse_args(words)
    block = 1 if options.entries else BLOCK
    blocks = options.tokens // block
    half = 0 if options.no_replacing else blocks // 2
    states = load((blocks + half) * block)
    asked = questions(options.questions, options.seed)
    if options.entries:  # the token in the middle asks
        asked = [replace(q, states=q.states[:, [q.states.shape[1] // 2]]) for q in asked]
    dtype = getattr(torch, options.dtype)
    ring = new_ring(blocks, states.states.shape[1], dtype, block)
    write(ring, states, 0, blocks)
    about = rows.conditions(layer=LAYER, k=K, **vars(options))
    about |= {"faiss": version("faiss-cpu"), "blocks": blocks, "index_dtype": options.dtype}
    near = MemoryHierarchy(seed=options.seed, background=False, drift=2.0)

    def report(case: str, **more: Any) -> None:
        row = {**about, "case": case, **compare(ring, near, asked), **more}
        row["clusters"], row["bytes_per_token"] = near.clusters, near.nbytes / options.tokens
        row["index_bytes_per_token"] = ring.index.element_size() * ring.index.shape[-1]
        rows.append("hierarchy", row)
        print({key: row[key] for key in row if key not in about or key == "case"}, flush=True)

    _, spent = timed(lambda: near.rebuild(ring))
    report("new", rebuild_s=round(spent / 1e3, 1))
    if half:
        write(ring, states, blocks, half)
        _, spent = timed(lambda: near.sync(ring))
        report("half replaced, old clusters", encode_ms_per_block=round(spent / half, 3))
        _, spent = timed(lambda: near.rebuild(ring))
        report("half replaced, new clusters", rebuild_s=round(spent / 1e3, 1))
    near.close()


if __name__ == "__main__":
    run(main)
