"""One document and its questions, asked of memory and of everything that it is compared with."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.shared.answer import answers
from benchmarks.shared.model import WINDOW
from benchmarks.texts.documents import Document, Fact, Question, coverage, rank_of
from cmr.evaluation.answers import Passage, Prefilled, ask
from cmr.evaluation.lexical import BM25
from cmr.evaluation.passages import shown, tokens_of, widen
from cmr.evaluation.prompts import chat, encode

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
    return tokens_of((p.start, p.end) for p in passages)
