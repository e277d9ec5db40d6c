"""A second face of a configuration, for attention modules alone: it names our attention."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from cmr.integration.reweave.attention import MARK, PREFIX, WATCH, memory_attention

_NAMES: dict[str, str] = {}
"""Implementations over which `memory_attention` is registered, and the names that it has there."""


class Face:
    """Stands for a configuration in an attention module, and names `memory_attention`.

    The configuration itself stays as it is: whoever builds, copies or saves a model by it gets the
    model's own attention, and whatever is set on it holds here, too. Copies of this are copies of
    the configuration. (It says what class it is of: a compiler would trace past a `__class__` that
    says otherwise.)
    """

    __slots__ = ("__weakref__", "_held", "_own")
    _own: Any
    _held: dict[str, Any]

    def __init__(self, own: Any) -> None:
        object.__setattr__(self, "_own", own)
        object.__setattr__(self, "_held", vars(own))

    @property
    def _attn_implementation(self) -> str:
        # Asked twice a layer and step, and a configuration takes long to answer.
        own = self._held.get("_attn_implementation_internal") or self._own._attn_implementation
        return _NAMES.get(own) or plug(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._own, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._own, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._own == (other._own if type(other) is Face else other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._own)

    def __copy__(self) -> Any:
        return copy.copy(self._own)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self._own,)


def plug(own: str) -> str:
    """Register `memory_attention` over the implementation `own`; its name in `AttentionInterface`.

    Registering a name changes no model.
    """
    from transformers import AttentionInterface

    name = PREFIX + own
    AttentionInterface.register(name, memory_attention)
    _NAMES[own] = name
    return name


def put(attention: nn.Module) -> None:
    """Let an attention module find `memory_attention` in its configuration, if it has one."""
    config: Any = getattr(attention, "config", None)
    if config is not None and type(config) is not Face:
        attention.config = Face(config)  # type: ignore[assignment]


def take_away(attention: nn.Module) -> None:
    """Give it its own configuration back, unless a memory or a watcher still needs the other."""
    config: Any = getattr(attention, "config", None)
    if type(config) is Face and not hasattr(attention, MARK) and not hasattr(attention, WATCH):
        attention.config = config._own


def _itself(config: Any) -> Any:
    return config
