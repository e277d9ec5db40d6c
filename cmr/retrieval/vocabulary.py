"""What searches know of a tokenizer: which tokens are the same word, and where a sentence ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import torch

from cmr.kernels.words import NO_WORD, classes_of
from cmr.retrieval.ask import QueryParts

QUESTION_MARKS = frozenset("?\u037e\u055e\u061f\u1367\u2e2e\u2cfa\ua60f\ua6f7\ufe56\uff1f")
ALWAYS = frozenset("\n\u0964\u0965\u061f\u06d4\u1362\u1367\u2026\u3002\uff01\uff1f\uff0e\uff61")
"""Ends of sentences that need no space behind them."""
MAYBE = frozenset(".!?:;") | QUESTION_MARKS
"""Ends of sentences where no word goes on behind them, as in 3.5 or example.org."""
CLOSING = " \t\r'\")]}\u2019\u201d\u00bb\u300d\u300f\uff09"
ENDINGS = ("ing", "edly", "ed", "es", "s", "ly", "er", "e", "y")
"""English endings that a word may lose; in other languages hardly anything is lost by them."""
FEWEST_WORDS = 3
"""Tokens that are words which a part has, at least: a greeting alone is no question."""
MOST_PARTS = 64


class Tables(NamedTuple):
    """What is known of each token `[tokens + 1]`, the last of them standing for all others.

    Attributes:
        classes: int64: tokens of one number are one word in another form, whatever its case and
            ending, and with a space in front or not.
        ends: int64: 2 ends a sentence, 1 does where no word goes on behind it, 0 does not.
        opens: bool: no word goes on with it.
        asks: bool: it has a question mark of any script.
        breaks: bool: a line ends with it.
        size: how many classes there are.
    """

    classes: torch.Tensor
    ends: torch.Tensor
    opens: torch.Tensor
    asks: torch.Tensor
    breaks: torch.Tensor
    size: int


class Vocabulary:
    """A tokenizer's tokens, looked at once, at the first search.

    Args:
        texts: gives the text of every token, special ones empty.
        device: of the tables.
    """

    def __init__(self, texts: Callable[[], Iterable[str]], device: torch.device) -> None:
        self._texts, self._device = texts, device

    @classmethod
    def of(cls, tokenizer: Any, device: torch.device) -> Vocabulary | None:
        """That of a tokenizer; None where it cannot say how many tokens it has or what they are."""
        try:
            tokenizer.batch_decode([[number] for number in range(min(1, len(tokenizer)))])
        except Exception:  # a tokenizer of somebody's own may refuse anything, in any way
            return None
        return cls(lambda: _texts_of(tokenizer), device)

    @cached_property
    def tables(self) -> Tables:
        """What is known of the tokens."""
        known = {"": NO_WORD}
        rows = []
        for text in (*self._texts(), ""):
            word = _stem(text.strip().casefold()) if any(map(str.isalnum, text)) else ""
            last = text.rstrip(CLOSING)[-1:]
            end = 2 if not ALWAYS.isdisjoint(text) else int(last in MAYBE)
            opens = not text or not text[0].isalnum()
            asks = not QUESTION_MARKS.isdisjoint(text)
            number = known.setdefault(word, len(known))
            rows.append((number, end, opens, asks, "\n" in text))
        # A search may run in inference mode, and the tables serve others, too.
        with torch.inference_mode(False):
            columns = torch.tensor(rows, dtype=torch.int64, device=self._device).unbind(1)
        words, ending, opening, asking, breaking = (column.contiguous() for column in columns)
        flags = opening.bool(), asking.bool(), breaking.bool()
        return Tables(words, ending, *flags, len(known))

    def classes_of(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Class of each token, any shape int64; of numbers that are no token's `NO_WORD`."""
        return classes_of(token_ids, self.tables.classes)

    def breaks(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Which tokens end a line, bool of any shape."""
        return self.tables.breaks[self._known(token_ids)]

    def parts(self, token_ids: torch.Tensor, mask: torch.Tensor | None) -> QueryParts:
        """The sentences of what is asked, by token ids `[rows, tokens]` and which of them ask.

        What has fewer than `FEWEST_WORDS` words goes with the sentence in front of it, and so does
        all that lies behind the last of `MOST_PARTS`. Nothing waits for a device.
        """
        tables, ids = self.tables, self._known(token_ids)
        says = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        # A token that is asked with others of a template between them stands at a word's beginning.
        follows = torch.ones_like(says)
        follows[:, :-1] = tables.opens[ids[:, 1:]] | ~says[:, 1:]
        ends = tables.ends[ids]
        cut = says & ((ends == 2) | ((ends == 1) & follows))
        number = cut.long().cumsum(1) - cut.long()  # the token that ends one belongs to it
        words = (says & (tables.classes[ids] != NO_WORD)).long()
        counts = torch.zeros_like(number).scatter_add_(1, number, words)
        joined = ((counts >= FEWEST_WORDS).long().cumsum(1) - 1).clamp(0, MOST_PARTS - 1)
        of = torch.where(says, joined.gather(1, number), -1)
        most = min(MOST_PARTS, max(1, ids.shape[1] // FEWEST_WORDS))
        if of.device.type == "cpu" and of.numel():  # elsewhere the host would have to wait
            most = int(of.max()) + 1
        most = max(1, most)
        asks = torch.zeros(len(ids), most, device=ids.device)
        marked = (says & tables.asks[ids]).float()
        asks.scatter_reduce_(1, of.clamp(min=0), marked, "amax")
        return QueryParts(of, asks > 0)

    def _known(self, token_ids: torch.Tensor) -> torch.Tensor:
        # Below 0 stands the last one of a table, as behind its end.
        return token_ids.clamp(-1, len(self.tables.classes) - 1)


def _texts_of(tokenizer: Any) -> list[str]:
    numbers = [[number] for number in range(len(tokenizer))]
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        texts = tokenizer.batch_decode(numbers)
    else:  # on all cores, as there are tens of thousands
        texts = fast.decode_batch(numbers, skip_special_tokens=False)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    return ["" if number in special else text for number, text in enumerate(texts)]


def _stem(word: str) -> str:
    """A word without its ending, and without the second of two equal letters before it."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= FEWEST_WORDS:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > FEWEST_WORDS and word[-1] == word[-2] else word
