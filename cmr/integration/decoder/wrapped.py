"""A method wrapped or a hook put for a while, on one instance, beside whatever others put there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


class Wrapped:
    """Wraps the method `name` of `owner` until `take_away`: a call becomes `around(own, ...)`.

    Where somebody has wrapped it in turn by then, theirs stays, and ours underneath lets every call
    through: it holds nothing of `around` any more.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self._users = vars(owner).get(name)
        # What the wrapper goes by, as it may outlive all of this: emptied by `take_away`.
        self._ways = ways = [around]
        own = getattr(owner, name)

        @functools.wraps(own)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return ways[0](own, *args, **kwargs) if ways else own(*args, **kwargs)

        self._wrapper = wrapper
        setattr(owner, name, wrapper)

    def take_away(self) -> None:
        """Put back what stood there before, unless something else stands there by now."""
        self._ways.clear()
        if vars(self._owner).get(self._name) is self._wrapper:
            if self._users is None:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._users)


def hooked(
    until: ExitStack,
    module: nn.Module,
    hook: Callable[..., Any],
    *,
    behind: bool = False,
    with_kwargs: bool = False,
    noted: list[Callable[[], None]] | None = None,
) -> None:
    """Put a hook in front of a module, or `behind` it, until a stack is left.

    `noted` holds what takes it away for as long as it is there: leaving may be interrupted, too.
    """
    put = module.register_forward_hook if behind else module.register_forward_pre_hook
    held = module._forward_hooks if behind else module._forward_pre_hooks
    extra = "_forward_hooks_with_kwargs" if behind else "_forward_pre_hooks_with_kwargs"

    def drop() -> None:
        for number in [n for n, other in held.items() if other is hook]:
            held.pop(number, None)
            getattr(module, extra).pop(number, None)
        if noted is not None and drop in noted:
            noted.remove(drop)

    # First, and by what it is: an interrupt may come when it is there and nobody has its handle.
    until.callback(drop)
    if noted is not None:
        noted.append(drop)
    put(hook, with_kwargs=with_kwargs)
