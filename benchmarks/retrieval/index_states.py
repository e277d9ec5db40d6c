"""Real index states to search in: what a memory would hold of long texts, kept on the disk once.

The small model runs up to its index layer over the texts of `texts.stream` and what else the
standard library has, in windows of 512 tokens with 128 tokens of left context; the states (norm 1,
float16) and token ids are written into the cache folder. A second call goes on where the first one
stopped.
"""

from __future__ import annotations

import json
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.shared.command import Parser, run, whole
from benchmarks.texts.stream import documents
from cmr._folders import cache_root
from cmr.demo import load_smollm2
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.partial_pass import states_entering

LAYER, WINDOW, CONTEXT = 12, 512, 128
_APART = ("site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")


@dataclass(frozen=True)
class IndexStates:
    """States of one long text, in the order of the text.

    Attributes:
        states: `[tokens, hidden]` float16, norm 1 each, mapped from the disk.
        ids: `[tokens]` int32 token ids.
    """

    states: np.ndarray
    ids: np.ndarray

    def blocks(self, first: int, count: int, block: int = 32) -> torch.Tensor:
        """Blocks `[count, block, hidden]` float16 from block `first` on, in memory."""
        part = np.array(self.states[first * block : (first + count) * block])
        return torch.from_numpy(part).view(count, block, -1)


def folder() -> Path:
    """Where the states lie."""
    return cache_root() / f"index-states-layer{LAYER}"


def texts() -> Iterator[str]:
    """The texts of `texts.stream`, then the other modules of the standard library."""
    known = documents(0)
    for text in known:
        yield text.text
    names = {text.name for text in known}
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library)
        if path.name not in names and not set(inside.parts) & set(_APART):
            yield path.read_text(encoding="utf-8", errors="replace")


def token_ids(tokenizer: Any, tokens: int) -> list[int]:
    """The first `tokens` token ids of the texts.

    Raises:
        ValueError: when the texts are not that long.
    """
    ids: list[int] = []
    for text in texts():
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= tokens:
            return ids[:tokens]
    raise ValueError(f"at most {len(ids):,} tokens are to be had, got {tokens:,}")


@torch.inference_mode()
def index_states(adapter: ModelAdapter, ids: torch.Tensor) -> torch.Tensor:
    """Unit states `[batch, tokens, hidden]` float32 that enter block `LAYER`."""
    with states_entering(adapter, [LAYER], stop=LAYER) as states:
        adapter.decoder(input_ids=ids, use_cache=False)
    return F.normalize(states[LAYER].float(), dim=-1)


def build(tokens: int, batch: int = 8) -> None:
    """Fill the cache folder up to `tokens` tokens; says how far it is."""
    model, tokenizer = load_smollm2()
    adapter = ModelAdapter(model)
    ids = token_ids(tokenizer, tokens)
    folder().mkdir(parents=True, exist_ok=True)
    about, done = folder() / "about.json", 0
    if about.is_file():
        done = json.loads(about.read_text())["tokens"]
    shape = (tokens, adapter.hidden)
    path = folder() / "states.f16"
    with path.open("ab") as file:
        file.truncate(max(path.stat().st_size, 2 * shape[0] * shape[1]))
    np.array(ids, dtype=np.int32).tofile(folder() / "ids.i32")
    out = np.memmap(path, dtype=np.float16, mode="r+", shape=shape)
    begin = time.perf_counter()
    start = done
    while done < tokens:
        starts = range(done, min(tokens, done + batch * WINDOW), WINDOW)
        rows = [_window(ids, at) for at in starts]
        for at, states in zip(starts, index_states(adapter, torch.tensor(rows)), strict=True):
            left = min(at, CONTEXT)
            count = min(WINDOW, tokens - at)
            out[at : at + count] = states[left : left + count].half().numpy()
        done = min(tokens, done + batch * WINDOW)
        if done % (batch * WINDOW * 16) == 0 or done == tokens:
            out.flush()
            about.write_text(json.dumps({"tokens": done, "layer": LAYER, "hidden": shape[1]}))
            speed = (done - start) / (time.perf_counter() - begin)
            print(f"{done:,} of {tokens:,} tokens, {speed:,.0f} a second", flush=True)


def _window(ids: list[int], at: int) -> list[int]:
    """`CONTEXT + WINDOW` ids around a window, filled up behind it: nothing looks ahead."""
    left = max(0, at - CONTEXT)
    part = ids[left : at + WINDOW]
    return part + [0] * (CONTEXT + WINDOW - len(part))


def load(tokens: int) -> IndexStates:
    """The first `tokens` states.

    Raises:
        FileNotFoundError: when fewer have been made, with the command that makes them.
    """
    about = folder() / "about.json"
    made = json.loads(about.read_text()) if about.is_file() else {"tokens": 0, "hidden": 0}
    if made["tokens"] < tokens:
        raise FileNotFoundError(
            f"{tokens:,} index states expected in {folder()}, got {made['tokens']:,}: run "
            f"`python -m benchmarks.retrieval.index_states --tokens {tokens}`"
        )
    shape = (tokens, made["hidden"])
    states = np.memmap(folder() / "states.f16", dtype=np.float16, mode="r", shape=shape)
    ids = np.fromfile(folder() / "ids.i32", dtype=np.int32, count=tokens)
    return IndexStates(states, ids)


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("--tokens", type=whole(), default=1_500_000)
    parser.add_threads(2)
    build(parser.parse_args(words).tokens)


if __name__ == "__main__":
    run(main)
