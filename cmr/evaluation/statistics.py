"""Intervals for shares and means, numbers only."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, as fractions; (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(
    values: Sequence[float], clusters: Sequence[Hashable], draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean whose values come in clusters (drawn whole).

    Args:
        values: one number an observation.
        clusters: the cluster of each observation, same length.
        draws: bootstrap samples.
        seed: of the samples.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} clusters expected (one a value), got {len(clusters)}")
    if not values:
        return float("nan"), float("nan")
    names = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([names[c] for c in clusters])
    sums = np.bincount(where, weights=np.asarray(values, dtype=float))
    counts = np.bincount(where)
    # By the sums of clusters: to draw a cluster is to draw all that is in it.
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(names), size=(draws, len(names)))
    means = sums[picked].sum(1) / counts[picked].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def minus(
    mine: Sequence[float], others: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[float, tuple[float, float]]:
    """Mean difference of pairs, and its interval over clusters."""
    pairs = [float(a) - float(b) for a, b in zip(mine, others, strict=True)]
    return float(np.mean(pairs)), clustered(pairs, clusters)


def share(hits: int, n: int) -> str:
    """A share as text with its 95 % interval."""
    low, high = wilson(hits, n)
    return f"{100 * hits / max(n, 1):.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
