"""What each layer reads in a forward, and the forward run again without it where that fails."""

from __future__ import annotations

from typing import Any

import torch

from cmr.integration.core import Core
from cmr.integration.hooks.step import Step
from cmr.integration.requests.failures import raised_in
from cmr.integration.reweave.aside import Aside
from cmr.integration.reweave.attention import LayerMemory, read_memory
from cmr.integration.reweave.recall import Recall
from cmr.integration.window.kept_cache import kept_as_it_is


class Reading:
    """Puts together what layers read.

    Attributes:
        functions: in which memory is read, and which run nothing of the model's.
    """

    def __init__(self, core: Core) -> None:
        self._core, self._layout = core, core.layout
        self._window = core.config.window
        self._constant = core.config.reweave.positions == "constant"
        self.functions: list[Any] = [read_memory, Reading.of]

    def prepare(self, step: Step, cache: Any, compiled: bool) -> None:
        """Get ready for a forward that reads, and for one that fails while it does."""
        recall, strict = step.recall, self._core.failures.strict
        if recall is None:
            return
        record, less = step.record, step.search.aside
        # Compiled, a mask that comes and goes would be another graph each time.
        if record is not None and less is not None and not compiled:
            asked_at, seen = step.search.asked_at, record.seen + step.token_ids.shape[1]
            if seen >= asked_at:
                step.aside = Aside(less, asked_at - less.shape[1], seen)
        if not strict:
            step.before = kept_as_it_is(cache, step.token_ids.shape[1])
        # A graph, and where a cache cannot be put back, have all of it before the first layer.
        if compiled or (step.before is None and not strict):
            with self._core.failures.of("read", step.read_nothing):
                held = recall.steady() if compiled else recall
                layers = sorted(self._layout.read_layers)
                read = ((n, self.of(step, held, n, timed=not compiled)) for n in layers)
                step.ready = {n: memory for n, memory in read if memory is not None}

    def again(self, step: Step | None, error: Exception) -> bool:
        """Whether a forward that broke off is to run once more, without memory."""
        if step is None or step.recall is None or step.before is None:
            return False
        ours = raised_in(error, *self.functions)
        if not ours or not self._core.failures.left_out("read", error):
            return False
        step.before()
        step.read_nothing()
        return True

    def of(self, step: Step, recall: Recall, layer: int, timed: bool = True) -> LayerMemory | None:
        """What block `layer` reads of a recall; None: nothing. `timed` where somebody watches."""
        if layer not in self._layout.read_layers or self._layout.residual:
            return None
        held, seen, timing = recall.layers.get(layer), step.query_mask, self._core.timing
        if held is None:
            with timing.of("read"):
                held = recall.layer(layer)
        device = held.keys.device
        return LayerMemory(
            held,
            recall.bias.to(device),
            None if seen is None else seen.to(device),
            self.turn(step, layer, device),
            step.gates,
            step.weights,
            step.aside,
            timing.add if timed and timing.on else None,
        )

    def turn(
        self, step: Step, layer: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What rotates a query from its own position to one window behind position 0."""
        # Keys are stored as they were before their rotation and read so, as if they all stood at
        # position 0: no key has to be rotated while decoding. An embedding that scales attention
        # (YaRN) has its factor here once for the query and once for the keys.
        adapter = self._core.adapter
        kind = adapter.rotary_kinds[layer]
        if kind is None or not self._constant:
            return None
        if kind not in step.turns:  # layers of one kind share it
            step.turns[kind] = adapter.rotary(
                layer, self._window - step.position_ids, reach=step.position_ids
            )
        cos, sin = step.turns[kind]
        return cos.to(device), sin.to(device)
