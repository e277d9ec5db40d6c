"""What is told of a long piece of work while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

Progress = Callable[[int, int], None]


@contextmanager
def told(progress: bool | Progress, total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """Takes how many tokens were done since it was told last, of `total`.

    True shows a bar, and a function is called with tokens done and tokens in all.
    """
    done = 0
    tell = progress if callable(progress) else None
    with ExitStack() as bars:
        if progress and tell is None:
            from tqdm.auto import tqdm

            bar = bars.enter_context(tqdm(total=total, unit="token", desc=doing))

            def tell(done: int, _: int) -> None:
                bar.update(done - bar.n)

        def show(tokens: int) -> None:
            nonlocal done
            # An estimate of the whole may be too small: nobody is told of more than all of it.
            done = min(total, done + tokens)
            if tell is not None:
                tell(done, total)

        yield show
