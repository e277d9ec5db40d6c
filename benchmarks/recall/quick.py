"""`cmr evaluate --quick` as a measurement: generated documents, RULER's kinds.

Needles alone and among others, several values of one, several asked at once, variables, common
words, and a conversation (see `cmr.evaluation.quick`). Replies are greedy, 32 tokens, and judged by
the share of what is wanted that stands in them as whole words. Memory is asked the question alone.
`dense` shows the passages whose embeddings are nearest to the question's, as many tokens as memory
read; presses of kvpress (`--systems … kvpress`) keep `--kept` of the whole document. `mean` of a
row is over kinds, each of which counts the same, with a bootstrap over questions within kinds.
`whole_seconds` is what all systems together took, less what a folder had of them before.

    python -m benchmarks.recall.quick --tokens 8000 --systems memory full-context bm25 dense kvpress
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.dense import Dense
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, folder, run, whole
from benchmarks.shared.model import begin
from cmr.evaluation import SYSTEMS, evaluate, register_system
from cmr.evaluation.documents import Document
from cmr.evaluation.passages import PASSAGE, filled, passage_starts, tokens_of
from cmr.evaluation.quick import quick
from cmr.evaluation.quick.texts import DOCUMENTS, TOKENS
from cmr.evaluation.registry import MAKERS
from cmr.evaluation.systems import UNTOLD, Excerpt, Spans

DRAWS = 10_000


class DenseText(Excerpt):
    """The passages that a dense retriever finds, as many and as many tokens as memory read."""

    def open(self, document: Document) -> None:
        """Embeds its passages."""
        super().open(document)
        ids = document.token_ids
        self.places = [(start, start + PASSAGE) for start in passage_starts(len(ids))]
        self.index = Dense(self.asked.tokenizer.batch_decode([ids[a:b] for a, b in self.places]))

    def spans(self, question: str, recalled: Spans | None) -> Spans:
        """The best passages."""
        ranked = [self.places[i] for i in np.argsort(-self.index.scores(question), kind="stable")]
        tokens, many = len(tokens_of(recalled or [])) or UNTOLD, len(recalled or []) or 2
        return filled(ranked, tokens, many, len(self.document.token_ids))


def over_kinds(rows_of_system: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean score over kinds, and its 95 % interval; empty where nothing could be asked."""
    kinds: dict[str, list[float]] = {}
    for row in rows_of_system:
        if row["reply"] is not None:
            kinds.setdefault(row["kind"], []).append(row["contains"])
    if not kinds:
        return {}
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.choice(of, (DRAWS, len(of))).mean(1) for of in kinds.values()], axis=0)
    return {
        "mean": float(np.mean([np.mean(of) for of in kinds.values()])),
        "mean_interval": [float(end) for end in np.percentile(drawn, [2.5, 97.5])],
    }


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    if "dense" not in MAKERS:
        register_system("dense", DenseText)
    parser.add_argument(
        "--systems", nargs="+", choices=[*MAKERS, "kvpress"], default=list(SYSTEMS[:-1])
    )
    parser.add_argument("--tokens", type=whole(400), default=TOKENS, help="of a document, about")
    parser.add_argument("--documents", type=whole(), default=DOCUMENTS, help="of each kind")
    parser.add_argument("--kept", type=float, help="tokens that a press keeps, or their share")
    parser.add_argument(
        "--folder",
        type=folder,
        metavar="FOLDER",
        help="where replies are kept: a second call goes on from there",
    )
    args, model, tokenizer, conditions = begin(parser, words)
    documents, questions = quick(tokenizer, args.seed, args.tokens, args.documents)

    def tell(done: int, total: int, doing: str) -> None:
        print(f"{done} of {total}: {doing}", flush=True)

    began = time.perf_counter()
    found = evaluate(
        model, tokenizer, documents, questions,
        systems=args.systems, settings=args.settings, kept=args.kept, folder=args.folder,
        progress=tell,
    )  # fmt: skip
    if args.folder is not None:
        found.write(Path(args.folder))
    seconds = round(time.perf_counter() - began, 1)
    # What the command asks, and the same kinds otherwise: two sets of rows.
    file = "quick" if (args.tokens, args.documents) == (TOKENS, DOCUMENTS) else "kinds"
    for row in found.summary():
        mine = [each for each in found.rows if each["system"] == row["system"]]
        rows.append(file, {
            **conditions, "tokens": args.tokens, "documents": args.documents,
            "whole_seconds": seconds, **row,
            **over_kinds(mine),
            **{k: mine[0][k] for k in ("kept_tokens", "kept_bytes", "kvpress") if k in mine[0]},
        })  # fmt: skip
        print(row)


if __name__ == "__main__":
    run(main)
