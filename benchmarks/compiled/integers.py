"""Every launch with its integer arguments 1, a multiple of 16, and neither.

Triton compiles a program of its own for each of these: an argument of 1 becomes a constant, one
that 16 divides is known to be so. Shapes that are shipped meet few of the combinations, and a block
of one token meets another; a program that does not compile shows on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compiled.cases import all_cases
from benchmarks.compiled.compiler import mock, pretending, recording

ONE, SIXTEENTH, NEITHER = 1, 48, 47
"""An integer of each kind."""
LARGE = (1 << 31) + 1
"""A stride that needs 64 bits, which is another type again."""

Launched = tuple[Any, tuple[int, ...], dict[str, Any], dict[str, Any]]


def launches(name: str, target: str) -> list[Launched]:
    """What the case `name` launches on `target`: (kernel, grid, arguments, options)."""
    with pretending(target), recording() as noted:
        all_cases()[name].call()
    return noted


def integers(launched: Launched) -> list[str]:
    """Names of the integer arguments that are no constants of the program already."""
    kernel, _, named, _ = launched
    given = [p.name for p in kernel.params if not p.is_constexpr]
    return [name for name in given if type(named[name]) is int]


def together(launched: Launched) -> Iterator[dict[str, int]]:
    """All integers of one kind at once, and all strides large."""
    names = integers(launched)
    for kind in (ONE, SIXTEENTH, NEITHER):
        yield dict.fromkeys(names, kind)
    if strides := [name for name in names if name.startswith("stride")]:
        yield dict.fromkeys(strides, LARGE)


def one_by_one(launched: Launched) -> Iterator[dict[str, int]]:
    """Each integer of each kind, the others as they are launched."""
    for name in integers(launched):
        yield from ({name: kind} for kind in (ONE, SIXTEENTH, NEITHER))


def compiles(launched: Launched, integers: dict[str, int], target: str) -> str | None:
    """Compile a launch with other integers; None, or what the compiler says against it."""
    kernel, grid, named, options = launched
    arguments = [mock({**named, **integers}[key]) for key in kernel.arg_names]
    try:
        with pretending(target):
            kernel.warmup(*arguments, grid=grid, **options)
    except Exception as error:  # whatever the compiler raises is what is looked for
        return f"{kernel.fn.__name__} with {integers} on {target}: {error!r}: {error.__cause__!r}"
    return None


def compile_whole(only: str, on: Sequence[str]) -> None:
    """Compile all launches with all their integers, and print what does not compile.

    Args:
        only: part of the names of the cases; empty: all.
        on: architectures.

    Raises:
        SystemExit: some did not compile.
    """
    tried, failed, known = 0, 0, set()
    for target in on:
        for name in (name for name in sorted(all_cases()) if only in name):
            for launched in launches(name, target):
                variants = list(together(launched))
                if launched[0] not in known:  # of another case it is the same program
                    variants += one_by_one(launched)
                    known.add(launched[0])
                for variant in variants:
                    found = compiles(launched, variant, target)
                    tried, failed = tried + 1, failed + (found is not None)
                    if found is not None:
                        print(f"{name}: {found}", flush=True)
        known.clear()
    print(f"{tried} compiled, {failed} of them failed")
    if failed:
        raise SystemExit(1)
