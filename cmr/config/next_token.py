"""Settings of the next-token memory."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.config import checks as check


@dataclass(frozen=True)
class NextTokenConfig:
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

    knn: bool = False
    knn_layers: tuple[int, ...] | None = None
    knn_weight: float = 0.9
    knn_threshold: float = 0.7
    knn_neighbours: int = 16
    knn_temperature: float = 0.02

    def __post_init__(self) -> None:
        """Checks every field."""
        check.flag("knn", self.knn)
        if self.knn_layers is not None:
            check.put(self, "knn_layers", check.layers("knn_layers", self.knn_layers))
        for name, most in (("knn_weight", 1.0), ("knn_threshold", 1.5)):
            check.put(self, name, check.real(name, getattr(self, name), 0.0, most))
        neighbours = check.integer("knn_neighbours", self.knn_neighbours, 1, 1024)
        check.put(self, "knn_neighbours", neighbours)
        temperature = check.real("knn_temperature", self.knn_temperature, 0.0)
        if temperature == 0:
            raise check.refuse("knn_temperature", temperature, "a number above 0")
        check.put(self, "knn_temperature", temperature)

    @property
    def on(self) -> bool:
        """Whether it can change anything."""
        return self.knn and self.knn_weight > 0
