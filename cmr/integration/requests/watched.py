"""Who is told of what happens, as long as they want to be; nobody that is told breaks a request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

LOG = logging.getLogger("cmr")
News = TypeVar("News")


class Watched(Generic[News]):
    """Tells of something those who asked for it.

    Attributes:
        who: how those are called in a log.
        on: whether anybody is told.
    """

    who: str

    def __init__(self) -> None:
        self._told: tuple[Callable[[News], object], ...] = ()
        self.on = self._broken = False

    def watch(self, told: Callable[[News], object]) -> Callable[[], None]:
        """Tell somebody from now on; returns what ends it. What `told` raises is logged once."""
        self._told, self.on = (*self._told, told), True

        def end() -> None:
            self._told = tuple(other for other in self._told if other is not told)
            self.on = bool(self._told)

        return end

    def tell(self, news: News) -> None:
        """Tell those who watch; a request never breaks by them."""
        for told in self._told:
            try:
                told(news)
            except Exception as error:
                if not self._broken:
                    self._broken = True
                    LOG.warning("%s raised %s; not logged again", self.who, type(error).__name__)
