"""Layers that a pass ahead of a search has run, and that the forward behind it need not run again.

Up to the first layer that reads memory both run the same layers on the same tokens: what a layer
gave ahead, it gives again, and its keys and values go into the cache as if it had run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.wrapped import Wrapped
from cmr.integration.reweave.attention import WATCH

MOST_BYTES = 256 << 20
"""Of the outputs that are kept for the forward; layers behind them run twice."""

_TAKES = (torch.Tensor, tuple, bool, int, float, str, type(None))
_GIVES = ("attentions", "hidden_states", "router_logits")
_IDLE = "transformers.utils.output_capturing"
"""Whose hooks stay on a model once somebody has asked for one of these, and then do nothing."""


class FirstLayers:
    """Wraps the `forward` of a model's first layers, from a pass ahead to the end of the next one.

    Args:
        adapter: of the model.
        before: the first layer that is not as in a pass ahead: it reads memory.
    """

    def __init__(self, adapter: ModelAdapter, before: int) -> None:
        self._adapter, self._before = adapter, before
        self._wraps: list[Wrapped] = []
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._bytes = 0
        self._ahead = self._taking = False

    @contextmanager
    def noted(self, cache: Any, stop: int, kwargs: dict[str, Any]) -> Iterator[None]:
        """Keep what the layers in front of `stop` give in the one forward inside.

        `cache` has a `WindowLayer` a layer, and `kwargs` are those of the decoder. Nothing is kept
        where somebody wants more of the forward than what it gives.
        """
        self.drop()
        layers = list(self._adapter.layers)[: min(self._before, stop)]
        if self._run_in_both(layers, kwargs):
            yield
            return
        self._ahead, self._bytes = True, 0
        try:
            # One by one into what `drop` looks at: an interrupt may come in between.
            for number, layer in enumerate(layers):
                self._wraps.append(Wrapped(layer, "forward", self._around(number, cache)))
            yield
        except BaseException:
            self.drop()
            raise
        finally:
            self._ahead = False

    def take(self, compiled: bool) -> None:
        """The forward that begins takes what was kept, unless it has a graph or is compiled."""
        # Not before: the memory may run others of its own, such as passages that keep no states.
        if compiled or torch.is_grad_enabled():
            self.drop()
        self._taking = True

    def drop(self) -> None:
        """Layers run as they always do: the forward is over, or another one comes."""
        self._taking = False
        while self._wraps:
            self._wraps[-1].take_away()
            self._wraps.pop()
        self._kept.clear()

    def _run_in_both(self, layers: list[nn.Module], kwargs: dict[str, Any]) -> bool:
        """Whether somebody looks at each layer, trains it, or has compiled it."""
        decoder = self._adapter.decoder
        config: Any = decoder.config
        return (
            decoder.training
            or _has_any_global_hook()
            or any(kwargs.get(f"output_{what}") for what in _GIVES)
            or any(getattr(config, f"output_{what}", False) for what in _GIVES)
            or any(_looked_at(module) for layer in layers for module in layer.modules())
        )

    def _around(self, number: int, cache: Any) -> Callable[..., Any]:
        def around(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            window = cache.layers[number]
            if not self._ahead:
                kept = self._kept.pop(number, None) if self._taking else None
                if kept is None:
                    return own(*args, **kwargs)
                output, new = kept
                window.update(*new)
                return output
            window.peeked = None
            output = own(*args, **kwargs)
            new, window.peeked = window.peeked, None
            # What a layer leaves in a dictionary for others, it has to leave there again.
            plain = all(x is cache or isinstance(x, _TAKES) for x in (*args, *kwargs.values()))
            states = output[0] if isinstance(output, tuple) and len(output) == 1 else output
            if plain and new is not None and isinstance(states, torch.Tensor):
                self._bytes += states.nbytes
                if self._bytes <= MOST_BYTES:
                    copy = states.clone()  # the layer behind may write into what it is given
                    self._kept[number] = (copy,) if states is not output else copy, new
            return output

        return around


def _looked_at(module: nn.Module) -> bool:
    """Whether a module has hooks or a watcher, or its `forward` is not what is called."""
    return bool(
        module._forward_pre_hooks
        or any(getattr(hook, "__module__", "") != _IDLE for hook in module._forward_hooks.values())
        or module._compiled_call_impl is not None
        or WATCH in vars(module)
    )
