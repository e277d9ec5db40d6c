"""A cache as it is in front of a forward, to be put back where the forward is to run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmr.integration.window.window_layer import WindowLayer, is_windowed


def kept_as_it_is(cache: Any, tokens: int) -> Callable[[], None] | None:
    """What puts a cache back behind a forward of so many tokens, also one that broke off.

    None: a cache of this kind cannot be put back, as it may write in place. No copies are made.
    """
    if cache is None:
        return _nothing
    if not is_windowed(cache):
        return None
    layers: list[WindowLayer] = cache.layers
    seen = layers[0].seen
    if seen and layers[0].only_grows(tokens):
        # What was there is the beginning of what is there then: nothing is held on to.
        return lambda: _shorten(layers, seen)
    owner = layers[0].owner
    held: list[tuple[object, dict[str, Any]]] = [(part, vars(part).copy()) for part in layers]
    held.append((owner, {**vars(owner), "first": owner.first.copy()}))
    if owner.record is not None:
        held.append((owner.record, {"going": owner.record.going}))

    def put_back() -> None:
        for part, before in held:
            vars(part).update(before)

    return put_back


def _shorten(layers: list[WindowLayer], seen: int) -> None:
    """Take the newest tokens back from the layers that have them."""
    for layer in layers:
        over = layer.seen - seen
        if over:
            layer.hold(layer.keys[..., :-over, :], layer.values[..., :-over, :])
            layer.seen = seen


def _nothing() -> None:
    return None
