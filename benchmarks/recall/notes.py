"""Short notes and what people ask about themselves: memory beside the same notes in the prompt.

Six people told six things each, some 150 tokens a person (`texts.notes`), and ask about every one
in the first person: 36 questions. Replies are greedy, 24 tokens, with the model's chat template,
and right when the answer stands in them as whole words.

  memory      the question alone; the notes were read once, as one text
  in_prompt   all notes of the person, then the question, in one message
  alone       the question alone, without a memory
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.recall.report import difference, summarise
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run
from benchmarks.shared.model import begin, described
from benchmarks.texts.documents import Question, grade
from benchmarks.texts.notes import Person, people
from cmr.evaluation.answers import answer, ask
from cmr.evaluation.prompts import chat, encode
from cmr.evaluation.statistics import share

SYSTEMS = ("memory", "in_prompt", "alone")


def replied(
    model: Any, tokenizer: Any, memory: Any, system: str, person: Person, question: Question
) -> dict[str, Any]:
    """One reply of one system: the answer, and what was recalled for it."""
    if system == "memory":
        memory.resume()
        text, passages = ask(model, tokenizer, memory, chat(tokenizer, question.text))
        memory.pause()
        return {"answer": text, "gate": [round(p.gate, 4) for p in passages]}
    context = encode(tokenizer, "\n".join(person.notes)) if system == "in_prompt" else None
    return {"answer": answer(model, tokenizer, chat(tokenizer, question.text, context))}


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--verbose", action="store_true")
    args, model, tokenizer, conditions = begin(parser, words)
    import cmr

    memory = cmr.attach(model, tokenizer=tokenizer, **args.settings)
    conditions.update(memory=described(memory))
    details: list[dict[str, Any]] = []
    try:
        for number, person in enumerate(people(args.seed)):
            memory.clear()
            ids = encode(tokenizer, "\n".join(person.notes))
            memory.read(torch.tensor(ids))
            memory.pause()
            for at, question in enumerate(person.questions):
                for system in args.systems:
                    begun = time.perf_counter()
                    got = replied(model, tokenizer, memory, system, person, question)
                    details.append({
                        "tokens": len(ids), "system": system, "fact": f"p{number}n{at}",
                        "kind": question.text, "wording": 0, "question": question.text,
                        "group": "number" if question.answers[0].isdigit() else "name",
                        "expected": question.answers[0], "right": grade(got["answer"], question),
                        "seconds": round(time.perf_counter() - begun, 3), **got,
                    })  # fmt: skip
                    if args.verbose:
                        d = details[-1]
                        said = f"{question.text} | {d['expected']} | {d['answer']!r}"
                        print(f"  {system:10}{d['right']!s:6}{said}", flush=True)
            memory.resume()
    finally:
        memory.detach()
    rows.append("notes_details", *({"run": conditions["run"], **r} for r in details))
    for system in args.systems:
        mine, row = [r for r in details if r["system"] == system], summarise(details, system)
        row["against"] = {
            other: difference(mine, [r for r in details if r["system"] == other])
            for other in args.systems
            if other != system
        }
        print(f"{system:10} {row['right']} of {row['n']}  {share(row['right'], row['n'])}")
        rows.append("notes", {**conditions, **row})


if __name__ == "__main__":
    run(main)
