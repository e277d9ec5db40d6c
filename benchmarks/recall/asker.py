"""One document and its questions, asked of memory and of everything that it is compared with."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.shared.answer import answers
from benchmarks.shared.model import WINDOW
from benchmarks.texts.documents import Document, Fact, Question, coverage, rank_of
from cmr.evaluation.answers import NEW_TOKENS, FirstToken, Passage, Prefilled, answer
from cmr.evaluation.lexical import BM25
from cmr.evaluation.passages import shown, tokens_of, widen
from cmr.evaluation.peers.presses import PRESSES, Presses
from cmr.evaluation.prompts import chat, encode, up_to_question

SYSTEMS = (
    "ceiling", "ceiling_passage", "window", "full", "memory", "bm25", "memory_text", *PRESSES,
)  # fmt: skip
TIMED = 2
"""Questions of a document that also systems whose prompts are batched are asked alone: for time."""
PASSAGE_TOKENS = 192


class Asker:
    """All systems for one document; what can be prepared once a document is."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        memory: Any,
        doc: Document,
        args: Any,
        presses: Presses | None = None,
    ) -> None:
        self.model, self.tokenizer, self.memory, self.doc = model, tokenizer, memory, doc
        self.passages: dict[Question, list[Passage]] = {}
        self.batch, self.instructed, self.presses = args.batch, args.instructed, presses
        systems = args.systems
        self.full, self.bm25 = None, None
        self.prepare_seconds: dict[str, float | None] = dict.fromkeys(systems, 0.0)
        # It shows what memory searched for: who only wants the text does not wait for that.
        self.prepare_seconds["memory_text"] = None
        begun = time.perf_counter()
        if "bm25" in systems:
            self.bm25 = BM25(tokenizer, doc.token_ids)
            self.prepare_seconds["bm25"] = time.perf_counter() - begun
        if memory is not None:
            memory.resume()
            memory.clear()
            begun = time.perf_counter()
            memory.read(torch.tensor(doc.token_ids))
            self.prepare_seconds["memory"] = time.perf_counter() - begun
            memory.pause()
        limit = model.config.max_position_embeddings
        if "full" in systems and len(doc.token_ids) + 192 <= limit:
            begun = time.perf_counter()
            self.full = Prefilled(model, tokenizer, doc.token_ids, self.instructed)
            self.prepare_seconds["full"] = time.perf_counter() - begun
        self.start = up_to_question(tokenizer, doc.token_ids, self.instructed)
        self.pressed: dict[str, dict[str, int]] = {}
        if presses is not None:
            for name, held in presses.prefill(self.start, args.pressed).items():
                self.prepare_seconds[name] = held.pop("seconds")
                self.pressed[name] = held

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
        look = FirstToken(self.memory)
        prompt = chat(self.tokenizer, question.text)
        said = self._said(prompt, look, begun)
        passages = look.passages
        self.memory.pause()
        self.passages[question] = passages
        return {
            **said,
            "rank": rank_of(fact, passages),
            "covered": round(coverage(fact, passages), 3),
            "recalled": [(p.start, p.end, round(p.score, 4)) for p in passages],
            "recalled_tokens": len(_tokens(passages)),
            "gate": [round(p.gate, 4) for p in passages],
        }

    def ask_all(self, system: str, asked: list[tuple[Fact, Question]]) -> list[dict[str, Any]]:
        """The answers of one system, in order; none where the document does not fit."""
        return [
            {"prepare_seconds": self.prepare_seconds[system], **row}
            for row in self._ask_all(system, asked)
        ]

    def _ask_all(self, system: str, asked: list[tuple[Fact, Question]]) -> list[dict[str, Any]]:
        if system == "memory":
            return [self.ask_memory(f, q) for f, q in asked]
        if system == "full":
            return [] if self.full is None else [self.ask_full(q) for _, q in asked]
        if system in self.pressed:
            return [self.ask_pressed(system, q) for _, q in asked]
        alone = [self.ask_alone(system, f, q) for f, q in asked[:TIMED]]
        asked = asked[TIMED:]
        if not asked:
            return alone
        contexts = [self.context(system, f, q) for f, q in asked]
        prompts = [
            chat(self.tokenizer, q.text, c or None, self.instructed)
            for c, (_, q) in zip(contexts, asked, strict=True)
        ]
        begun = time.perf_counter()
        texts = answers(self.model, self.tokenizer, prompts, self.batch)
        each = round((time.perf_counter() - begun) / len(asked), 3)
        return alone + [
            {"answer": t, "seconds": each, "shown_tokens": len(c)}
            for t, c in zip(texts, contexts, strict=True)
        ]

    def ask_alone(self, system: str, fact: Fact, question: Question) -> dict[str, Any]:
        """One answer with text before the question, what is shown being looked for as well."""
        begun = time.perf_counter()
        context = self.context(system, fact, question)
        prompt = chat(self.tokenizer, question.text, context or None, self.instructed)
        found = self._said(prompt, FirstToken(), begun) | {"shown_tokens": len(context)}
        if self.prepare_seconds[system] is None:
            del found["first_token_seconds"]
        return found

    def ask_full(self, question: Question) -> dict[str, Any]:
        """One answer with the whole document before the question."""
        look, begun = FirstToken(), time.perf_counter()
        text = self.full.answer(question.text, stopping_criteria=look.among())
        return _timed(text, look, begun) | {"shown_tokens": len(self.doc.token_ids)}

    def ask_pressed(self, system: str, question: Question) -> dict[str, Any]:
        """One answer with what a press kept of the document before the question."""
        ids = chat(self.tokenizer, question.text, self.doc.token_ids, self.instructed)
        said = self.presses.answer(system, ids[len(self.start) :], NEW_TOKENS)
        return {
            "answer": said["text"],
            "seconds": round(said["seconds"], 3),
            "first_token_seconds": round(said["first_seconds"], 3),
            "shown_tokens": self.pressed[system]["kept_tokens"],
            **self.pressed[system],
        }

    def _said(self, prompt: list[int], look: FirstToken, begun: float) -> dict[str, Any]:
        text = answer(self.model, self.tokenizer, prompt, stopping_criteria=look.among())
        return _timed(text, look, begun)


def _timed(text: str, look: FirstToken, begun: float) -> dict[str, Any]:
    assert look.at is not None
    return {
        "answer": text,
        "seconds": round(time.perf_counter() - begun, 3),
        "first_token_seconds": round(look.at - begun, 3),
    }


def _tokens(passages: list[Passage]) -> set[int]:
    return tokens_of((p.start, p.end) for p in passages)
