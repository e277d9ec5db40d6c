"""No harm: the loss on ordinary prose with memory attached and read, against the window alone.

Of each essay the first part is read into memory; the rest is scored in windows of 512 tokens, once
with recall on and once with the memory paused, the same forward both times. With `--chunk` the
window goes through the model in pieces with a KV cache, so that a piece reads only what could be
chosen from its own and earlier tokens; one forward over a whole window lets its early tokens read
what was chosen for its late ones. Positive differences are harm; their interval is a bootstrap over
windows. `recalled_share` says in how many windows anything was recalled at all.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import torch
from torch.nn import functional

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run, whole
from benchmarks.shared.model import WINDOW, described, load_model
from benchmarks.texts.essays import essays
from cmr.evaluation.answers import recalled
from cmr.evaluation.prompts import encode
from cmr.evaluation.settings import overrides
from cmr.evaluation.statistics import clustered

BOOKS = ["worked", "popular", "gap", "philosophy"]


@torch.inference_mode()
def losses(model: Any, ids: list[int], chunk: int) -> torch.Tensor:
    """Loss in nats of each token but the first, [len(ids) - 1], float32."""
    tokens = torch.tensor([ids], device=model.device)
    if chunk >= len(ids):
        logits = model(input_ids=tokens, use_cache=False).logits
    else:
        from transformers import DynamicCache

        cache, parts = DynamicCache(config=model.config), []
        for at in range(0, len(ids), chunk):
            out = model(input_ids=tokens[:, at : at + chunk], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
        logits = torch.cat(parts, dim=1)
    return functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:], reduction="none")


def score_book(
    model: Any, memory: Any, name: str, ids: list[int], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Detail rows, one a window, of one essay."""
    half = len(ids) // 2
    memory.resume()
    memory.clear()
    memory.read(torch.tensor(ids[:half]))
    out = []
    for number in range(args.windows):
        window = ids[half + number * WINDOW : half + (number + 1) * WINDOW]
        if len(window) < WINDOW:
            break
        memory.resume()
        with_memory = losses(model, window, args.chunk)
        passages = recalled(memory)
        if args.grow:
            memory.read(torch.tensor(window))
        memory.pause()
        alone = losses(model, window, args.chunk)
        out.append({
            "book": name, "window": number, "tokens": len(with_memory),
            "stored": half, "memory": float(with_memory.mean()), "alone": float(alone.mean()),
            "difference": float((with_memory - alone).mean()),
            "worst": float((with_memory - alone).max()),
            "passages": len(passages), "gate": passages[0].gate if passages else 0.0,
        })  # fmt: skip
    memory.resume()
    return out


def score_books(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One summary row for each memory weight asked for."""
    import cmr

    texts = dict(essays())
    unknown = [b for b in args.books if b not in texts]
    if unknown:
        known = ", ".join(sorted(texts))
        raise UsageError(f"essays among {known} expected, got {', '.join(unknown)}")
    model, tokenizer = load_model(args.model)
    prose = {b: encode(tokenizer, "\n\n".join(" ".join(p) for p in texts[b])) for b in args.books}
    out = []
    for weight in args.weights:
        settings = dict(args.settings)
        if weight != "default":
            settings["memory_weight"] = weight if weight == "auto" else float(weight)
        memory = cmr.attach(model, tokenizer=tokenizer, **settings)
        try:
            head = rows.conditions(model, 0, chunk=args.chunk, grow=args.grow, weight=weight,
                                   asked=settings, memory=described(memory))  # fmt: skip
            details = [r for b in args.books for r in score_book(model, memory, b, prose[b], args)]
        finally:
            memory.detach()
        differences = [r["difference"] for r in details]
        clusters = [(r["book"], r["window"]) for r in details]
        row = {
            "windows": len(details), "scored_tokens": sum(r["tokens"] for r in details),
            "memory": mean(r["memory"] for r in details),
            "alone": mean(r["alone"] for r in details), "difference": mean(differences),
            "interval": clustered(differences, clusters),
            "recalled_share": mean(r["passages"] > 0 for r in details),
            "gate": mean(r["gate"] for r in details),
        }  # fmt: skip
        rows.append("perplexity_details", *({"run": head["run"], **r} for r in details))
        rows.append("perplexity", {**head, **row})
        low, high = row["interval"]
        print(
            f"memory_weight {weight}: {row['difference']:+.4f} nats [{low:+.4f}, {high:+.4f}] on "
            f"{row['scored_tokens']:,} tokens in {len(details)} windows (alone {row['alone']:.4f}, "
            f"recalled in {100 * row['recalled_share']:.0f} %, gate {row['gate']:.3f})",
            flush=True,
        )
        out.append(row)
    return out


def weight(word: str) -> str:
    """A type for an argument: `default`, or what `memory_weight` may be."""
    if word != "default":
        try:
            overrides([f"memory_weight={word}"])
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return word


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--books", nargs="+", default=BOOKS)
    parser.add_argument("--windows", type=whole(), default=12, help="scored windows a book at most")
    parser.add_argument("--chunk", type=whole(1, WINDOW), default=WINDOW, help="tokens a forward")
    parser.add_argument("--grow", action="store_true", help="read each scored window, too")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=weight,
        default=["default"],
        help="memory_weight variants: default, auto or a number in [0, 1]",
    )
    parser.add_model()
    parser.add_threads()
    parser.add_settings()
    score_books(parser.parse_args(words))


if __name__ == "__main__":
    run(main)
