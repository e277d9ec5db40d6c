"""What becomes of a request about the form of the answer that stands beside the question.

Layers that read memory turn to what was asked (`focus`), and what stands beside the question weighs
less. The questions of `benchmarks.recall` are asked with a request about the form of the answer in
front or behind; each setting of `--focus` answers the same ones, from the same memory. Replies are
greedy, 24 tokens.

  right      an accepted answer stands in the reply as whole words
  followed   the reply has the form that was asked for
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.recall.report import difference
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import begin
from benchmarks.texts.documents import SHORTEST, asked_about, chosen, grade, make_documents
from cmr.evaluation.answers import ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import clustered, wilson

GERMAN = {"das", "der", "des", "die", "ein", "eine", "ist", "und", "von"}
FORMS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "beginning": (
        "Begin your reply with the words Dear Tom. {}",
        lambda a: "dear tom" in a.lower(),
    ),
    "capitals": ("{} Write your whole answer in capital letters.", lambda a: _capitals(a) > 0.7),
    "ending": (
        "{} End your answer with the words over and out.",
        lambda a: "over and out" in a.lower(),
    ),
    "list": (
        "Answer in the form of a bulleted list with a hyphen in front. {}",
        lambda a: a.lstrip().startswith(("-", "*", "•")),
    ),
    "capitals, at length": (
        "{} My grandmother reads along with me and her eyes are not what they were, so please "
        "write your whole answer in capital letters, every single word of it.",
        lambda a: _capitals(a) > 0.7,
    ),
    "beginning, at length": (
        "I will copy what you write into a letter to my landlord without looking at it again, so "
        "begin your reply with the words Dear Tom and go on from there. {}",
        lambda a: "dear tom" in a.lower(),
    ),
    "language": (
        "I am five years old. Please reply in German. {}",
        lambda a: bool(GERMAN & set(a.lower().split())),
    ),
}
"""By name: the message around a question, and whether a reply has the form."""


def _capitals(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


def asked_in_forms(
    model: Any, tokenizer: Any, memory: Any, wanted: Any, focus: float
) -> list[dict[str, Any]]:
    """Detail rows of one setting; `wanted` are (fact, wording) pairs."""
    out = []
    for fact, wording in wanted:
        question = fact.questions[wording]
        for form, (message, follows) in FORMS.items():
            prompt = chat(tokenizer, message.format(question.text))
            text, _ = ask(model, tokenizer, memory, prompt)
            out.append({
                "focus": focus, "fact": fact.id, "wording": f"{wording} {form}", "form": form,
                "answer": text, "right": grade(text, question), "followed": follows(text),
            })  # fmt: skip
    return out


def summary(details: list[dict[str, Any]], focus: float, first: float) -> dict[str, Any]:
    """The row of one setting, and its paired difference to the first one."""
    mine, others = ([r for r in details if r["focus"] == f] for f in (focus, first))
    row: dict[str, Any] = {"focus": focus, "n": len(mine)}
    for what in ("right", "followed"):
        count = sum(r[what] for r in mine)
        sides = ([{**r, "right": r[what]} for r in side] for side in (mine, others))
        row[what] = count
        row[f"{what}_wilson"] = wilson(count, len(mine))
        row[f"{what}_by_fact"] = clustered(
            [float(r[what]) for r in mine], [r["fact"] for r in mine]
        )
        row[f"{what}_against"] = {f"{first:g}": difference(*sides)}
    row["both"] = sum(r["right"] and r["followed"] for r in mine)
    forms = {form: [r for r in mine if r["form"] == form] for form in FORMS}
    row["by_form"] = {form: sum(r["followed"] for r in of) for form, of in forms.items()}
    return row


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), default=5_000)
    parser.add_argument("--focus", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--questions", type=whole(), help="only the first N of 96")
    args, model, tokenizer, conditions = begin(parser, words)
    import cmr

    documents = make_documents(tokenizer, args.tokens, args.seed)
    asked = chosen(documents, args.questions)
    details: list[dict[str, Any]] = []
    for doc in asked_about(documents, asked):
        wanted = [(f, w) for f in doc.facts for w in sorted(asked.get((doc.id, f.id), ()))]
        for focus in args.focus:
            settings = {**args.settings, "focus": focus}
            with cmr.attach(model, tokenizer=tokenizer, **settings) as memory:
                memory.read(torch.tensor(doc.token_ids))
                details += asked_in_forms(model, tokenizer, memory, wanted, focus)
        print(f"{doc.id}: {len(details)} replies so far", flush=True)
    found = [summary(details, focus, args.focus[0]) for focus in args.focus]
    for row in found:
        print(f"focus {row['focus']:g}: of {row['n']} right {row['right']}, "
              f"followed {row['followed']}, both {row['both']}")  # fmt: skip
    rows.append("forms", *({**conditions, "tokens": args.tokens, **row} for row in found))


if __name__ == "__main__":
    run(main)
