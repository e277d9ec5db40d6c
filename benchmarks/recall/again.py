"""A conversation that is remembered as a whole, in which the same is asked again and again.

Six people tell six things each (`texts.notes`), a message at a time, and then ask about every one
five times: twice plainly, twice with words around it, and plainly again. Every message is a request
of its own, without the ones before it, to a memory with `remember="all"`: what the model answered
and what was asked are remembered, too. Replies are greedy, 24 tokens.

  right   replies in which the answer stands as whole words
  found   questions whose answer stands in the passages that were recalled for them
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.recall.report import summarise
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run
from benchmarks.shared.model import begin, described
from benchmarks.texts.documents import Question, grade
from benchmarks.texts.notes import PEOPLE, people
from cmr.evaluation.answers import ask
from cmr.evaluation.prompts import chat
from cmr.evaluation.statistics import share

ASKED = ("{}", "{}", "Tell me again: {}", "Sorry, I forgot. {}", "{}")
"""What is said around a question, time after time."""


def asked(
    model: Any, tokenizer: Any, memory: Any, session: str, question: Question, around: str
) -> dict[str, Any]:
    """One reply, whether it is right, and whether what was recalled for it holds the answer."""
    with memory.session(session):
        reply, found = ask(model, tokenizer, memory, chat(tokenizer, around.format(question.text)))
    text = "\n".join(tokenizer.decode(list(passage.token_ids)) for passage in found)
    return {"answer": reply, "right": grade(reply, question), "found": grade(text, question)}


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--people", type=int, default=PEOPLE, help="the first of them alone")
    parser.add_argument("--verbose", action="store_true")
    args, model, tokenizer, conditions = begin(parser, words, remember="all")
    import cmr

    memory = cmr.attach(model, tokenizer=tokenizer, **args.settings)
    conditions.update(memory=described(memory))
    details: list[dict[str, Any]] = []
    try:
        for number, person in enumerate(people(args.seed)[: args.people]):
            session = f"person {number}"
            with memory.session(session, create=True):
                for note in person.notes:
                    ask(model, tokenizer, memory, chat(tokenizer, note))
            for at, around in enumerate(ASKED):
                for fact, question in enumerate(person.questions):
                    begun = time.perf_counter()
                    got = asked(model, tokenizer, memory, session, question, around)
                    details.append({
                        "tokens": memory.session(session).tokens, "system": f"time {at + 1}",
                        "fact": f"p{number}n{fact}", "kind": question.text, "wording": at,
                        "question": around.format(question.text),
                        "group": "number" if question.answers[0].isdigit() else "name",
                        "expected": question.answers[0],
                        "seconds": round(time.perf_counter() - begun, 3), **got,
                    })  # fmt: skip
                    if args.verbose:
                        d = details[-1]
                        said = f"{d['question']} | {d['expected']} | {d['answer']!r}"
                        print(f"  {d['right']!s:6}{d['found']!s:6}{said}", flush=True)
    finally:
        memory.detach()
    rows.append("again_details", *({"run": conditions["run"], **r} for r in details))
    for at, around in enumerate(ASKED):
        mine = [r for r in details if r["wording"] == at]
        row = {**summarise(details, f"time {at + 1}"), "around": around}
        row["found"] = sum(r["found"] for r in mine)
        print(f"{around:24} {row['right']} of {row['n']} right {share(row['right'], row['n'])}, "
              f"{row['found']} found")  # fmt: skip
        rows.append("again", {**conditions, **row})


if __name__ == "__main__":
    run(main)
