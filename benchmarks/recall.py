"""Recall of planted facts through stock `generate`: memory beside what else could be done.

Systems: `ceiling` (the fact's sentence in plain view), `ceiling_passage` (192 tokens around it),
`window` (the last tokens of the document fill the window), `full` (document and question in one
prompt where they fit the model), `bm25` (text passages, as many tokens as memory reads),
`memory_text` (the passages that memory chose, shown as text) and `memory`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks import rows
from benchmarks.common import WINDOW, Prefilled, answers, chat, encode, load_model
from benchmarks.documents import Document, Fact, Question, grade, make_documents
from benchmarks.recall_report import report
from benchmarks.recalling import Passage, ask, coverage, described, overrides, rank_of
from benchmarks.textual import BM25, shown, widen

SYSTEMS = ("ceiling", "ceiling_passage", "window", "full", "memory", "bm25", "memory_text")
PASSAGE_TOKENS = 192


class Asker:
    """All systems for one document; what can be prepared once a document is."""

    def __init__(self, model: Any, tokenizer: Any, memory: Any, doc: Document, args: Any) -> None:
        self.model, self.tokenizer, self.memory, self.doc = model, tokenizer, memory, doc
        self.passages: dict[Question, list[Passage]] = {}
        self.batch, self.instructed = args.batch, args.instructed
        systems = args.systems
        self.full, self.bm25, self.read_seconds = None, None, None
        if "bm25" in systems:
            self.bm25 = BM25(tokenizer, doc.token_ids)
        if memory is not None:
            memory.resume()
            memory.clear()
            begun = time.perf_counter()
            memory.read(torch.tensor(doc.token_ids))
            self.read_seconds = time.perf_counter() - begun
            memory.pause()
        limit = model.config.max_position_embeddings
        if "full" in systems and len(doc.token_ids) + 192 <= limit:
            self.full = Prefilled(model, tokenizer, doc.token_ids, self.instructed)

    def context(self, system: str, fact: Fact, question: Question) -> list[int]:
        """Token ids shown before the question by the systems that show text."""
        ids = self.doc.token_ids
        if system == "ceiling":
            return encode(self.tokenizer, fact.sentence)
        if system == "ceiling_passage":
            start, end = widen(fact.start, fact.end, PASSAGE_TOKENS, len(ids))
            return ids[start:end]
        if system == "window":
            return ids[len(chat(self.tokenizer, question.text, [], self.instructed)) - WINDOW :]
        passages = self.passages.get(question, [])
        if system == "memory_text":
            spans = [(p.start, p.end) for p in passages]
        else:
            tokens, many = len(_tokens(passages)), len(passages) or 2
            spans = self.bm25.spans(question.text, tokens or PASSAGE_TOKENS, many)
        return shown(self.tokenizer, ids, spans)

    def ask_memory(self, fact: Fact, question: Question) -> dict[str, Any]:
        """One answer of stock `generate` with recall on; notes the passages for other systems."""
        self.memory.resume()
        begun = time.perf_counter()
        prompt = chat(self.tokenizer, question.text)
        text, passages = ask(self.model, self.tokenizer, self.memory, prompt)
        seconds = time.perf_counter() - begun
        self.memory.pause()
        self.passages[question] = passages
        return {
            "answer": text,
            "seconds": round(seconds, 3),
            "rank": rank_of(fact, passages),
            "covered": round(coverage(fact, passages), 3),
            "recalled": [(p.start, p.end, round(p.score, 4)) for p in passages],
            "recalled_tokens": len(_tokens(passages)),
            "gate": [round(p.gate, 4) for p in passages],
            "read_seconds": self.read_seconds,
        }

    def ask_all(self, system: str, asked: list[tuple[Fact, Question]]) -> list[dict[str, Any]]:
        """The answers of one system, in order; none where the document does not fit."""
        if system == "memory":
            return [self.ask_memory(f, q) for f, q in asked]
        if system == "full":
            return [] if self.full is None else [self.ask_full(q) for _, q in asked]
        contexts = [self.context(system, f, q) for f, q in asked]
        prompts = [
            chat(self.tokenizer, q.text, c or None, self.instructed)
            for c, (_, q) in zip(contexts, asked, strict=True)
        ]
        begun = time.perf_counter()
        texts = answers(self.model, self.tokenizer, prompts, self.batch)
        each = round((time.perf_counter() - begun) / len(asked), 3)
        return [
            {"answer": t, "seconds": each, "shown_tokens": len(c)}
            for t, c in zip(texts, contexts, strict=True)
        ]

    def ask_full(self, question: Question) -> dict[str, Any]:
        """One answer with the whole document before the question."""
        begun = time.perf_counter()
        text = self.full.answer(question.text)
        seconds = round(time.perf_counter() - begun, 3)
        return {"answer": text, "seconds": seconds, "shown_tokens": len(self.doc.token_ids)}


def _tokens(passages: list[Passage]) -> set[int]:
    return {t for p in passages for t in range(p.start, p.end)}


def chosen(documents: list[Document], limit: int | None) -> dict[tuple[str, str], set[int]]:
    """Which wordings are asked of each fact: all, or the first `limit` spread over all facts."""
    order = [(w, d.id, f.id) for w in range(4) for d in documents for f in d.facts]
    out: dict[tuple[str, str], set[int]] = {}
    for wording, doc, fact in order[:limit]:
        out.setdefault((doc, fact), set()).add(wording)
    return out


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Asks everything, appending a detail row for each answer; returns the detail rows."""
    model, tokenizer = load_model()
    systems = [s for s in SYSTEMS if s in args.systems]
    if "memory_text" in systems and "memory" not in systems:
        raise ValueError("memory_text shows what memory chose: ask for the system memory as well")
    memory = None
    if "memory" in systems:
        import cmr

        memory = cmr.attach(model, tokenizer=tokenizer, **overrides(args.set))
        memory.pause()
    conditions = rows.conditions(
        model,
        args.seed,
        systems=systems,
        batch=args.batch,
        instructed=args.instructed,
        memory=described(memory),
    )
    details: list[dict[str, Any]] = []
    try:
        for tokens in args.tokens:
            documents = make_documents(tokenizer, tokens, args.seed)
            asked = chosen(documents, args.questions)
            for doc in documents:
                if not any((doc.id, f.id) in asked for f in doc.facts):
                    continue
                asker = Asker(model, tokenizer, memory, doc, args)
                details += _document(asker, doc, asked, systems, conditions["run"], args)
                right = {s: sum(r["right"] for r in details if r["system"] == s) for s in systems}
                many = max(1, len({(r["fact"], r["wording"]) for r in details}))
                print(f"{doc.id}: right of {many} so far: {right}", flush=True)
    finally:
        if memory is not None:
            memory.detach()
        if details:
            report(conditions, details, args.with_runs)
    return details


def _document(
    asker: Asker, doc: Document, asked: Any, systems: list[str], name: str, args: Any
) -> list[dict[str, Any]]:
    """Detail rows of one document, appended to the file as each system is done."""
    wanted = [(f, w) for f in doc.facts for w in sorted(asked.get((doc.id, f.id), ()))]
    out = []
    for system in systems:
        got = asker.ask_all(system, [(f, f.questions[w]) for f, w in wanted])
        for (fact, wording), reply in zip(wanted if got else [], got, strict=True):
            question = fact.questions[wording]
            row = {
                "run": name, "tokens": len(doc.token_ids), "system": system,
                "fact": fact.id, "kind": fact.kind, "group": fact.group,
                "start": fact.start, "end": fact.end, "wording": wording,
                "question": question.text, "expected": question.answers[0],
                "right": grade(reply["answer"], question), **reply,
            }  # fmt: skip
            out.append(row)
            if args.verbose:
                print(f"  {system:16}{row['right']!s:6}{question.text} | {row['answer']!r}")
        rows.append("recall_details", *out[len(out) - len(got) :])
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[5_000, 16_000])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--questions", type=int, help="only the first N (of 96) of each length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="prompts at once, text systems only")
    parser.add_argument(
        "--instructed", action="store_true", help="the systems that show text say what it is for"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="settings for attach")
    parser.add_argument(
        "--with-runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="earlier runs whose answers are compared with in the report",
    )
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()
