"""Late interaction: each query token's best token of every block."""

from __future__ import annotations

import torch

from cmr.kernels.arguments import FLOAT, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference._own_blocks import blocks_at, own_blocks, put
from cmr.kernels.reference.attention import NEG_INF

CHUNK_BYTES = 64 << 20
"""Most bytes of token similarities at once."""
CODES = (torch.int8, torch.float8_e4m3fn)
"""Dtypes of an index in 8 bits, with a scale of its own for every token."""


def block_maxima(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    session: torch.Tensor | None = None,
    sessions: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cosine of each query token with the best token of each block. One launch.

    Args:
        query: [B, Q, H], norm 1 per token, in the index's dtype; float16 or float32 for codes.
        index: [N, block, H], norm 1 per token, features side by side; N may be 0. int8 or
            float8_e4m3fn: codes, to be multiplied by `scale`.
        token_mask: [N, block] bool, True = a stored token, or int64 positions, at least 0 = a
            stored token; None: all.
        scale: [N, block] float32, multiplies the similarities of each token; needed for codes.
        session: [N] int64, session of each block; None: no row is limited to one.
        sessions: [B] int64, session of each row; given with `session`. The blocks of others are
            -inf for the row, and their part of the index is hardly read.
        slots: [B, C] int64, the only blocks that a row looks at (an exact second look at what a
            coarse index found), -1 for none; None: all N in their order.
        out: [B, Q, N or C] float32, any strides, to write into; None: a new one.

    Returns:
        `out`; -inf for a block without a stored token. A similarity that is NaN makes its block
        NaN, unless its token is masked.

    Source: Khattab and Zaharia, ColBERT (2020), section 3.3, before the sum over query tokens.

    Equivalent PyTorch: `torch.einsum("bqh,nth->bqnt", query, index).amax(-1)`.
    """
    codes = index.dtype in CODES
    placed = token_mask is not None and token_mask.dtype == torch.int64
    sizes = expect(
        ("query", query, "B Q H", FLOAT),
        ("index", index, "N block H", None if codes else FLOAT),
        ("scale", scale, "N block", torch.float32),
        ("token_mask", token_mask, "N block", torch.int64 if placed else torch.bool),
        ("session", session, "N", torch.int64),
        ("sessions", sessions, "B", torch.int64),
        ("slots", slots, "B C", torch.int64),
        ("out", out, "B Q N" if slots is None else "B Q C", torch.float32),
    )
    fitting = (torch.float16, torch.float32) if codes else (index.dtype,)
    if query.dtype not in fitting:
        wanted = " or ".join(map(str, fitting))
        raise TypeError(f"query: dtype {wanted} expected, got {query.dtype}")
    if codes and scale is None:
        raise ValueError(f"scale: [N={sizes['N']}, block={sizes['block']}] expected, got None")
    if (session is None) != (sessions is None):
        raise ValueError("session and sessions: both expected or none, got one")
    # The kernel loads features in whole vectors, which strides between them would tear apart.
    if index.stride(-1) != 1 and sizes["H"] > 1:
        raise ValueError(f"index: features side by side expected, got stride {index.stride(-1)}")
    if out is None:
        found = sizes["N" if slots is None else "C"]
        out = query.new_empty(sizes["B"], sizes["Q"], found, dtype=torch.float32)
    run = block_maxima_plain if runs_plain(query, index) else block_maxima_
    run(query, index, token_mask, scale, session, sessions, slots, out)
    return out


def block_maxima_plain(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    session: torch.Tensor | None,
    sessions: torch.Tensor | None,
    slots: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """The specification of `block_maxima`, of arguments that were checked already.

    One matrix product in the index's dtype (float32 for codes), accumulated in float32, over chunks
    of blocks that keep the temporaries near 64 MB.
    """
    out.fill_(NEG_INF)
    if not out.numel() or not index.numel():
        return
    if slots is None:
        if session is not None and sessions is not None and session.device.type == "cpu":
            groups = own_blocks(session, sessions)
            looked_at = sum(len(rows) * len(own) for rows, own in groups)
            if 2 * looked_at <= len(sessions) * len(session):  # most blocks are others'
                for rows, own in groups:
                    found = out.new_empty(len(rows), out.shape[1], len(own))
                    _compare(query[rows], *blocks_at(own, index, token_mask, scale), found)
                    put(out, rows, own, found)
                return
        _compare(query, index, token_mask, scale, out)
        if session is not None and sessions is not None:
            out.masked_fill_((session != sessions[:, None])[:, None], NEG_INF)
        return
    if session is not None and sessions is not None:
        slots = slots.masked_fill(session[slots.clamp(min=0)] != sessions[:, None], -1)
    # Row by row, as each has other candidates: a gather for all at once would hold B copies.
    for row, (chosen, held) in enumerate(zip(slots, slots >= 0, strict=True)):
        one, whole = slice(row, row + 1), bool(held.all())
        stored = blocks_at(chosen if whole else chosen[held], index, token_mask, scale)
        if whole:
            _compare(query[one], *stored, out=out[one])
        else:
            found = out.new_empty(1, out.shape[1], len(stored[0]))
            _compare(query[one], *stored, out=found)
            out[row, :, held] = found[0]


def _compare(
    query: torch.Tensor,
    index: torch.Tensor,
    token_mask: torch.Tensor | None,
    scale: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    batch, tokens, width = query.shape
    blocks, block, _ = index.shape
    codes = index.dtype in CODES
    rows = query.reshape(batch * tokens, width)
    rows = rows.float() if codes else rows
    per_block = block * max(batch * tokens, codes * width) * rows.element_size()
    chunk = max(1, CHUNK_BYTES // per_block)
    for start in range(0, blocks, chunk):
        part = slice(start, start + chunk)
        piece = index[part].float() if codes else index[part]
        # One product for all rows and tokens: the index is read once, which is what takes time.
        # A maximum of bfloat16 takes longer than one of the same numbers in float32.
        similar = (rows @ piece.reshape(-1, width).t()).float()
        similar = similar.view(batch * tokens, -1, block)
        if scale is not None:
            similar *= scale[part]
        if token_mask is not None:
            marks = token_mask[part]
            stored = marks if marks.dtype == torch.bool else marks >= 0
            similar = similar.masked_fill_(~stored, NEG_INF)
        out[:, :, part] = similar.amax(-1).view(batch, tokens, -1)


block_maxima_ = register(
    "block_maxima(Tensor query, Tensor index, Tensor? token_mask, Tensor? scale, Tensor? session, "
    "Tensor? sessions, Tensor? slots, Tensor(a!) out) -> ()",
    block_maxima_plain,
    "maxsim:block_maxima",
    "cmr.retrieve",
)
