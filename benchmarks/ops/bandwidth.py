"""The memory bandwidth that a device reaches here: what the kernels' GB/s are a share of."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.shared.command import Parser, run

MIB = 256
ROUNDS = 7


def synchronise(device: str) -> None:
    """Waits until the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def peak(device: str = "cpu", mib: int = MIB, rounds: int = ROUNDS) -> dict[str, float]:
    """GB/s (10^9 bytes) of the best of three passes over `mib` MiB, median of `rounds` each.

    Measured once a process and device, with the threads that PyTorch has at that time.

    Returns:
        read: a sum (read only); product: a dot product of two vectors (read only); copy: bytes
        read and written; peak: the largest of the three.
    """
    count = (mib << 20) // 8
    pair = torch.ones(2, count, dtype=torch.float32, device=device)
    first, second = pair
    size = pair.numel() * 4
    passes: dict[str, Callable[[], object]] = {
        "read": lambda: pair.sum(),
        "product": lambda: torch.dot(first, second),
        "copy": lambda: second.copy_(first),
    }
    found = {name: size / 1e9 / _median(call, device, rounds) for name, call in passes.items()}
    return {**found, "peak": max(found.values())}


def _median(call: Callable[[], object], device: str, rounds: int) -> float:
    seconds = []
    for number in range(rounds + 2):
        synchronise(device)
        begun = time.perf_counter()
        call()
        synchronise(device)
        if number >= 2:  # the first two touch the pages and warm up
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("device", nargs="?", choices=("cpu", "cuda"), default="cpu")
    parser.add_threads()
    device = parser.parse_args(words).device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("argument device: there is no CUDA device")
    print(f"{device}, {torch.get_num_threads()} threads, {MIB} MiB:")
    for name, speed in peak(device).items():
        print(f"{name:8} {speed:8.1f} GB/s")


if __name__ == "__main__":
    run(main)
