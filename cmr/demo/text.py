"""A long real text with a few invented facts planted in it, and the questions about them.

The text is the language reference that every Python carries for ``help()`` (`pydoc_data.topics`,
Python Software Foundation License). The facts are invented, so that no model can know them from
its training; whoever shows this document says so.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE = "The Python Language Reference (pydoc_data.topics, PSF License)"


@dataclass(frozen=True)
class Question:
    """A planted fact and what is asked about it.

    `depth` is the share of the document before the fact, `position` the number of tokens.
    """

    text: str
    fact: str
    answer: str
    depth: float
    position: int = 0

    def answered_by(self, reply: str) -> bool:
        """Whether the reply contains the answer; case does not matter."""
        return self.answer.casefold() in reply.casefold()


@dataclass(frozen=True)
class Document:
    """A text with facts planted in it: its source, its length in tokens, a question a fact."""

    title: str
    text: str
    tokens: int
    questions: tuple[Question, ...]


# All are questions that SmolLM2-135M answers when the fact stands in a few paragraphs right before
# it, so a wrong answer is the memory's. The two access codes distract from each other.
PLANTED: tuple[Question, ...] = (
    Question(
        text="What is the access code of the observatory archive?",
        fact="The access code of the observatory archive is 48213.",
        answer="48213",
        depth=0.08,
    ),
    Question(
        text="Who repaired the village clock?",
        fact="The village clock was repaired by Marta Lindqvist.",
        answer="Lindqvist",
        depth=0.24,
    ),
    Question(
        text="From which platform does the night train to Vexholm leave?",
        fact="The night train to Vexholm leaves from platform 17.",
        answer="17",
        depth=0.40,
    ),
    Question(
        text="What does the baker of Brunnow put in the bread?",
        fact="The baker of Brunnow puts lavender in the bread.",
        answer="lavender",
        depth=0.55,
    ),
    Question(
        text="How many steps does the tower of Orvandel have?",
        fact="The tower of Orvandel has 312 steps.",
        answer="312",
        depth=0.70,
    ),
    Question(
        text="What is the access code of the harbour office?",
        fact="The access code of the harbour office is 70956.",
        answer="70956",
        depth=0.85,
    ),
)


def reference_text() -> str:
    """The language reference, its topics in alphabetical order, about 100,000 tokens.

    Raises:
        RuntimeError: this Python was built without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            "this Python has no pydoc_data.topics, which the demo reads: install your "
            "distribution's complete standard library"
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def demo_document(
    tokenizer: PreTrainedTokenizerBase,
    tokens: int = 24_000,
    questions: tuple[Question, ...] = PLANTED,
) -> Document:
    """The language reference cut to a length, with the facts planted between paragraphs.

    Args:
        tokenizer: counts the tokens.
        tokens: length of the text before planting; less when the reference is shorter.
        questions: the facts to plant; each ``depth`` in [0, 1].

    Returns:
        The document; its questions know the token positions of their facts.

    Raises:
        ValueError: ``tokens`` is below 100, or a depth lies outside [0, 1].
    """
    if tokens < 100:
        raise ValueError(f"tokens must be at least 100, got {tokens}")
    for question in questions:
        if not 0.0 <= question.depth <= 1.0:
            raise ValueError(f"depth in [0, 1] expected, got {question.depth} for {question.fact}")
    # Facts stand between paragraphs, as a real text would have them, and never split a sentence.
    paragraphs = _take(tokenizer, reference_text().split("\n\n"), tokens)
    total = sum(count for _, count in paragraphs)
    pieces: list[str] = []
    placed: list[Question] = []
    waiting = sorted(questions, key=lambda question: question.depth)
    seen = 0
    for paragraph, count in [*paragraphs, ("", 0)]:
        last = not paragraph
        while waiting and (last or seen >= waiting[0].depth * total):
            question = waiting.pop(0)
            # Counted anew from the whole text: tokens of pieces do not add up where they meet.
            start = len(_ids(tokenizer, "\n\n".join(pieces)))
            pieces.append(question.fact)
            placed.append(replace(question, position=start))
        if not last:
            pieces.append(paragraph)
            seen += count
    text = "\n\n".join(pieces)
    title = f"{SOURCE}, Python {platform.python_version()}"
    return Document(title, text, len(_ids(tokenizer, text)), tuple(placed))


def _take(
    tokenizer: PreTrainedTokenizerBase, paragraphs: list[str], tokens: int
) -> list[tuple[str, int]]:
    """The first paragraphs that hold ``tokens`` tokens, each with its count."""
    taken: list[tuple[str, int]] = []
    total = 0
    for paragraph in paragraphs:
        if total >= tokens:
            break
        if paragraph.strip():
            count = len(_ids(tokenizer, paragraph)) + 1
            taken.append((paragraph, count))
            total += count
    return taken


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
