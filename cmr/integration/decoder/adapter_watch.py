"""Adapters of a model, such as LoRA by PEFT: which of them are in effect, and what was read so.

PEFT puts a layer of its own in the place of each layer that an adapter changes, before or after a
memory is attached, and switches all of them together. Its layers are known by what they have: PEFT
itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from cmr.integration.core import Core

WRAPPED = ("base_layer", "original_module")
"""What adapter layers call the layer in whose place they are."""


def without_wrapper(model: Any) -> nn.Module:
    """The model itself, where it is wrapped by PEFT."""
    get: Any = getattr(model, "get_base_model", None)
    return model if get is None else get()


def adapter_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that adapters have put in the place of others, by their path in the bare model."""
    for path, module in without_wrapper(model).named_modules():
        kind = type(module)
        if hasattr(kind, "adapter_layer_names") and hasattr(kind, "merged_adapters"):
            yield path, module


def in_effect(layers: Collection[Any]) -> tuple[str, ...]:
    """Names of the adapters that change what a model computes, sorted."""
    found: set[str] = set()
    for layer in layers:
        if not layer.disable_adapters:
            # Merged ones are in the weights, whatever is called active.
            found |= set(layer.merged_adapters) or parts_of(layer) & set(layer.active_adapters)
    return tuple(sorted(found))


def parts_of(layer: Any) -> set[str]:
    """Names of the adapters that have weights in a layer."""
    return {
        name
        for attribute in layer.adapter_layer_names
        for name in getattr(getattr(layer, attribute, None), "keys", tuple)()
    }


class AdapterWatch:
    """Knows which adapters each session was read with, and warns where others are in effect.

    `search_anew` lets texts that go on search again at their next step. `ever` says whether any
    adapter was ever there, and `model` is the model without a wrapper.
    """

    def __init__(self, core: Core, search_anew: Callable[[], None]) -> None:
        self._core, self._search_anew = core, search_anew
        self.model = without_wrapper(core.adapter.model)
        self._look()
        # Sessions that were loaded may have been read with adapters that are gone by now.
        self.ever = bool(self._shown) or any(info.adapters for info in core.table.infos())

    def check(self, sessions: Sequence[int]) -> None:
        """Before a forward of these sessions: note the adapters of new ones, warn of the others."""
        # What is stored of a session are keys and values of the model as it was, and under other
        # adapters it is another model.
        # Every step comes by: next to nothing is done where no adapter was ever there.
        if not self.ever and "peft_config" not in self.model.__dict__:
            return
        if self._changed():
            before = self._names
            self._look()
            self.ever = True
            # What was recomputed, and what texts recall now, is the other model's.
            if self._names != before:
                self._core.recomputed.forget()
                self._search_anew()
        table = self._core.table
        for session in sessions:
            if not table.alive([session]):
                continue
            info = table.info(session)
            stored = self._core.ring.blocks_of(session) > 0
            if not stored:
                if info.adapters != self._names:
                    table.note_adapters(session, self._names)
            elif (info.adapters or ()) != self._names:
                self._warn(info.name, info.adapters or ())

    def _warn(self, session: str, read: tuple[str, ...]) -> None:
        self._core.warn(
            f"adapters {read} {self._names}",
            f"session {session!r} was read with {described(read)} and is used with "
            f"{described(self._names)}: what it stores are keys and values of another model. "
            "Switch back, or forget the session and read its text again; said once",
        )

    def _look(self) -> None:
        """Look at all adapter layers; the first and the last show when something is switched."""
        # PEFT switches all of its layers together, and there are hundreds: two tell for all.
        layers = dict(adapter_layers(self.model))
        self._names = in_effect(layers.values())
        self._shown: list[tuple[dict[str, Any], str, Any]] = []
        for path in [*layers][:1] + [*layers][1:][-1:]:
            parent, _, name = path.rpartition(".")
            self._shown.append((self.model.get_submodule(parent)._modules, name, layers[path]))
        self._signature = self._sign()

    def _changed(self) -> bool:
        return self._sign() != self._signature or any(
            beside.get(name) is not layer for beside, name, layer in self._shown
        )

    def _sign(self) -> tuple[Any, ...]:
        """What is other as soon as adapters are added, removed, switched or merged."""
        return tuple(self.model.__dict__.get("peft_config") or ()), *(
            (layer.disable_adapters, tuple(layer.active_adapters), tuple(layer.merged_adapters))
            for _, _, layer in self._shown
        )


def described(names: Collection[str]) -> str:
    """Adapters in words."""
    return f"adapters {sorted(names)}" if names else "no adapter"
