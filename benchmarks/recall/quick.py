"""`cmr evaluate --quick` as a measurement: generated documents of some 1,600 tokens, RULER's kinds.

Needles alone and among others, several values of one, several asked at once, variables, common
words, and a conversation (see `cmr.evaluation.quick`). Replies are greedy, 32 tokens, and judged by
the share of what is wanted that stands in them as whole words. Memory is asked the question alone.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, folder, run
from benchmarks.shared.model import begin
from cmr.evaluation import SYSTEMS, evaluate
from cmr.evaluation.quick import quick


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS[:-1]))
    parser.add_argument(
        "--folder",
        type=folder,
        metavar="FOLDER",
        help="where replies are kept: a second call goes on from there",
    )
    args, model, tokenizer, conditions = begin(parser, words)
    documents, questions = quick(tokenizer, seed=args.seed)

    def tell(done: int, total: int, doing: str) -> None:
        print(f"{done} of {total}: {doing}", flush=True)

    found = evaluate(
        model, tokenizer, documents, questions,
        systems=args.systems, settings=args.settings, folder=args.folder, progress=tell,
    )  # fmt: skip
    if args.folder is not None:
        found.write(Path(args.folder))
    for row in found.summary():
        rows.append("quick", {**conditions, **row})
        print(row)


if __name__ == "__main__":
    run(main)
