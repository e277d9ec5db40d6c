"""Answers on the haystacks: memory beside BM25 and a dense retriever as prompts of equal length.

Stock greedy `generate` with the chat template. Memory reads what it recalls; the others are given
the passages that they rank first as text before the question: as many tokens, in as many passages,
as memory recalled for the same question (`passages.widen`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch

from benchmarks.baselines.lexical import Lexical
from benchmarks.baselines.passages import best_passages, passage_texts
from benchmarks.shared import rows
from benchmarks.shared.answer import answers
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin
from benchmarks.texts.haystack import ASKED_KINDS, SHORTEST, Haystack, make_haystacks, right
from cmr.evaluation.answers import Passage, ask
from cmr.evaluation.passages import PASSAGE, STRIDE, shown, tokens_of, widen
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import clustered

NEW_TOKENS = 32
UNRECALLED = 128  # tokens shown where memory recalled nothing


def prompts(
    index: Any, tokenizer: Any, haystack: Haystack, recalled: list[list[Passage]]
) -> list[list[int]]:
    """A prompt for each question with what a text retriever ranks first."""
    out = []
    ids = haystack.token_ids
    for asked, passages in zip(haystack.questions, recalled, strict=True):
        tokens = len(tokens_of((p.start, p.end) for p in passages)) or UNRECALLED
        count = max(1, len(passages))
        width = max(PASSAGE, tokens // count)
        spans = [
            widen(start * STRIDE, start * STRIDE + PASSAGE, width, len(ids))
            for start in best_passages(index.scores(asked.text), count)
        ]
        out.append(chat(tokenizer, asked.text, shown(tokenizer, ids, spans)))
    return out


def measure(length: int, model: Any, tokenizer: Any, args: argparse.Namespace) -> list[Any]:
    """One row for each system and kind of question at a length."""
    import cmr
    from benchmarks.baselines.dense import Dense

    good: dict[tuple[str, str], list[float]] = defaultdict(list)
    clusters: dict[tuple[str, str], list[str]] = defaultdict(list)
    tokens: list[int] = []
    for haystack in make_haystacks(tokenizer, length, args.seed)[: args.haystacks]:
        recalled: list[list[Passage]] = []
        replies: dict[str, list[str]] = {"memory": []}
        with cmr.attach(model, tokenizer=tokenizer, budget=1 << 20, **args.settings) as memory:
            memory.read(torch.tensor(haystack.token_ids))
            begun = time.perf_counter()
            for asked in haystack.questions:
                prompt = chat(tokenizer, asked.text)
                text, passages = ask(model, tokenizer, memory, prompt, NEW_TOKENS)
                replies["memory"].append(text)
                recalled.append(passages)
            took = time.perf_counter() - begun
        texts = passage_texts(tokenizer, haystack.token_ids)
        for name, index in (("bm25", Lexical(texts)), ("dense", Dense(texts))):
            shown_prompts = prompts(index, tokenizer, haystack, recalled)
            replies[name] = answers(model, tokenizer, shown_prompts, args.batch, NEW_TOKENS)
        tokens += [len(tokens_of((p.start, p.end) for p in ps)) for ps in recalled]
        for name, given in replies.items():
            for asked, reply in zip(haystack.questions, given, strict=True):
                good[name, asked.kind].append(float(right(reply, asked)))
                clusters[name, asked.kind].append(asked.fact_ids[0])
        print(f"{haystack.id}: {took / len(haystack.questions):.2f} s an answer", flush=True)
    out = []
    for name in ("memory", "bm25", "dense"):
        means = []
        for kind in ASKED_KINDS:
            values = good[name, kind]
            low, high = clustered(values, clusters[name, kind])
            means.append(statistics.fmean(values))
            out.append(
                {"tokens": length, "system": name, "kind": kind, "questions": len(values),
                 "right": round(means[-1], 4), "interval": (round(low, 4), round(high, 4))}
            )  # fmt: skip
        out.append({"tokens": length, "system": name, "kind": "mean",
                    "right": round(statistics.fmean(means), 4),
                    "mean_recalled_tokens": round(statistics.fmean(tokens), 1)})  # fmt: skip
        print(length, name, [round(m, 3) for m in means], out[-1]["right"], flush=True)
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), nargs="+", default=[5_000, 30_000])
    parser.add_argument("--haystacks", type=whole(), help="only the first N of a length")
    parser.add_argument("--batch", type=whole(), default=8, help="prompts at once (text systems)")
    args, model, tokenizer, conditions = begin(parser, words)
    for length in args.tokens:
        found = measure(length, model, tokenizer, args)
        rows.append("retrieval_answers", *({**row, **conditions} for row in found))


if __name__ == "__main__":
    run(main)
