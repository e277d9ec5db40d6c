"""What rows say beside intervals: ratios of means, and quantiles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def ratio(
    mine: Sequence[float],
    others: Sequence[float],
    clusters: Sequence[Hashable],
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """The mean of one over that of the other, and its 95 % bootstrap interval over clusters.

    Args:
        mine: one number an observation.
        others: the same observations, same length.
        clusters: the cluster of each observation; drawn whole.
        draws: bootstrap samples.
        seed: of the samples.
    """
    pairs = np.array(list(zip(mine, others, strict=True)), dtype=float).reshape(-1, 2)
    if len(pairs) != len(clusters):
        raise ValueError(f"{len(pairs)} clusters expected (one a pair), got {len(clusters)}")
    if not pairs[:, 1].any():
        return float("nan"), (float("nan"), float("nan"))
    names = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(names), 2))
    np.add.at(sums, [names[c] for c in clusters], pairs)
    picked = np.random.default_rng(seed).integers(0, len(names), size=(draws, len(names)))
    drawn = sums[picked].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    return mean, (float(low), float(high))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.2, 0.5, 0.8])
    return {"p20": float(low), "p50": float(middle), "p80": float(high)}
