"""The settings of how what was recalled enters the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmr.config import checks as check

METHODS = ("attention", "weighted_sum", "gated", "residual")
STATE_METHODS = ("weighted_sum", "gated", "residual")
"""Those that blend stored states into what enters a layer."""
RECONSTRUCTION_METHODS = ("hierarchical", "attention", "weighted_sum", "recompute")
POSITIONS = ("constant", "layout", "true")


@dataclass(frozen=True)
class ReweaveConfig(check.Checked):
    """How what was recalled enters the model.

    Attributes:
        method: 'attention' reads blocks through each layer's own attention. The others blend a
            weighted sum m of stored states into the states h that enter a layer: 'weighted_sum'
            h' = (1 - w) h + w m, 'residual' h' = h + w m, 'gated' h' = h + g (m - h) with g = w
            times how well h fits its best stored state, 0 where none fits.
        memory_weight: a number w in [0, 1], or 'auto'. With 'attention', logit(w) is added to the
            memory's logits: 0 is off, 0.5 one joint softmax (below it hardly anything is recalled),
            0.88 reads strongly, 'auto' follows how certain retrieval is. With the others w is as
            above and 'auto' means 0.1.
        positions: 'constant' puts memory one window away, 'layout' lays the blocks out just before
            the window, 'true' keeps their distances.
        sink_guard: first tokens of a text without a real beginning that do not read memory, 0..64;
            above 0 the first token of a stored text is not read either.
        layers: layers that read memory (synonym 'intervention_layers'). None: with `cmr.attach`
            the target layers, in the model classes the range that those are by default.
        reconstruction_method: what is read where not all that is recalled may be. 'attention':
            the tokens that match best, in runs, as they are; 'weighted_sum': half as many of them,
            and all others summed up in groups of neighbours; 'hierarchical': the best passage
            whole, the others in groups that get coarser; 'recompute': those of 'attention', run
            through the model again. Where states
            are blended, also how m is formed: by a softmax over the cosines ('weighted_sum'), over
            sqrt(hidden) times the cosines ('attention', 'recompute'), or inside each passage and
            then over passages ('hierarchical'). None: chosen like 'attention', summed like
            'weighted_sum'.
        max_memory_tokens: most memory tokens a row reads at once, 1 or more; None: as retrieval
            gives.
        compression_ratio: share of a row's recalled tokens that is read, in (0, 1], rounded down
            and one at least; None: all.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    method: str = check.setting("attention", check.choice, METHODS)
    memory_weight: float | str = check.setting("auto", check.auto_or_real, 0.0, 1.0)
    positions: str = check.setting("constant", check.choice, POSITIONS)
    sink_guard: int = check.setting(8, check.integer, 0, 64)
    layers: tuple[int, ...] | None = check.setting(None, check.layers)
    reconstruction_method: str | None = check.setting(None, check.choice, RECONSTRUCTION_METHODS)
    max_memory_tokens: int | None = check.setting(None, check.integer, 1)
    compression_ratio: float | None = check.setting(None, check.share)

    @property
    def bias(self) -> float | None:
        """logit(memory_weight): -inf at 0, +inf at 1; None where 'auto' decides at each recall."""
        if isinstance(self.memory_weight, str):
            return None
        # Their logits are infinite: memory off, and nothing but memory.
        if self.memory_weight in (0.0, 1.0):
            return math.copysign(math.inf, self.memory_weight - 0.5)
        return math.log(self.memory_weight) - math.log1p(-self.memory_weight)

    @property
    def fixed_gate(self) -> float:
        """The w of the methods that blend states: memory_weight, 0.1 where that is 'auto'."""
        return 0.1 if isinstance(self.memory_weight, str) else self.memory_weight
