"""Recall of planted facts through stock `generate`: memory beside what else could be done.

Each of six documents of a length holds four facts of 24 kinds, with look-alikes; each fact is asked
about in four wordings: 96 questions. Replies are greedy, 24 tokens, with the model's chat template,
and right when an accepted answer stands in them as whole words. Memory is asked one by one, without
any of the text in the prompt.

  ceiling           the fact's sentence, then the question
  ceiling_passage   192 tokens of the document around the fact, then the question
  window            as much of the document's end as makes a prompt of 512 tokens
  full              the whole document, then the question, where both fit the model
  bm25              passages that BM25 finds: as many and as long as memory read for the question
  memory_text       the passages that memory chose, as text, then the question
  memory            the question alone; the document was read into memory once
  kvpress           the whole document, of whose keys and values presses of kvpress keep `--kept`;
                    they do not know the question: snapkv, expected-attention, knorm, streaming-llm

With `--wrapped` every question is asked once more inside everyday talk (`texts.everyday`); systems
are then called `memory, wrapped` and so on; the row says what share of the bare answers is left.

Intervals are Wilson's and, since four questions share a fact, a bootstrap over facts.
`found_first_two` is the share of questions whose fact overlaps one of the first two passages that
the prompt itself recalled. `first_answer_seconds` is the median over documents of what passes until
the first token of the first reply, reading or indexing the document included; `next_answer_seconds`
is that of a further reply.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from typing import Any

from benchmarks.recall.asker import SYSTEMS, Asker
from benchmarks.recall.report import report
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.documents import (
    SHORTEST,
    Document,
    asked_about,
    chosen,
    grade,
    make_documents,
)
from benchmarks.texts.everyday import WRAPPED, wrapped
from cmr.evaluation.checks import check_kept
from cmr.evaluation.peers.presses import PRESSES, Presses
from cmr.evaluation.registry import spelt_out


def ask_everything(args: Namespace) -> list[dict[str, Any]]:
    """Asks everything, appending a detail row for each answer; returns the detail rows."""
    model, tokenizer = load_model(args.model)
    systems = args.systems
    presses = Presses(model) if args.pressed else None
    memory = None
    if "memory" in systems:
        import cmr

        memory = cmr.attach(model, tokenizer=tokenizer, **args.settings)
        memory.pause()
    conditions = rows.conditions(
        model,
        args.seed,
        systems=systems,
        batch=args.batch,
        instructed=args.instructed,
        memory=described(memory),
        presses=presses.versions if presses else None,
    )
    details: list[dict[str, Any]] = []
    try:
        for tokens in args.tokens:
            documents = make_documents(tokenizer, tokens, args.seed)
            asked = chosen(documents, args.questions)
            for doc in asked_about(documents, asked):
                asker = Asker(model, tokenizer, memory, doc, args, presses)
                details += _document(asker, doc, asked, conditions["run"], args)
                names = dict.fromkeys(r["system"] for r in details)
                right = {s: sum(r["right"] for r in details if r["system"] == s) for s in names}
                many = max(1, len({(r["fact"], r["wording"]) for r in details}))
                print(f"{doc.id}: right of {many} so far: {right}", flush=True)
    finally:
        if memory is not None:
            memory.detach()
        if presses is not None:
            presses.close()
        if details:
            report(conditions, details, args.with_runs)
    return details


def _document(
    asker: Asker, doc: Document, asked: Any, name: str, args: Any
) -> list[dict[str, Any]]:
    """Detail rows of one document, appended to the file as each system is done."""
    bare = {
        (fact.id, wording): question
        for fact in doc.facts
        for wording, question in enumerate(fact.questions)
    }
    wanted = [(f, w) for f in doc.facts for w in sorted(asked.get((doc.id, f.id), ()))]
    forms = [("", bare)]
    if args.wrapped:
        first = len(bare) * int(doc.id.rpartition("d")[2])  # each document has other talk
        inside = {
            key: replace(question, text=wrapped(question.text, number, args.seed))
            for number, (key, question) in enumerate(bare.items(), first)
        }
        forms.append((WRAPPED, inside))
    out = []
    for behind, questions in forms:
        for system in args.systems:
            got = asker.ask_all(system, [(f, questions[f.id, w]) for f, w in wanted])
            for (fact, wording), reply in zip(wanted if got else [], got, strict=True):
                question = questions[fact.id, wording]
                row = {
                    "run": name, "tokens": len(doc.token_ids), "system": system + behind,
                    "fact": fact.id, "kind": fact.kind, "group": fact.group,
                    "start": fact.start, "end": fact.end, "wording": wording,
                    "question": question.text, "expected": question.answers[0],
                    "right": grade(reply["answer"], question), **reply,
                }  # fmt: skip
                out.append(row)
                if args.verbose:
                    said = f"{row['right']!s:6}{question.text} | {row['answer']!r}"
                    print(f"  {row['system']:16}{said}")
            rows.append("recall_details", *out[len(out) - len(got) :])
    return out


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(SHORTEST), nargs="+", default=[5_000, 16_000])
    parser.add_argument(
        "--systems", nargs="+", choices=[*SYSTEMS, "kvpress"], default=SYSTEMS[: -len(PRESSES)]
    )
    parser.add_argument(
        "--kept", type=kept, nargs="+", default=[642.0], metavar="N",
        help="tokens that a press keeps, or below 1 their share (default: 642, which are memory's "
        "window and about what it reads of a question)",
    )  # fmt: skip
    parser.add_argument("--questions", type=whole(), help="only the first N (of 96) of each length")
    parser.add_argument("--batch", type=whole(), default=8, help="prompts at once (text systems)")
    parser.add_argument("--wrapped", action="store_true", help="inside everyday talk, too")
    parser.add_argument(
        "--instructed", action="store_true", help="the systems that show text say what it is for"
    )
    parser.add_argument(
        "--with-runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="earlier runs whose answers are compared with in the report",
    )
    parser.add_argument("--verbose", action="store_true")
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    parser.add_settings()
    args = parser.parse_args(words)
    if "memory_text" in args.systems and "memory" not in args.systems:
        parser.error("argument --systems: memory_text shows what memory chose: name memory, too")
    wanted = spelt_out(args.systems)
    args.pressed = {
        f"{press}, {many:g} kept": (press, many)
        for press in PRESSES if press in wanted for many in args.kept
    }  # fmt: skip
    # In the order of `SYSTEMS`: what others are shown follows memory.
    args.systems = [s for s in SYSTEMS if s in wanted and s not in PRESSES] + [*args.pressed]
    ask_everything(args)


def kept(word: str) -> float:
    """A type for an argument: a number of tokens, or a share of them."""
    try:
        check_kept(number := float(word))
    except ValueError:
        raise ArgumentTypeError(f"tokens, or a share below 1, expected, got {word!r}") from None
    return number


if __name__ == "__main__":
    run(main)
