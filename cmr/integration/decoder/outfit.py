"""What stands on a model beside its weights, to be put back where attaching breaks half-way."""

from __future__ import annotations

from torch import nn


class Outfit:
    """The attributes and hooks of a model's modules, and its settings, as they are just now."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        settings = {id(m.config): m.config for m in modules if hasattr(m, "config")}
        worn = [*modules, *settings.values()]
        self._worn = [(vars(thing), dict(vars(thing))) for thing in worn]

        self._hooks = [
            (hooks, dict(hooks))
            for _, own in self._worn
            for name, hooks in own.items()
            if name.endswith(("_hooks", "_with_kwargs", "_always_called"))
        ]

    def put_back(self) -> None:
        """Let all of it be as it was; to do so again does no harm."""
        for now, before in [*self._worn, *self._hooks]:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
