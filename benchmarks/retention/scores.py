"""What every scorer says of every token of the stream: one pass through the reader, kept on disk.

The stream is read in segments, each from a fresh window, so that a pass that was interrupted goes
on where it stopped. Raw scores are kept, and calibrated afterwards by the library as if they came
piece by piece, so that calibration can be changed without reading again.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import load_model
from benchmarks.texts.stream import make_stream
from cmr._folders import cache_root

PASSES = {
    "forward": ("attention_based", "variance_based", "surprise"),
    "backward": ("gradient_based",),
}
"""Methods by pass: that with gradients takes three times as long, and may cover less."""
SEGMENT = 15_360  # tokens: whole pieces of 384
BLOCK = 32
TOKENS = 1_000_000


def collector(memory: Any, methods: tuple[str, ...]) -> Any:
    """A scorer in place of the reader's own that keeps the raw scores of tokens by each method.

    Its `pieces` are dictionaries of `[tokens]` float32 a method, and `state`, the mean index state
    of each block, `[blocks, hidden]` bfloat16.
    """
    from cmr.integration.capture.block_scorer import BlockScorer

    class Collector(BlockScorer):
        needs_final = True
        needs_gradient = "gradient_based" in methods

        def of_piece(self, piece: Any) -> torch.Tensor:
            found = {name: x[0].clone() for name, x in self.raw(piece, methods).items()}
            if not self.needs_gradient:
                states = piece.index[0].float().split(BLOCK)
                found["state"] = torch.stack([x.mean(0) for x in states]).bfloat16()
            self.pieces.append(found)
            return super().of_piece(piece)

    scorer = Collector(memory._core.adapter, memory.config, memory._core.layout.index_layer)
    scorer.pieces = []
    return scorer


def folder(ids: list[int]) -> Path:
    """Where the scores of this stream lie; its first segment tells it from others."""
    digest = hashlib.blake2b(repr(ids[:SEGMENT]).encode(), digest_size=6).hexdigest()
    return cache_root() / f"retention-{digest}"


def read(model: Any, ids: list[int], which: str) -> None:
    """Reads what has not been read yet, a file a segment."""
    import cmr

    place = folder(ids)
    place.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(ids), SEGMENT)):
        path = place / f"{number:04d}-{which}.safetensors"
        part = torch.tensor(ids[start : start + SEGMENT])
        if path.exists() or len(part) < SEGMENT:
            continue
        begun = time.perf_counter()
        with cmr.attach(model, budget=1_024) as memory:
            memory._core.scorer = scorer = collector(memory, PASSES[which])
            memory.read(part)
        found = {name: torch.cat([p[name] for p in scorer.pieces]) for name in scorer.pieces[0]}
        half = path.with_suffix(".part")
        save_file({"token_ids": part, **found}, half)
        half.rename(path)
        speed = len(part) / (time.perf_counter() - begun)
        print(f"{which}: {start + len(part):,} tokens, {speed:.0f} a second", flush=True)


def load(ids: list[int], which: str) -> dict[str, torch.Tensor]:
    """Scores of what a pass has read so far from the start on, segments joined; empty if nothing.

    Raises:
        RuntimeError: when a file is of another stream.
    """
    parts = []
    for number, start in enumerate(range(0, len(ids), SEGMENT)):
        path = folder(ids) / f"{number:04d}-{which}.safetensors"
        if not path.exists():
            break
        parts.append(load_file(path))
        if parts[-1].pop("token_ids").tolist() != ids[start : start + SEGMENT]:
            raise RuntimeError(f"{path} is of another stream: delete it and read again")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("--tokens", type=whole(SEGMENT), default=TOKENS)
    parser.add_argument("--passes", nargs="+", choices=tuple(PASSES), default=list(PASSES))
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    args = parser.parse_args(words)
    model, tokenizer = load_model(args.model)
    ids = make_stream(tokenizer, args.tokens, args.seed).ids
    for which in args.passes:
        read(model, ids, which)


if __name__ == "__main__":
    run(main)
