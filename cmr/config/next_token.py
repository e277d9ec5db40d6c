"""Settings of the next-token memory."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.config import checks as check


@dataclass(frozen=True)
class NextTokenConfig(check.Checked):
    """Whether and how stored tokens say what comes next, beside what the layers read.

    Attributes:
        knn: True: the distribution of the next token is p = (1 - g) p_model + g p_memory, where
            p_memory are the tokens that followed the recalled tokens most like the present one.
        knn_layers: layers whose keys and values are compared, among the target layers; None: those
            nearest to 60 %, 70 % and 80 % of the depth.
        knn_weight: the most that g can be, 0..1; 0 is off.
        knn_threshold: how well the best of them must fit for g to be above 0 where retrieval is
            certain, 0..1.5: 0 as well as an average recalled token, 1 exactly, and up to 0.5 more
            where the tokens before are the same. Where retrieval is uncertain 1.2 at least.
        knn_neighbours: stored tokens that say what comes next, 1..1024.
        knn_temperature: of the softmax over their cosines, above 0: the smaller, the more the best
            one decides.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    knn: bool = check.setting(False, check.flag)
    knn_layers: tuple[int, ...] | None = check.setting(None, check.layers)
    knn_weight: float = check.setting(0.9, check.real, 0.0, 1.0)
    knn_threshold: float = check.setting(0.7, check.real, 0.0, 1.5)
    knn_neighbours: int = check.setting(16, check.integer, 1, 1024)
    knn_temperature: float = check.setting(0.02, check.positive)

    @property
    def on(self) -> bool:
        """Whether it can change anything."""
        # With a weight of 0 nothing is compared, so that it costs nothing either.
        return self.knn and self.knn_weight > 0
