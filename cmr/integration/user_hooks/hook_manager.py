"""`HookManager`: hooks on a decoder by name, on states, attention, gradients and any module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter, entering_states
from cmr.integration.detection import adapt
from cmr.integration.memory import ATTACHED, Memory
from cmr.integration.user_hooks.attention_watcher import Watcher
from cmr.integration.user_hooks.hook import Hook, by_layer
from cmr.integration.user_hooks.interventions import Interventions

INTERVENTION, ATTENTION = "intervention", "attention"
KEEP = ("last", "all")
WHERE = ("entering", "leaving")
CUSTOM_KINDS = {
    "forward": "register_forward_hook",
    "forward_pre": "register_forward_pre_hook",
    "backward": "register_full_backward_hook",
}
"""Kinds of hooks on any module, and the method of a module that registers one."""

Take = Callable[[int, torch.Tensor], None]
Change = Callable[[torch.Tensor, int], torch.Tensor]
"""Takes the states `[batch, tokens, hidden]` that enter a layer, and its number."""


class HookManager:
    """All hooks on one decoder. A context manager: at its end all are gone.

    Hooks do not see the passes that an attached memory makes for itself (looking ahead, reading
    a text, running a passage again), but interventions change those, too: what is searched for is
    what the model then thinks. Interventions come before whatever captures the same states,
    the memory included.

    What the methods that register a hook have in common: `name` is what it is called, `layers` are
    the blocks that it is on, `keep` says what of its values stays in `Hook.values`, 'last' or a
    list of 'all', and with `into`, which takes layer and value, nothing is kept. They raise
    `ConfigError` where the name is taken, or a layer or value is out of its range.

    Args:
        model: a transformers decoder with a language-model head.
        adapter: its view, where there is one already; None: a new one.

    Attributes:
        hooks: by name, in the order of their registration.

    Raises:
        UnsupportedModelError: the model is none that is covered.
    """

    def __init__(self, model: nn.Module, *, adapter: ModelAdapter | None = None) -> None:
        self.model = model
        self._adapter = adapt(model) if adapter is None else adapter
        self.hooks: dict[str, Hook] = {}
        self._handles: dict[str, list[Any]] = {}
        self._interventions = Interventions(model, self._adapter)
        self._watcher: Watcher | None = None

    def __enter__(self) -> HookManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_all()

    def __len__(self) -> int:
        return len(self.hooks)

    # -- registering -----------------------------------------------------------------------------

    def capture(
        self,
        name: str,
        layers: Iterable[int] | int,
        *,
        where: str = "entering",
        keep: str = "last",
        detach: bool = True,
        into: Take | None = None,
    ) -> Hook:
        """Capture states `[batch, tokens, hidden]`.

        Args:
            name: see the class, as for `keep` and `into`.
            layers: with 'entering' indices into `hidden_states`: state i enters block i, and that
                of `num_hidden_layers` stands in front of the head. With 'leaving' blocks.
            where: 'entering', or 'leaving': a block's output before any further norm.
            keep: of each forward.
            detach: without the graph that they came from.
            into: takes layer and states.
        """
        check.choice("where", where, WHERE)
        last = self._adapter.depth if where == "entering" else self._adapter.depth - 1
        hook = self._new(name, "capture", self._numbers(layers, last), keep, into)

        def see(layer: int, states: torch.Tensor) -> None:
            if self._on(hook):
                hook.take(layer, states.detach() if detach else states)

        return self._see_states(hook, where, see)

    def intervene(
        self, name: str, layers: Iterable[int] | int, change: Change, *, order: int | None = None
    ) -> Hook:
        """Change the states that enter blocks.

        Args:
            name: see the class, as for `layers`.
            layers: blocks.
            change: takes states and layer, gives states of the same shape, dtype and device.
            order: among the interventions of a layer, the lowest first; needed where there are
                several.

        Raises:
            ConfigError: also where another intervention on a layer has no order or the same, or an
                attached memory blends states into it.
        """
        if not callable(change):
            raise check.refuse("change", change, "a function of states and layer")
        numbers = self._numbers(layers, self._adapter.depth - 1)
        self._interventions.require_decided(name, numbers, order, self._enabled(INTERVENTION))
        hook = self._new(name, INTERVENTION, numbers, into=change)
        hook.order = order
        self._arrange()
        return hook

    def attention(
        self,
        name: str,
        layers: Iterable[int] | int,
        *,
        keep: str = "last",
        into: Take | None = None,
    ) -> Hook:
        """Capture attention weights `[batch, heads, tokens, seen]` float32 over the local window.

        They are computed beside the model's own attention, which stays as it is, in whatever
        implementation. Where a layer also reads memory, these are the weights without it. The
        arguments are as the class says. Raises `UnsupportedModelError`: the family's attention
        cannot be looked at.
        """
        # Made first: where the family cannot be looked at, no hook is to be left behind.
        watcher = self._watcher or Watcher(self._adapter)
        numbers = self._numbers(layers, self._adapter.depth - 1)
        hook = self._new(name, ATTENTION, numbers, keep, into)
        self._watcher = watcher
        self._arrange()
        return hook

    def gradients(
        self,
        name: str,
        layers: Iterable[int] | int,
        *,
        keep: str = "last",
        into: Callable[[int, float], None] | None = None,
    ) -> Hook:
        """Watch the flow of gradients: their norm, a float, at states, in every backward.

        The arguments are as the class says, `layers` as for `capture` with 'entering'.
        """
        numbers = self._numbers(layers, self._adapter.depth)
        hook = self._new(name, "gradient", numbers, keep, into)

        def see(layer: int, states: torch.Tensor) -> None:
            if self._on(hook) and states.requires_grad:
                # On the tensor, as the norm is of the gradient that arrives at these states.
                states.register_hook(lambda gradient: flow(layer, gradient))

        def flow(layer: int, gradient: torch.Tensor) -> None:
            if self._on(hook):
                hook.take(layer, float(gradient.float().norm()))

        return self._see_states(hook, "entering", see)

    def custom(
        self, name: str, module: str, function: Callable[..., Any], kind: str = "forward"
    ) -> Hook:
        """A hook of your own on any module.

        Args:
            name: see the class.
            module: name of the module, as `model.named_modules()` gives it; the error of one that
                is not there names the nearest one.
            function: as PyTorch calls it: `(module, args, output)` for 'forward', `(module, args)`
                for 'forward_pre', `(module, grad_input, grad_output)` for 'backward'. What it
                returns takes the place of output, arguments or gradient; None changes nothing.
            kind: one of these.
        """
        check.choice("kind", kind, CUSTOM_KINDS)
        if not callable(function):
            raise check.refuse("function", function, "something to call")
        modules = dict(self.model.named_modules())
        if module not in modules:
            said = check.nearest(module, modules, "model.named_modules() lists them")
            raise ConfigError(f"no module is named {module!r}: {said}")
        hook = self._new(name, "custom", ())

        def call(*args: Any) -> Any:
            return function(*args) if self._on(hook) else None

        # Looked at in every call, so that it can rest without being registered anew.
        register = getattr(modules[module], CUSTOM_KINDS[kind])
        self._handles[name].append(register(call))
        return hook

    # -- switching and removing ------------------------------------------------------------------

    def enable(self, name: str) -> None:
        """Let a hook do its work again.

        Raises `ConfigError`: there is none of that name, or by now it would be in conflict.
        """
        # While it rested another intervention may have come to the same place.
        hook = self._named(name)
        if hook.kind == INTERVENTION and not hook.enabled:
            self._interventions.require_decided(
                name, hook.layers, hook.order, self._enabled(INTERVENTION)
            )
        hook.enabled = True
        self._arrange()

    def disable(self, name: str) -> None:
        """Let a hook rest; what it captured stays. Raises `ConfigError` for an unknown name."""
        self._named(name).enabled = False
        self._arrange()

    def remove(self, name: str) -> Hook:
        """Take a hook away and give it back, with what it captured.

        Raises `ConfigError`: there is none of that name; the message names the nearest one.
        """
        hook = self._named(name)
        del self.hooks[name]
        for handle in self._handles.pop(name, []):
            handle.remove()
        self._arrange()
        return hook

    def remove_all(self) -> None:
        """Take all hooks away: the model is as it was, bit for bit."""
        for name in list(self.hooks):
            self.remove(name)

    # -- parts -----------------------------------------------------------------------------------

    def _new(
        self,
        name: str,
        kind: str,
        layers: tuple[int, ...],
        keep: str = "last",
        into: Callable[..., Any] | None = None,
    ) -> Hook:
        check.choice("keep", keep, KEEP)
        if not isinstance(name, str) or not name:
            raise check.refuse("name", name, "a name")
        if name in self.hooks:
            raise ConfigError(f"name: a hook is named {name!r} already ({self.hooks[name].kind})")
        self.hooks[name] = hook = Hook(name, kind, layers, keep=keep, function=into)
        self._handles[name] = []
        return hook

    @staticmethod
    def _numbers(layers: Iterable[int] | int, last: int) -> tuple[int, ...]:
        numbers = check.layers("layers", [layers] if isinstance(layers, int) else layers)
        if numbers[-1] > last:
            raise ConfigError(f"layers: 0..{last} expected on this model, got {numbers[-1]}")
        return numbers

    def _named(self, name: str) -> Hook:
        if name not in self.hooks:
            raise ConfigError(f"no hook is named {name!r}: {check.nearest(name, self.hooks)}")
        return self.hooks[name]

    def _on(self, hook: Hook) -> bool:
        """Whether a hook looks at the forward under way."""
        # The memory is busy in passes of its own: looking ahead, reading, running passages again.
        memory: Memory | None = getattr(self.model, ATTACHED, None)
        return hook.enabled and not (memory is not None and memory._stepper.busy)

    def _see_states(self, hook: Hook, where: str, see: Take) -> Hook:
        """Shows a hook the states that enter or leave its layers."""
        self._handles[hook.name] += [self._states_hook(n, where, see) for n in hook.layers]
        return hook

    def _states_hook(self, layer: int, where: str, see: Take) -> Any:
        if where == "leaving" or layer == self._adapter.depth:
            # The state in front of the head is the decoder's output, behind its last norm.
            final = where == "entering"
            module = self._adapter.decoder if final else self._adapter.layers[layer]

            def after(_: nn.Module, __: Any, output: Any) -> None:
                see(layer, output if isinstance(output, torch.Tensor) else output[0])

            # Before an attached memory's own hook, which ends the step.
            return module.register_forward_hook(after, prepend=final)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(layer, entering_states(args, kwargs))

        return self._adapter.layers[layer].register_forward_pre_hook(before, with_kwargs=True)

    def _enabled(self, kind: str) -> list[Hook]:
        return [hook for hook in self.hooks.values() if hook.kind == kind and hook.enabled]

    def _arrange(self) -> None:
        """Interventions run in their order, and the watcher knows whose weights are wanted."""
        self._interventions.arrange(self._enabled(INTERVENTION))
        if self._watcher is None:
            return
        watching = by_layer(self._enabled(ATTENTION))

        def tell(layer: int, weights: torch.Tensor) -> None:
            for hook in watching[layer]:
                if self._on(hook):
                    hook.take(layer, weights)

        self._watcher.watch(set(watching), tell)
