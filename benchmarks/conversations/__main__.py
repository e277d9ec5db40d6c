"""Conversations of people: the share of the evidence found, for bare questions and wrapped ones.

The folder holds conversations of LoCoMo (see `locomo`); of them the rows hold numbers of questions
and figures, never text. A conversation is read once as one text. Each of its questions of
categories 1 to 4 that names a turn as evidence is asked as a chat message: alone (`bare`) and, with
`--wrapped`, inside everyday talk in front of it, behind it and on both sides (`texts.everyday`). A
turn is found when 60 % of its tokens are among those shown; of several turns the share counts.

  memory   what stock `generate` recalled for the message, with the settings as they are
  bm25     passages of 64 tokens by BM25 of the whole message, the two best widened
  dense    the same by all-MiniLM-L6-v2

The text retrievers show `--tokens` for every message; the default of 224 is about what memory
recalls in the mean with its defaults, and rows say how many each showed. Intervals are a bootstrap
over questions. `benchmarks.conversations.report` puts one run beside another.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

from benchmarks.conversations.finders import TOKENS, Remembering, Retrieving
from benchmarks.conversations.locomo import Asked, Conversation, load, require
from benchmarks.conversations.report import FORMS, summaries
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, folder, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.everyday import PLACES, talk
from cmr.evaluation.passages import PASSAGE, tokens_of

SYSTEMS = ("memory", "bm25", "dense")
SHARE = 0.6
"""Of a turn's tokens: so many shown, and the turn is found."""


def share_found(evidence: tuple[tuple[int, int], ...], shown: set[int]) -> float:
    """The share of these turns of which at least `SHARE` of the tokens are shown."""
    return statistics.fmean(
        len(shown.intersection(range(start, end))) >= SHARE * (end - start)
        for start, end in evidence
    )


def message(asked: Asked, form: str, seed: int) -> str:
    """The question in one of the forms; `seed` of the talk, see `everyday.talk`."""
    return asked.text if form == "bare" else talk(form, asked.number, seed).around(asked.text)


def drawn(conversations: list[Conversation], count: int | None, seed: int) -> set[tuple[str, int]]:
    """Names and numbers of the questions to ask: all, or `count` of all of them together."""
    every = [(c.name, q.number) for c in conversations for q in c.questions]
    return set(
        every if count is None else random.Random(seed).sample(every, min(count, len(every)))
    )


def measure(
    conversation: Conversation,
    asked: list[Asked],
    finders: dict[str, Any],
    forms: tuple[str, ...],
    seed: int,
) -> list[dict[str, Any]]:
    """A row a question: in each form what each system found, and in how many tokens."""
    out = []
    for question in asked:
        row: dict[str, Any] = {
            "conversation": conversation.name, "question": question.number,
            "category": question.category, "evidence": len(question.evidence),
        }  # fmt: skip
        for form in forms:
            text = message(question, form, seed)
            row[form] = {"marks": "?" in text}
            for name, finder in finders.items():
                shown = tokens_of(finder.spans(text))
                found = share_found(question.evidence, shown)
                row[form][name] = [round(found, 4), len(shown)]
        out.append(row)
    return out


def ask_everything(
    args: argparse.Namespace, model: Any, tokenizer: Any, conditions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Reads and asks; appends the rows of a conversation when it is done; gives all of them."""
    import cmr

    told = [load(args.data, name, tokenizer) for name in args.conversations]
    wanted = drawn(told, args.questions, args.seed)
    forms = FORMS if args.wrapped else FORMS[:1]
    systems = [name for name in SYSTEMS if name in args.systems]
    longest = max(len(c.token_ids) for c in told)
    settings = {"budget": longest + 1024, **args.settings}
    details: list[dict[str, Any]] = []
    memory = cmr.attach(model, tokenizer=tokenizer, **settings) if "memory" in systems else None
    try:
        if memory is not None:
            conditions["settings"]["memory"] = described(memory)
            conditions["calibrated"] = memory.stats()["calibrated"]
        for conversation in told:
            asked = [q for q in conversation.questions if (conversation.name, q.number) in wanted]
            if not asked:
                continue
            begun = time.perf_counter()
            finders: dict[str, Any] = {}
            for name in systems:
                ids = conversation.token_ids
                finders[name] = (
                    Remembering(model, tokenizer, memory, ids)
                    if name == "memory"
                    else Retrieving(name, tokenizer, ids, args.tokens)
                )
            read = time.perf_counter() - begun
            found = measure(conversation, asked, finders, forms, args.seed)
            took = (time.perf_counter() - begun - read) / len(asked)
            rows.append("conversations_details", *({"run": conditions["run"], **r} for r in found))
            details += found
            print(
                f"{conversation.name}: {len(conversation.token_ids):,} tokens, {len(asked)} "
                f"questions, read in {read:.0f} s, {took:.2f} s a question",
                flush=True,
            )
    finally:
        if memory is not None:
            memory.detach()
    return details


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", type=folder, required=True, metavar="FOLDER", help="conversations, NAME.json each"
    )
    parser.add_argument("--conversations", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--questions", type=whole(), help="only N of all, drawn with the seed")
    parser.add_argument(
        "--tokens", type=whole(PASSAGE), default=TOKENS, help="shown by the text retrievers"
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--wrapped", action="store_true", help=f"inside everyday talk, too: {', '.join(PLACES)}"
    )
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    args.conversations = require(args.data, args.conversations)
    model, tokenizer = load_model(args.model)
    conditions = rows.conditions(
        model, args.seed, questions=args.questions, tokens=args.tokens, asked=args.settings
    )
    details = ask_everything(args, model, tokenizer, conditions)
    found = summaries(details)
    rows.append("conversations", *({**row, **conditions} for row in found))


if __name__ == "__main__":
    run(main)
