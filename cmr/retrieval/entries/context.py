"""What a retrieval of entries is given, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.config import checks as check
from cmr.errors import ModelMismatchError
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
        """What a search is given: one row, checked.

        Args:
            hidden_size: width of the states that is expected.
            device: where the search runs.

        Raises:
            TypeError: the states or the mask are no tensors of their kind.
            ValueError: they do not fit each other, or a value is out of its range.
            ModelMismatchError: the width is another one.
        """
        sequence = check.integer("current_sequence_id", self.current_sequence_id, 0)
        position = check.integer("sequence_position", self.sequence_position, 0)
        if self.task_type is not None and not isinstance(self.task_type, str):
            raise check.refuse("task_type", self.task_type, "a name or None")
        states = self._states(hidden_size)
        mask = self._mask(states)
        return Ask(
            states=states.reshape(1, -1, hidden_size).to(device),
            mask=None if mask is None else mask.reshape(1, -1).to(device),
            sessions=torch.tensor([sequence], device=device),
            before=torch.tensor([position], device=device) if position else None,
            task=self.task_type,
        )

    def _states(self, hidden_size: int) -> torch.Tensor:
        states = self.current_hidden_states
        if not isinstance(states, torch.Tensor) or not states.is_floating_point():
            what = states.dtype if isinstance(states, torch.Tensor) else type(states).__name__
            raise TypeError(f"current_hidden_states: a tensor of floats expected, got {what}")
        if states.ndim not in (2, 3):
            raise ValueError(
                "current_hidden_states: [tokens, hidden] or [batch, tokens, hidden] expected, "
                f"got {list(states.shape)}"
            )
        if states.shape[-1] != hidden_size:
            raise ModelMismatchError(
                f"current_hidden_states: hidden size {hidden_size} expected, got {states.shape[-1]}"
            )
        if not bool(torch.isfinite(states).all()):
            raise ValueError("current_hidden_states: finite values expected, got some that are not")
        return states.detach()

    def _mask(self, states: torch.Tensor) -> torch.Tensor | None:
        mask = self.attention_mask
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor):
            raise TypeError(f"attention_mask: a tensor expected, got {type(mask).__name__}")
        if mask.shape != states.shape[:-1]:
            wanted = list(states.shape[:-1])
            raise ValueError(f"attention_mask: {wanted} expected, got {list(mask.shape)}")
        return mask != 0
