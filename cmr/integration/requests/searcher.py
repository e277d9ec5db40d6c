"""A search by itself: what a question finds, without an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cmr.integration.capture.reader import INTEGERS, require_known
from cmr.integration.core import Core
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.requests.request import new_request, under_way
from cmr.integration.reweave.recalled_passage import RecalledPassage, recalled_passages


class Searcher:
    """Asks a memory a question and tells what was found.

    Args:
        core: the memory's store and settings.
        stepper: knows how a forward asks.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper

    def search(
        self, text: str | torch.Tensor | Sequence[int], tokenizer: Any
    ) -> list[RecalledPassage]:
        """The passages that a question finds, best first; see `Session.search`.

        Raises:
            TypeError, ValueError: see `Session.search`.
        """
        ids = self._token_ids(text, tokenizer).to(self._core.adapter.input_device)
        core = self._core
        request = new_request(core)
        with under_way(core, request), core.lock:
            sessions, _ = core.rows(request, 1)
            if not core.wants_recall(sessions, request.retriever):
                return []
            recall = self._stepper.ask_alone(request, ids, sessions)
            names = [core.name_of(number) for number in sessions]
            found = [] if recall is None else recalled_passages(recall, {}, names, tokenizer)[0]
        return found

    def _token_ids(self, text: str | torch.Tensor | Sequence[int], tokenizer: Any) -> torch.Tensor:
        """`[1, tokens]` int64 of a question, in the chat template where it is text."""
        if isinstance(text, str):
            if tokenizer is None:
                raise ValueError(
                    "text: token ids expected where no tokenizer is known; give one with "
                    "attach(..., tokenizer=...)"
                )
            if not text.strip():
                raise ValueError("text: a question expected, got an empty one")
            if self._core.template is None:
                ids = tokenizer(text)["input_ids"]
            else:
                turns = [{"role": "user", "content": text}]
                ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
                ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
            text = torch.tensor(ids)
        elif not isinstance(text, torch.Tensor):
            text = torch.tensor(list(text))
        text = text[None] if text.ndim == 1 else text
        if text.dtype not in INTEGERS or text.ndim != 2 or len(text) != 1 or not text.numel():
            raise ValueError(
                "text: a string or token ids [tokens] expected, got "
                f"{list(text.shape)} {text.dtype}"
            )
        require_known(text, self._core.adapter.config.vocab_size)
        return text.long()
