"""`ReconstructionIntegrator`: reconstructed states blended into a layer's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmr.config import METHODS
from cmr.config import checks as check
from cmr.memory.state_checks import expect_device, expect_dtype, expect_mask, expect_states
from cmr.reconstruction.blend import blend, even_gate, expected_best, fit
from cmr.reconstruction.readout import joint, read_out
from cmr.reconstruction.result import Reconstruction

Memories = Reconstruction | torch.Tensor | Sequence[Reconstruction | None]


@dataclass(frozen=True)
class _Read:
    """What is read: memory `[batch, n, hidden]`, and the other arguments of `read_out`."""

    memory: torch.Tensor
    mask: torch.Tensor
    passages: torch.Tensor | None = None
    prior: torch.Tensor | None = None
    method: str | None = None


class ReconstructionIntegrator:
    """Blends memory states into hidden states, token by token.

    With m what a token h reads of memory, and w the memory weight:

    - 'weighted_sum': `h' = (1 - w) h + w m`.
    - 'residual': `h' = h + w m`.
    - 'gated': `h' = h + g (m - h)`, g = w `fit(h)`: 0 where no memory state fits h better than
      memory states fit each other by chance, w for a copy of one. That a gate follows the match is
      the idea of the continuous cache (Grave et al. 2017); none is learned here.
    - 'attention': h attends to memory and itself, without projections:
      `g = sigmoid(lm - ll + logit(w))`, `h' = (1 - g) h + g m`, with lm the log-sum-exp of
      `sqrt(hidden) cos(h, m_i)` and ll the same of h with itself, `sqrt(hidden)`. w = 0.5 is one
      joint softmax. An attached memory with `method="attention"` reads through the layers' own
      projections instead.

    A reconstruction says how it is to be summed, see `read_out`, and its weights multiply those in
    front of each softmax; plain states are summed by a softmax over the cosines. A token without
    memory, and any token with w = 0, stays as it is, bit for bit.

    Args:
        hidden_size: width of the states, 1 or more.
        method: one of the above; may be set later.
        memory_weight: w, in [0, 1].

    Raises:
        ConfigError: a value is out of its range.

    Equivalent PyTorch ('weighted_sum', plain states):
        `(1 - w) * h + w * F.softmax(F.normalize(h) @ F.normalize(m).mT, -1) @ m`.
    """

    def __init__(
        self, hidden_size: int, method: str = "weighted_sum", memory_weight: float = 0.3
    ) -> None:
        self.hidden_size = check.integer("hidden_size", hidden_size, 1)
        self.method = method
        self.memory_weight = check.real("memory_weight", memory_weight, 0.0, 1.0)

    @property
    def method(self) -> str:
        """The method in use."""
        return self._method

    @method.setter
    def method(self, name: str) -> None:
        self._method = check.choice("integration_method", name, METHODS)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        memory: Memories,
        *,
        attention_mask: torch.Tensor | None = None,
        memory_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states with memory in them.

        Args:
            hidden_states: `[batch, tokens, hidden]`, any float dtype.
            memory: what to read, on the same device, any float dtype: a `Reconstruction` or states
                `[n, hidden]` for all rows, or one reconstruction (or None) a row, or states
                `[batch, n, hidden]`.
            attention_mask: `[batch, tokens]`, 0 or False for tokens that do not read; None: all do.
            memory_mask: the shape of memory states without `hidden`, 0 or False for those that are
                not to be read; only with a tensor. None: all are.

        Returns:
            A new tensor of the shape and dtype of `hidden_states`; differentiable in all states.

        Raises:
            TypeError: not of the kinds above.
            ValueError: shapes do not fit.
            ModelMismatchError: a width or device is another one.
        """
        expect_states("hidden_states", hidden_states, self.hidden_size, (3,))
        asks = expect_mask(attention_mask, hidden_states)
        if isinstance(memory, torch.Tensor):
            held = self._of_states(len(hidden_states), memory, memory_mask)
        elif memory_mask is not None:
            raise ValueError("memory_mask: None expected where memory is no tensor, got a mask")
        else:
            held = self._of_rows(memory, hidden_states)
        mask = held.mask
        expect_device("memory", held.memory, hidden_states.device)
        reads = mask.any(1, keepdim=True)
        reads = reads if asks is None else reads & asks
        weight: float | torch.Tensor = self.memory_weight
        # Here the gate is part of the softmax: memory and the token itself share one.
        if self.method == "attention":
            recalled, lead = joint(hidden_states, held.memory, mask, held.prior)
            weight = torch.sigmoid(lead + even_gate(self.memory_weight))
            return blend(hidden_states, recalled, reads, self.method, weight)
        if self.method == "gated":
            floor = expected_best(held.memory, mask)
            weight = weight * fit(hidden_states, held.memory, mask, floor)
        recalled = read_out(hidden_states, **vars(held))
        return blend(hidden_states, recalled, reads, self.method, weight)

    def _of_states(
        self, batch: int, memory: torch.Tensor, memory_mask: torch.Tensor | None
    ) -> _Read:
        expect_states("memory", memory, self.hidden_size, (2, 3))
        if memory.ndim == 3 and len(memory) != batch:
            raise ValueError(f"memory: a batch of {batch} expected, got {len(memory)}")
        if memory_mask is not None and memory_mask.shape != memory.shape[:-1]:
            wanted, got = list(memory.shape[:-1]), list(memory_mask.shape)
            raise ValueError(f"memory_mask: {wanted} expected, got {got}")
        ones = torch.ones(memory.shape[:-1], dtype=torch.bool, device=memory.device)
        mask = ones if memory_mask is None else memory_mask.to(memory.device) != 0
        # A view: all rows read the same states.
        size = (batch, memory.shape[-2])
        return _Read(memory.expand(*size, self.hidden_size), mask.expand(size))

    def _of_rows(
        self, memory: Reconstruction | Sequence[Reconstruction | None], hidden: torch.Tensor
    ) -> _Read:
        batch = len(hidden)
        rows = [memory] * batch if isinstance(memory, Reconstruction) else list(memory)
        for row in rows:
            if not isinstance(row, Reconstruction | None):
                raise TypeError(
                    f"memory: a Reconstruction for each row expected, got {type(row).__name__}"
                )
        if len(rows) != batch:
            raise ValueError(
                f"memory: {batch} reconstructions expected, one a row, got {len(rows)}"
            )
        given = [row for row in rows if row is not None]
        kinds = sorted({row.method for row in given})
        # The method decides how all rows of the batch are summed.
        if len(kinds) > 1:
            raise ValueError(f"memory: reconstructions of one method expected, got {kinds}")
        for row in given:
            expect_states("memory", row.states, self.hidden_size, (2,))
            expect_device("memory", row.states, hidden.device)
            expect_dtype("memory", row.states, given[0].states, "of the first row")
        # Rows are padded to the longest; what stands behind the end is masked.
        most = max((len(row) for row in given), default=0)
        like = given[0].states if given else hidden
        states = like.new_zeros(len(rows), most, self.hidden_size)
        prior = like.new_zeros(len(rows), most, dtype=torch.float32)
        mask = torch.zeros(len(rows), most, dtype=torch.bool, device=like.device)
        passages = torch.zeros(len(rows), most, dtype=torch.int64, device=like.device)
        for i, found in enumerate(rows):
            if found is None:
                continue
            here = (i, slice(0, len(found)))
            states[here], mask[here] = found.states, True
            passages[here] = found.passages.to(like.device)
            # Weights sum to 1: scaled to a mean of 1, even ones change nothing in a softmax.
            prior[here] = found.weights.to(like.device) * len(found)
        return _Read(states, mask, passages, prior, kinds[0] if kinds else None)
