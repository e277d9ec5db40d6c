"""Weaving recalled memory into a layer: attention over it, a gate, and the blend of the two."""

from __future__ import annotations

import torch

from cmr.kernels.arguments import FLOAT, expect
from cmr.kernels.attention import attend
from cmr.kernels.reference.attention import NEG_INF


def reweave_attention(
    query: torch.Tensor,
    mem_keys: torch.Tensor,
    mem_values: torch.Tensor,
    mem_mask: torch.Tensor | None,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    bias: torch.Tensor | float = 0.0,
    scale: float | None = None,
    softcap: float | None = None,
    query_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges attention over memory with finished local attention, by their log-sum-exps.

    With lm the log-sum-exp of the memory's logits plus bias and ll that of the local ones:
    `g = sigmoid(lm - ll)`, `out = (1 - g) local_out + g sum(softmax(logits + bias) values)`.
    Bias 0 is one joint softmax over memory and local keys; logit(w) makes w of an even match.

    Args:
        query: [B, H, S, D], any float dtype, rotated for the memory's positions.
        mem_keys: [B, G, M, D], same dtype, H a multiple of G; M may be 0.
        mem_values: [B, G, M, D], same dtype. Both finite, also where the mask hides them.
        mem_mask: bool, True = readable: [B, M] for all tokens or [B, S, M] per token. None: all.
        local_out: [B, H, S, D], the local attention, same dtype.
        local_lse: [B, H, S] float32; -inf where a token sees nothing locally.
        bias: added to the memory's logits: a number, or float of shape [], [B] or [B, M]. -inf
            turns memory off (per entry: hides it); +inf (not per entry) turns local attention off.
            Masks shared by many layers are cheapest as a [B, M] bias in the query's dtype.
        scale: factor of q·k; None: D ** -0.5.
        softcap: None, or c > 0: logits become c tanh(x / c), before the bias.
        query_mask: None or [B, S] bool; False: that token does not read memory.

    Returns:
        out [B, H, S, D] in the query's dtype and gate g [B, H, S] float32. A token that can read
        nothing, or whose bias is -inf, gets `local_out` bit for bit and gate 0.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: shapes do not fit, or softcap is not above 0.

    Changes nothing in place. Low-precision products accumulate in float32; the merge is float32.

    Source: Dao et al., FlashAttention (2022), section 3.1, for merging by log-sum-exp; the gate
    and its bias are this project's.

    Equivalent PyTorch (bias 0, everything readable):
        `F.scaled_dot_product_attention(query, torch.cat([mem_keys, key], 2),
        torch.cat([mem_values, value], 2), scale=scale, enable_gqa=True)`.
    """
    # A bias per entry is a mask as well, as -inf hides an entry: both become one mask below.
    per_token = isinstance(mem_mask, torch.Tensor) and mem_mask.dim() == 3
    sizes = expect(
        ("query", query, "B H S D", FLOAT),
        ("mem_keys", mem_keys, "B G M D", "query"),
        ("mem_values", mem_values, "B G M D", "query"),
        ("local_out", local_out, "B H S D", "query"),
        ("local_lse", local_lse, "B H S", None),
        ("mem_mask", mem_mask, "B S M" if per_token else "B M", torch.bool),
        ("query_mask", query_mask, "B S", torch.bool),
    )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")
    batch, entries = sizes["B"], sizes["M"]
    per_row: torch.Tensor | float = 0.0
    per_entry, off = None, False
    if not isinstance(bias, torch.Tensor):
        per_row, off = bias, bias == NEG_INF
    elif bias.shape == (batch, entries):
        per_entry = bias
    elif bias.shape in ((), (batch,)):
        per_row = bias.view(-1, 1, 1)
    else:
        raise ValueError(
            f"bias: a number or shape [B={batch}] or [B={batch}, M={entries}] expected, "
            f"got {list(bias.shape)}"
        )
    if entries == 0 or off:
        return local_out.clone(), torch.zeros_like(local_lse, dtype=torch.float32)
    seen = None
    if mem_mask is not None:
        seen = mem_mask[:, None] if per_token else mem_mask[:, None, None]
    if per_entry is not None:
        added = per_entry[:, None, None]
        seen = added if seen is None else torch.where(seen, added, NEG_INF)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    recalled, mem_lse = attend(query, mem_keys, mem_values, seen, False, scale, softcap)
    reads = None if seen is None else mem_lse != NEG_INF
    return blend(recalled, mem_lse, per_row, local_out, local_lse, reads, query_mask)


def blend(
    recalled: torch.Tensor,
    mem_lse: torch.Tensor,
    per_row: torch.Tensor | float,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    reads: torch.Tensor | None,
    query_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges memory into local attention by their log-sum-exps, and gives the gate.

    `reads` [B, H, S] says who reads at all, None: everyone; `per_row`, a number or [B, 1, 1], is
    added to the memory's log-sum-exp.
    """
    gate = torch.sigmoid(mem_lse + per_row - local_lse)
    # What does not read keeps its local attention by a selection, not by a gate of 0: where nothing
    # is seen on either side the gate is NaN, as -inf less -inf is, and the blend is NaN with it.
    on = per_row != NEG_INF if isinstance(per_row, torch.Tensor) else None
    if on is not None and on.device.type == "cpu" and not torch.compiler.is_compiling():
        # Where all do nothing has to be selected; elsewhere the host would wait to know.
        on = None if bool(on.all()) else on
    for allowed in (on, None if query_mask is None else query_mask[:, None]):
        if allowed is not None:
            reads = allowed if reads is None else reads & allowed
    dtype = torch.promote_types(recalled.dtype, torch.float32)
    share = gate.unsqueeze(-1).to(dtype)
    blended = torch.lerp(local_out.to(dtype), recalled.to(dtype), share).to(recalled.dtype)
    if reads is None:
        return blended, gate
    gate = torch.where(reads, gate, 0.0)
    return torch.where(reads.unsqueeze(-1), blended, local_out.to(recalled.dtype)), gate
