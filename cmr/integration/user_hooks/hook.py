"""`Hook`: one hook that a `HookManager` has registered, and what it captured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Hook:
    """One registered hook.

    Attributes:
        name: what it is called.
        kind: 'capture', 'intervention', 'attention', 'gradient' or 'custom'.
        layers: the layers that it is on, as indices into `hidden_states`; empty for custom ones.
        enabled: whether it does anything at present.
        values: what was captured, by layer: the newest, or a list of all with `keep="all"`.
        order: of an intervention among those of its layer: the lowest first.
    """

    name: str
    kind: str
    layers: tuple[int, ...] = ()
    enabled: bool = True
    values: dict[int, Any] = field(default_factory=dict)
    order: int | None = None
    keep: str = "last"
    function: Callable[..., Any] | None = None

    def take(self, layer: int, value: Any) -> None:
        """Hand a value over, or keep it."""
        if self.function is not None:
            self.function(layer, value)
        elif self.keep == "all":
            self.values.setdefault(layer, []).append(value)
        else:
            self.values[layer] = value


def by_layer(hooks: Iterable[Hook]) -> dict[int, list[Hook]]:
    """The hooks that are on each layer."""
    found: dict[int, list[Hook]] = {}
    for hook in hooks:
        for layer in hook.layers:
            found.setdefault(layer, []).append(hook)
    return found
