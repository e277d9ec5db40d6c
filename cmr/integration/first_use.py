"""`first_use`: parts of an object that are made when somebody first asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class first_use(Generic[T]):
    """Like `functools.cached_property`; two threads that ask at once get one and the same part.

    Making a part must have no effect outside of it: of two that are made at once one is dropped.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __get__(self, whole: Any, _: Any = None) -> T:
        if whole is None:
            # Asked of the class, as documentation tools do: there is no part to be had.
            return cast(T, self)
        # `setdefault` is one step, so whoever comes second finds the first one's part. Afterwards
        # Python finds it in the object by itself and does not come by here.
        return cast(T, whole.__dict__.setdefault(self._make.__name__, self._make(whole)))
