"""Clusters of index vectors: FAISS finds them, and a vector is a cluster's number and a remainder.

Hidden states of one layer lie close together, so the cluster alone says too little of a vector: a
few bytes of what is left of it, along its main directions, are kept too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch

MAX_CLUSTERS = 1 << 14
DIRECTIONS = 64
"""Bytes a token in which what the cluster leaves of it is kept."""
POINTS, ROUNDS = 20, 6
"""Vectors a cluster, and rounds, of the training."""
_CHUNK = 4096
# Sixteen deviations fit into a byte: far enough for tokens unlike any other.
_LEVELS, _SPREAD = 127, 16.0


def load_faiss(device: torch.device) -> ModuleType:
    """FAISS, for a device; the error says how to get it where it is missing or knows no GPU."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'clusters of memories need FAISS: pip install "cmr[cpu]" (or "cmr[gpu]")'
        ) from error
    if device.type == "cuda" and not hasattr(faiss, "StandardGpuResources"):
        raise RuntimeError(
            f"clusters on {device}: FAISS with GPU support expected, got one for the CPU only: "
            'pip install "cmr[gpu]", or device="cpu"'
        )
    return faiss


def clusters_for(tokens: int, most: int | None = None) -> int:
    """How many clusters that many tokens get: the power of two next to four times their root."""
    fitting = 1 << max(4, round(math.log2(4 * math.sqrt(max(1, tokens)))))
    return max(1, min(fitting, MAX_CLUSTERS, most or MAX_CLUSTERS, tokens))


@dataclass(frozen=True)
class Clusters:
    """What a vector is made of: `centroids[number] + basis @ code`, and a rest that is left out.

    Centroids are `[clusters, hidden]`; `basis`, the steps of a code along each direction, and
    `reader`, which gives the codes of a remainder, are `[hidden, directions]`. All are float32.
    """

    centroids: torch.Tensor
    basis: torch.Tensor
    reader: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.centroids.nbytes + self.basis.nbytes + self.reader.nbytes

    def encode(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest cluster of each vector `[n, hidden]`, int16, and its code, int8."""
        numbers = _nearest(vectors, self.centroids)
        rest = vectors.float() - self.centroids[numbers]
        codes = (rest @ self.reader).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
        return numbers.to(torch.int16), codes


def train(vectors: torch.Tensor, clusters: int, seed: int, device: torch.device) -> Clusters:
    """Find clusters of vectors `[n, hidden]`, and the main directions of what they leave.

    The same vectors and seed give the same clusters. There are at least as many vectors.
    """
    faiss = load_faiss(device)
    points, hidden = vectors.float().cpu(), vectors.shape[1]
    means = faiss.Kmeans(
        hidden,
        clusters,
        niter=ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(POINTS, -(-len(points) // clusters)),
        gpu=device.type == "cuda",
    )
    means.train(points.numpy())
    centroids = torch.from_numpy(means.centroids.copy()).view(clusters, hidden)
    rest = points - centroids[_nearest(points, centroids)]
    # Of all directions those in which the remainders vary most; `eigh` gives them last.
    _, directions = torch.linalg.eigh(rest.t() @ rest)
    directions = directions.flip(1)[:, :DIRECTIONS].contiguous()
    steps = (rest @ directions).square().mean(0).sqrt() * (_SPREAD / _LEVELS)
    steps = steps.clamp(min=1e-8)
    return Clusters(
        centroids.to(device),
        (directions * steps).to(device),
        (directions / steps).to(device),
    )


def _nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Number `[n]` int64 of each vector's nearest centroid."""
    middle = centroids.mean(0)
    # About their middle, products of a low precision still tell neighbours apart.
    aims = (centroids - middle).to(vectors.dtype).t()
    half = (centroids - middle).square().sum(-1) / 2
    found = [
        ((part.float() - middle).to(vectors.dtype) @ aims).float().sub_(half).argmax(-1)
        for part in vectors.split(_CHUNK)
    ]
    return torch.cat(found) if found else vectors.new_empty(0, dtype=torch.int64)
