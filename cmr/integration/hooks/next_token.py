"""The next-token memory of a model: stored tokens have a say in what its head says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cmr.integration.core import Core
from cmr.integration.hooks.step import Step
from cmr.integration.hooks.stepper import Stepper
from cmr.retrieval.successors import RUN, Proposal, interpolate, propose, unit


class NextTokenReader:
    """Hooks around a model with its head, which interpolate its logits with what memory says.

    Every token of a forward that gets logits is compared with the recalled tokens of its session;
    see `propose`. Tokens that none of them fits keep their logits bit for bit. A loss that the
    model computes from labels is that of its own logits.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._handles: list[Any] = []
        self._counts = torch.zeros(3, dtype=torch.float64, device=core.ring.device)

    def attach(self) -> None:
        """Put the hooks in place, where this is configured."""
        if self._core.layout.knn_layers:
            model = self._core.adapter.model
            begin, end = map(torch.compiler.disable, (self._begin, self._end))
            self._handles.append(model.register_forward_pre_hook(begin))
            self._handles.append(model.register_forward_hook(end, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def stats(self) -> dict[str, Any]:
        """Layers that are compared, tokens asked about, how many something fitted, their gate."""
        asked, fitted, gate = self._counts.tolist()
        return {
            "layers": list(self._core.layout.knn_layers),
            "tokens": int(asked),
            "fitted": int(fitted),
            "gate": gate / fitted if fitted else 0.0,
        }

    def _begin(self, *_: Any) -> None:
        # What an earlier forward left, of the decoder alone, is not of the one that begins.
        step = self._stepper.last
        if step is not None:
            step.entering.clear()

    def _end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        step = self._stepper.last
        if step is None or not step.entering:
            return None
        at = 1 if isinstance(output, tuple) and kwargs.get("labels") is not None else 0
        logits = output[at] if isinstance(output, tuple) else output.logits
        mixed, gate = logits, None
        with self._core.failures.of("next_token"):
            # What was recalled is data: gradients flow through the model's own logits alone.
            with torch.no_grad():
                said = self._said(step, logits.shape[1], kwargs.get("logits_to_keep"))
            mixed, gate = interpolate(logits, said)
        step.entering.clear()
        if gate is None:
            return None
        step.said = gate
        # Summed up where the logits are: to look at a number here would wait for the device.
        found = (gate.new_tensor(gate.numel()), (gate > 0).sum(), gate.sum())
        with self._core.lock:
            self._counts += torch.stack([x.to(self._counts) for x in found])
        if isinstance(output, tuple):
            return (*output[:at], mixed, *output[at + 1 :])
        output.logits = mixed
        return output

    def _said(self, step: Step, count: int, keep: Any) -> Proposal:
        """What memory says of the last `count` tokens, or of those that `keep` names."""
        assert step.recall is not None and step.recall.successors is not None
        wanted = keep if isinstance(keep, torch.Tensor) else slice(-count, None)

        def of(tokens: torch.Tensor) -> torch.Tensor:
            which = wanted.to(tokens.device) if isinstance(wanted, torch.Tensor) else wanted
            return tokens[:, which]

        queries = [
            unit(*self._core.adapter.keys_values(n, of(step.entering[n])))
            for n in self._core.layout.knn_layers
        ]
        stored = step.recall.successors
        runs = of(stored.runs(_text_of(step))[:, -step.token_ids.shape[1] :])
        reads = None if step.query_mask is None else of(step.query_mask)
        return propose(queries, stored, self._core.config.next_token, runs, reads)


def _text_of(step: Step) -> torch.Tensor:
    """Token ids `[batch, tokens]` of a forward, and some of those before it if they are known."""
    # They are while decoding with a window of ours; otherwise a run begins with the forward.
    ids, record = step.token_ids, step.record
    if record is None or record.seen - record.start < ids.shape[1]:
        return ids
    return record.tail("token_ids", ids.shape[1] + RUN - 1)
