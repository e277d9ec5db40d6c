"""States brought to another width."""

from __future__ import annotations

import torch
from torch import nn

SEED = 256


class Projection(nn.Module):
    """A fixed orthonormal map: of a width to a larger one it keeps cosines and norms exactly.

    To a smaller one it keeps them in expectation (a random subspace; Johnson and Lindenstrauss
    1984), off by about 1 / sqrt(width), with norms scaled to match. The same widths give the same
    map, everywhere.

    Args:
        hidden: width of the states.
        width: wanted.
    """

    weight: torch.Tensor

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        # In float64, so that machines agree on the map once it is rounded to float32.
        generator = torch.Generator().manual_seed(SEED)
        tall = torch.randn(max(hidden, width), min(hidden, width), generator=generator).double()
        basis, triangle = torch.linalg.qr(tall)
        basis = basis * triangle.diagonal().sign()  # QR leaves the signs to the implementation
        weight = basis if hidden >= width else basis.T
        if hidden > width:
            weight = weight * (hidden / width) ** 0.5
        # Not saved: it follows from the two widths.
        self.register_buffer("weight", weight.float().contiguous(), persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to `[..., width]`, computed in float32, in the states' dtype."""
        weight = self.weight.to(states.device)
        return (states.float() @ weight.float()).to(states.dtype)
