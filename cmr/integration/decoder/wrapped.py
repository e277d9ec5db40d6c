"""A method of one instance, wrapped for a while, beside whatever others wrap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


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
