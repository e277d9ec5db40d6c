"""Tokens on their way into a query: scaled to norm 1, and weighed where a metric says how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.ring_write import inverse_norm

LEAST = 1e-12
"""Length that what is scaled to norm 1 is divided by, at least."""


class Weighing(NamedTuple):
    """What weighs states s that ask: (s - mean) @ projection @ projection.t().

    Attributes:
        mean: [H] float32.
        projection: [H, W] float32.
    """

    mean: torch.Tensor
    projection: torch.Tensor


class Places(NamedTuple):
    """Places of a query, changed in place.

    Attributes:
        states: [B, n, H], float32, float16 or bfloat16.
        token_ids: [B, n] int64. All four have a contiguous last axis.
        of: [B, n] int64, the part of what is asked that a token is of; -1 where it does not ask.
        asks: [B, n] bool. None, as the two before: nothing but states is written.
    """

    states: torch.Tensor
    token_ids: torch.Tensor | None = None
    of: torch.Tensor | None = None
    asks: torch.Tensor | None = None


def weigh(states: torch.Tensor, weighing: Weighing) -> torch.Tensor:
    """States [..., H] that ask, weighed, of norm 1; the dtype stays, and so do zeros.

    Four launches, two of them products.

    Equivalent PyTorch: `F.normalize((F.normalize(states, dim=-1) - mean) @ P @ P.t(), dim=-1)`.
    """
    flat = states.reshape(1, -1, states.shape[-1])
    out = torch.empty_like(flat)
    write_query(Places(out), flat, None, None, weighing=weighing)
    return out.view(states.shape)


def write_query(
    places: Places,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    token_ids: torch.Tensor | None,
    part: int = 0,
    weighing: Weighing | None = None,
) -> None:
    """Write tokens to places of a query: unit states and what is known of each. One launch.

    Args:
        places: where to.
        states: [B, n, H], any floating-point dtype; a state that is all 0 stays 0.
        mask: [B, n] bool, which tokens ask; None: all do.
        token_ids: [B, n] int64; None: -1 is written.
        part: of what is asked, that those which ask are of.
        weighing: of the states; four launches then, two of them products. None: none.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.

    Equivalent PyTorch: `write_query_plain`.
    """
    expect(
        ("states", states, "B n H", FLOAT),
        ("mean", weighing and weighing.mean, "H", torch.float32, CONTIGUOUS),
        ("projection", weighing and weighing.projection, "H W", torch.float32),
        ("mask", mask, "B n", torch.bool),
        ("token_ids", token_ids, "B n", torch.int64),
        ("places.states", places.states, "B n H", FLOAT),
        ("places.token_ids", places.token_ids, "B n", torch.int64),
        ("places.of", places.of, "B n", torch.int64),
        ("places.asks", places.asks, "B n", torch.bool),
    )
    run = write_query_plain if runs_plain(states) else write_query_
    run(states, mask, token_ids, part, *_weighing(states, weighing), *places)


def _weighing(states: torch.Tensor, weighing: Weighing | None) -> Sequence[torch.Tensor | None]:
    """The weighing, and room for what it makes of states on the way."""
    if weighing is None:
        return (None,) * 4
    count, (hidden, width) = states.shape[:2].numel(), weighing.projection.shape
    new = weighing.mean.new_empty
    return *weighing, new(count, hidden), new(count, width)


def weighed(states: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """The specification of `weigh`."""
    # As `F.normalize` does it twice, in fewer operations.
    wide = torch.promote_types(states.dtype, torch.float32)  # a norm in less is refused
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=wide)
    unit = (states / length.clamp(min=LEAST)).to(mean.dtype)
    found = (unit - mean) @ projection @ projection.t()
    across = torch.linalg.vector_norm(found, dim=-1, keepdim=True).clamp(min=LEAST)
    return (found / across.masked_fill(length == 0, torch.inf)).to(states.dtype)


def write_query_plain(
    states: torch.Tensor, mask: torch.Tensor | None, token_ids: torch.Tensor | None, *rest: Any
) -> None:
    """The specification of `write_query`, of arguments that were checked already."""
    part, (mean, projection), (out, ids, of, asks) = rest[0], rest[1:3], rest[5:]
    if mean is not None:
        states = weighed(states, mean, projection)
    if ids is None:  # what is weighed has norm 1
        out.copy_(states)
        return
    states = states.float()
    out.copy_(states * inverse_norm(states)[..., None])
    ids[:] = -1 if token_ids is None else token_ids
    asks[:] = True if mask is None else mask
    of.copy_(torch.where(asks, part, -1))


write_query_ = register(
    "write_query(Tensor states, Tensor? mask, Tensor? token_ids, int part, Tensor? mean, "
    "Tensor? projection, Tensor(a!)? unit, Tensor(b!)? narrow, Tensor(c!) to_states, "
    "Tensor(d!)? to_ids, Tensor(e!)? of, Tensor(f!)? asks) -> ()",
    write_query_plain,
    "search.query:write_query",
    "cmr.retrieve",
)
