"""Whether a model still has the weights that what is stored was computed with."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cmr.errors import ModelMismatchError
from cmr.integration.decoder import fingerprint
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.placement import offloaded

MIXED: dict[str, Any] = {"weights": "several"}
"""What was stored while a model was trained: its states are of several weights, and of none."""


class Identity:
    """Knows the fingerprint of the weights that what is stored was computed with.

    A glance tells whether weights may have changed since the last one: by which tensors they are,
    where these lie and how often they were written, and by a few numbers of one weight of each
    kind, as what is written to `weight.data` is not counted. Only then the fingerprint is taken
    anew. Of offloaded weights, which are other tensors in every forward, and of quantised ones,
    which are laid out anew, a glance sees no more than these numbers or nothing; the fingerprint,
    which `save` and `load` take whatever a glance says, has all. `stored` says whether anything is
    stored, and `warn` warns once.

    Attributes:
        turn: how many other weights were seen so far; of a text that began at another turn the
            first tokens are of other weights than the last ones.
    """

    def __init__(
        self, adapter: ModelAdapter, stored: Callable[[], bool], warn: Callable[[str, str], None]
    ) -> None:
        self._adapter, self._stored, self._warn = adapter, stored, warn
        self.turn = 0
        self._made: dict[str, Any] | None = None
        self._checked: int | None = None
        self._trains = False
        self._tables: list[dict[str, Any]] = []
        self._modules: list[dict[str, Any]] = []
        self._probed: list[torch.Tensor] = []
        self._signature: object = None
        self._probe: bytes | None = None

    def look(self, probe: bool = True) -> None:
        """Count a turn where the weights may be others; `probe` looks at numbers of them, too.

        The device is asked for these once.
        """
        signature = self._sign()
        if signature != self._signature:
            self._take_note()
        elif not probe or self._numbers() == self._probe:
            return
        else:
            self._probe = self._numbers()
        self.turn += 1

    def require(self, *, probe: bool = True, thorough: bool = False) -> None:
        """Hold the model to the weights of what is stored.

        `probe` as for `look`; `thorough` takes the fingerprint whatever a glance says. Raises
        `ModelMismatchError` where something is stored and was computed with others. While the model
        is trained that is warned of, unless it is to be thorough: every step makes other weights.
        """
        self.look(probe)
        if probe:  # in front of a forward; what is stored behind it is stored without gradients
            self._trains = self._adapter.decoder.training and torch.is_grad_enabled()
        if not self._stored():
            if self._checked != self.turn:
                self._made = None
            return
        if not thorough and self._checked == self.turn:
            return
        here = fingerprint.of_model(self._adapter)
        self._made = self._made or here
        other = fingerprint.difference(self._made, here)
        if other is None:
            self._checked = self.turn
            return
        self._checked = None
        if self._trains and not thorough:
            self._warn(
                "trained",
                "the model was trained on since its memory stored something, which is of the "
                "weights before: clear() the memory after each step, or at the latest when the "
                "training is over, as it is refused from then on; said once",
            )
            return
        raise ModelMismatchError(
            f"the model is another one than the one whose states are stored ({other}): put its "
            "weights back, or clear() the memory; pause() or detach() it to run the model alone"
        )

    def claim(self) -> dict[str, Any]:
        """The fingerprint of what is stored, where more of this model is about to be.

        Raises as `require` does.
        """
        self.require(probe=False)
        if self._made is None:
            self._made, self._checked = fingerprint.of_model(self._adapter), self.turn
        elif self._checked != self.turn:  # it is trained
            self._made = MIXED
        return self._made

    # -- a glance --------------------------------------------------------------------------------

    def _sign(self) -> object:
        weights = [w for table in self._tables for w in table.values() if w is not None]
        try:
            versions = [w._version for w in weights]
        except RuntimeError:  # tensors of inference mode count nothing
            versions = [0 if w.is_inference() else w._version for w in weights]
        modules = [id(module) for table in self._modules for module in table.values()]
        return modules, [*map(id, weights)], versions, [w.data_ptr() for w in weights]

    def _numbers(self) -> bytes:
        """A few numbers of the weights that are probed."""
        with torch.no_grad():
            return b"".join(
                fingerprint.bytes_of([fingerprint.sample(weight)[1] for weight in self._probed])
            )

    def _take_note(self) -> None:
        """Find out anew what a glance looks at."""
        model: nn.Module = self._adapter.model
        kinds: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._tables, self._modules = [], []
        for path, module in model.named_modules():
            self._modules.append(module._modules)
            if offloaded(module):
                continue
            weights = {n: w for n, w in module._parameters.items() if w is not None}
            for name, weight in weights.items():
                kinds[re.sub(r"\d+", "", f"{path}.{name}")].append(weight)
            if all(_lies_still(weight) for weight in weights.values()):
                self._tables.append(module._parameters)
        # The one in the middle of each kind: whoever merges, averages or loads changes all of them.
        self._probed = [
            weights[len(weights) // 2]
            for weights in kinds.values()
            if weights[0].device.type != "meta" and not hasattr(weights[0], "to_local")
        ]
        self._signature, self._probe = self._sign(), self._numbers()


def _lies_still(weight: torch.Tensor) -> bool:
    """Whether a weight stays where it is as long as nobody changes it."""
    plain = weight.is_floating_point() and not hasattr(weight, "quant_state")
    return plain and not hasattr(weight, "to_local") and weight.device.type != "meta"
