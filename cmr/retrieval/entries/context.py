"""What a retrieval of entries is given, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.config import checks as check
from cmr.memory.state_checks import expect_finite, expect_mask, expect_states
from cmr.retrieval.ask import Ask


@dataclass
class RetrievalContext:
    """Who asks, for what, and how much may be found.

    Attributes:
        current_sequence_id: whose entries are looked at, 0 or more.
        current_layer_idx: the layer of the states, 0 or more; only its entries are looked at.
        current_hidden_states: `[tokens, hidden]` or `[batch, tokens, hidden]`, any float dtype,
            finite: the tokens that ask, those of all rows together.
        attention_mask: the states' shape without `hidden`, 0 or False for tokens that do not ask;
            None: all do.
        sequence_position: position of the first of the tokens in its sequence, 0 or more: entries
            from there on are the same text and are left out. 0: none is.
        retrieval_budget: entries at most, 0 or more.
        task_type: what the sequence is about, for strategies that look at it; None: not said.
    """

    current_sequence_id: int
    current_layer_idx: int
    current_hidden_states: torch.Tensor
    attention_mask: torch.Tensor | None = None
    sequence_position: int = 0
    retrieval_budget: int = 10
    task_type: str | None = None

    def ask(self, hidden_size: int, device: torch.device) -> Ask:
        """What a search on a device is given: one row of all tokens, checked.

        Raises:
            TypeError: the states or the mask are no tensors of their kind.
            ValueError: they do not fit each other, or a value is out of its range.
            ModelMismatchError: the width is not `hidden_size`.
        """
        sequence = check.integer("current_sequence_id", self.current_sequence_id, 0)
        position = check.integer("sequence_position", self.sequence_position, 0)
        if self.task_type is not None and not isinstance(self.task_type, str):
            raise check.refuse("task_type", self.task_type, "a name or None")
        name, ranks = "current_hidden_states", (2, 3)
        states = expect_states(name, self.current_hidden_states, hidden_size, ranks).detach()
        expect_finite(name, states)
        # Tokens of all rows ask together, as one row.
        mask = expect_mask(self.attention_mask, states)
        return Ask(
            states=states.reshape(1, -1, hidden_size).to(device),
            mask=None if mask is None else mask.reshape(1, -1).to(device),
            sessions=torch.tensor([sequence], device=device),
            # Entries from there on are left out. From 0 on that would be all, so 0 means none.
            before=torch.tensor([position], device=device) if position else None,
            task=self.task_type,
        )
