"""`HookManager`: hooks on a decoder by name, on states, attention, gradients and any module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter, entering_states, with_states
from cmr.integration.decoder.detection import adapt
from cmr.integration.hooks.attention_watcher import Watcher
from cmr.integration.memory import ATTACHED, Memory

CAPTURE, INTERVENTION, ATTENTION, GRADIENT, CUSTOM = (
    "capture",
    "intervention",
    "attention",
    "gradient",
    "custom",
)
KEEP = ("last", "all")
WHERE = ("entering", "leaving")
CUSTOM_KINDS = ("forward", "forward_pre", "backward")

Take = Callable[[int, torch.Tensor], None]
Change = Callable[[torch.Tensor, int], torch.Tensor]
"""Takes the states `[batch, tokens, hidden]` that enter a layer, and its number."""


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


class HookManager:
    """All hooks on one decoder. A context manager: at its end all are gone.

    Hooks do not see the passes that an attached memory makes for itself (looking ahead, reading
    a text, running a passage again), but interventions change those, too: what is searched for is
    what the model then thinks. Interventions come before whatever captures the same states,
    the memory included.

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
            name: of the hook.
            layers: with 'entering' indices into `hidden_states`: state i enters block i, and that
                of `num_hidden_layers` stands in front of the head. With 'leaving' blocks.
            where: 'entering', or 'leaving': a block's output before any further norm.
            keep: 'last' keeps the newest forward's states in `values`, 'all' a list.
            detach: without the graph that they came from.
            into: takes layer and states; nothing is kept then.

        Raises:
            ConfigError: the name is taken, or a layer or value is out of its range.
        """
        check.choice("where", where, WHERE)
        check.choice("keep", keep, KEEP)
        last = self._adapter.depth if where == "entering" else self._adapter.depth - 1
        hook = self._new(name, CAPTURE, layers, last)
        hook.keep, hook.function = keep, into

        def see(layer: int, states: torch.Tensor) -> None:
            if self._on(hook):
                hook.take(layer, states.detach() if detach else states)

        for layer in hook.layers:
            self._put(hook, self._states_hook(layer, where, see))
        return hook

    def intervene(
        self, name: str, layers: Iterable[int] | int, change: Change, *, order: int | None = None
    ) -> Hook:
        """Change the states that enter blocks.

        Args:
            name: of the hook.
            layers: blocks.
            change: takes states and layer, gives states of the same shape, dtype and device.
            order: among the interventions of a layer, the lowest first; needed where there are
                several.

        Raises:
            ConfigError: the name is taken, a layer is out of its range, another intervention on
                it has no order or the same, or an attached memory blends states into it.
        """
        if not callable(change):
            raise check.refuse("change", change, "a function of states and layer")
        self._check_interventions(name, self._numbers(layers, self._adapter.depth - 1), order)
        hook = self._new(name, INTERVENTION, layers, self._adapter.depth - 1)
        hook.order, hook.function = order, change
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
        implementation. Where a layer also reads memory, these are the weights without it.

        Args:
            name: of the hook.
            layers: blocks.
            keep: 'last' or 'all'.
            into: takes layer and weights; nothing is kept then.

        Raises:
            ConfigError: the name is taken, or a layer or value is out of its range.
            UnsupportedModelError: the family's attention cannot be looked at.
        """
        check.choice("keep", keep, KEEP)
        watcher = self._watcher or Watcher(self._adapter)
        hook = self._new(name, ATTENTION, layers, self._adapter.depth - 1)
        hook.keep, hook.function, self._watcher = keep, into, watcher
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
        """Watch the flow of gradients: their norm at states, in every backward.

        Args:
            name: of the hook.
            layers: as for `capture` with 'entering'.
            keep: 'last' keeps the newest norm, 'all' a list.
            into: takes layer and norm; nothing is kept then.

        Raises:
            ConfigError: the name is taken, or a layer or value is out of its range.
        """
        check.choice("keep", keep, KEEP)
        hook = self._new(name, GRADIENT, layers, self._adapter.depth)
        hook.keep, hook.function = keep, into

        def see(layer: int, states: torch.Tensor) -> None:
            if self._on(hook) and states.requires_grad:
                states.register_hook(lambda gradient: flow(layer, gradient))

        def flow(layer: int, gradient: torch.Tensor) -> None:
            if self._on(hook):
                hook.take(layer, float(gradient.float().norm()))

        for layer in hook.layers:
            self._put(hook, self._states_hook(layer, "entering", see))
        return hook

    def custom(
        self, name: str, module: str, function: Callable[..., Any], kind: str = "forward"
    ) -> Hook:
        """A hook of your own on any module.

        Args:
            name: of the hook.
            module: name of the module, as `model.named_modules()` gives it.
            function: as PyTorch calls it: `(module, args, output)` for 'forward', `(module, args)`
                for 'forward_pre', `(module, grad_input, grad_output)` for 'backward'. What it
                returns takes the place of output, arguments or gradient; None changes nothing.
            kind: one of these.

        Raises:
            ConfigError: the name is taken, or there is no such module; the message names the
                nearest one.
        """
        check.choice("kind", kind, CUSTOM_KINDS)
        if not callable(function):
            raise check.refuse("function", function, "something to call")
        modules = dict(self.model.named_modules())
        if module not in modules:
            raise ConfigError(f"module {module!r}: {check.nearest(module, modules)}")
        hook = self._new(name, CUSTOM, (), 0)
        at = modules[module]

        def call(*args: Any) -> Any:
            return function(*args) if self._on(hook) else None

        if kind == "backward":
            self._put(hook, at.register_full_backward_hook(call))
        elif kind == "forward":
            self._put(hook, at.register_forward_hook(call))
        else:
            self._put(hook, at.register_forward_pre_hook(call))
        return hook

    # -- switching and removing ------------------------------------------------------------------

    def enable(self, name: str) -> None:
        """Let a hook do its work again.

        Raises:
            ConfigError: there is none of that name, or by now it would be in conflict.
        """
        hook = self._named(name)
        if hook.kind == INTERVENTION and not hook.enabled:
            self._check_interventions(name, hook.layers, hook.order)
        hook.enabled = True
        self._arrange()

    def disable(self, name: str) -> None:
        """Let a hook rest; what it captured stays. Raises `ConfigError` for an unknown name."""
        self._named(name).enabled = False
        self._arrange()

    def remove(self, name: str) -> Hook:
        """Take a hook away and give it back, with what it captured.

        Raises:
            ConfigError: there is none of that name; the message names the nearest one.
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

    def _new(self, name: str, kind: str, layers: Iterable[int] | int, last: int) -> Hook:
        if not isinstance(name, str) or not name:
            raise check.refuse("name", name, "a name")
        if name in self.hooks:
            raise ConfigError(f"name: a hook is named {name!r} already ({self.hooks[name].kind})")
        hook = Hook(name, kind, () if kind == CUSTOM else self._numbers(layers, last))
        self.hooks[name], self._handles[name] = hook, []
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

    def _put(self, hook: Hook, handle: Any) -> None:
        self._handles[hook.name].append(handle)

    def _on(self, hook: Hook) -> bool:
        """Whether a hook looks at the forward under way."""
        memory: Memory | None = getattr(self.model, ATTACHED, None)
        return hook.enabled and not (memory is not None and memory._stepper.busy)

    def _states_hook(self, layer: int, where: str, see: Take) -> Any:
        """Shows the states that enter or leave a layer."""
        if where == "leaving" or layer == self._adapter.depth:
            final = where == "entering"
            module = self._adapter.decoder if final else self._adapter.layers[layer]

            def after(_: nn.Module, __: Any, output: Any) -> None:
                see(layer, output if isinstance(output, torch.Tensor) else output[0])

            # Before an attached memory's own hook, which ends the step.
            return module.register_forward_hook(after, prepend=final)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(layer, entering_states(args, kwargs))

        return self._adapter.layers[layer].register_forward_pre_hook(before, with_kwargs=True)

    # -- interventions and attention -------------------------------------------------------------

    def _check_interventions(self, name: str, layers: tuple[int, ...], order: int | None) -> None:
        """Raises `ConfigError` for what would not be decided by anybody."""
        if order is not None:
            order = check.integer("order", order, -(1 << 31))
        memory: Memory | None = getattr(self.model, ATTACHED, None)
        if memory is not None and memory._core.layout.residual:
            both = sorted(set(layers) & memory._core.layout.read_layers)
            if both:
                raise ConfigError(
                    f"intervention {name!r}: the attached memory blends states into layers {both} "
                    f"(method={memory.config.reweave.method!r}); other layers expected, or "
                    "method='attention'"
                )
        for other in self.hooks.values():
            if other.kind != INTERVENTION or not other.enabled or other.name == name:
                continue
            both = sorted(set(layers) & set(other.layers))
            if both and (order is None or other.order is None or order == other.order):
                raise ConfigError(
                    f"intervention {name!r} meets {other.name!r} on layers {both}: an order of its "
                    f"own expected for each, got {order} and {other.order}"
                )

    def _arrange(self) -> None:
        """One hook a layer runs its interventions in their order; the watcher knows its layers."""
        for handle in self._handles.pop("", []):
            handle.remove()
        changes: dict[int, list[Hook]] = {}
        watching: dict[int, list[Hook]] = {}
        for hook in self.hooks.values():
            where = {INTERVENTION: changes, ATTENTION: watching}.get(hook.kind)
            for layer in hook.layers if where is not None and hook.enabled else ():
                assert where is not None
                where.setdefault(layer, []).append(hook)
        self._handles[""] = [
            self._adapter.layers[layer].register_forward_pre_hook(
                _changing(layer, sorted(found, key=lambda hook: hook.order or 0)),
                with_kwargs=True,
                prepend=True,
            )
            for layer, found in changes.items()
        ]
        if self._watcher is not None:

            def tell(layer: int, weights: torch.Tensor) -> None:
                for hook in watching[layer]:
                    if self._on(hook):
                        hook.take(layer, weights)

            self._watcher.watch(set(watching), tell)


def _changing(layer: int, hooks: list[Hook]) -> Callable[..., Any]:
    """Runs interventions on the states that enter a block."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = entering_states(args, kwargs)
        for each in hooks:
            assert each.function is not None
            found = each.function(states, layer)
            _require_like(each.name, found, states)
            states = found
        return with_states(args, kwargs, states)

    return hook


def _require_like(name: str, found: Any, states: torch.Tensor) -> None:
    """Raises where an intervention gave something that the layer cannot take."""
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"intervention {name!r}: a tensor of states expected, got {type(found).__name__}"
        )
    wanted = (list(states.shape), states.dtype, states.device)
    have = (list(found.shape), found.dtype, found.device)
    if have != wanted:
        raise ValueError(f"intervention {name!r}: states of {wanted} expected, got {have}")
