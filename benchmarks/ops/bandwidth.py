"""The memory bandwidth that a device reaches here: what the kernels' GB/s are a share of."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch

from benchmarks.shared.command import Parser, run
from benchmarks.shared.device import device as device_of

MIB = 256
MOST_MIB, ENOUGH_MIB = 8192, 2048
"""On a GPU: a pass over less than the latter says more of its cache and of launches."""
ROUNDS = 7


def most_mib(device: str) -> int:
    """MiB of a pass that says something of a device: a part of what is free on a GPU."""
    free = device_of(device).free()
    return MIB if free is None else min(MOST_MIB, (free >> 20) // 2)


@functools.cache
def peak(device: str = "cpu", mib: int | None = None, rounds: int = ROUNDS) -> dict[str, float]:
    """GB/s (10^9 bytes) of the best of three passes over `mib` MiB, median of `rounds` each.

    Measured once a process and device, with the threads that PyTorch has at that time; by events
    on a GPU.

    Args:
        device: `cpu` or `cuda`.
        mib: None: `most_mib` of the device.
        rounds: of each pass.

    Returns:
        read: a sum (read only); product: a dot product of two vectors (read only); copy: bytes
        read and written; peak: the largest of the three.
    """
    count = ((mib or most_mib(device)) << 20) // 8
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
    # The first two touch the pages and warm up.
    return statistics.median(device_of(device).each(call, rounds + 2)[2:])


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("device", nargs="?", choices=("cpu", "cuda"), default="cpu")
    parser.add_threads()
    device = parser.parse_args(words).device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("argument device: there is no CUDA device")
    mib = most_mib(device)
    print(f"{device}, {torch.get_num_threads()} threads, {mib} MiB:")
    for name, speed in peak(device, mib).items():
        print(f"{name:8} {speed:8.1f} GB/s")


if __name__ == "__main__":
    run(main)
