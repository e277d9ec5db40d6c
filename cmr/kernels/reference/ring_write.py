"""Writing blocks into a ring of slots: the specifications of `cmr.kernels.ring_write`."""

from __future__ import annotations

import torch

from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.rotary import unrotate
from cmr.kernels.reference.score import inverse_norm


def reserve(
    cursor: torch.Tensor, session: torch.Tensor, created: torch.Tensor, sessions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots, predecessors and numbers of the next blocks; see `cmr.kernels.ring_reserve`."""
    count, slots = sessions.shape[0], session.shape[0]
    order = torch.arange(count, device=sessions.device)
    if count == 0:
        return order, order.clone(), order.clone()
    chosen = (cursor + order) % slots
    # A newest stored block for each session of the batch.
    known, which = sessions.unique(return_inverse=True)
    at = torch.searchsorted(known, session).clamp(max=len(known) - 1)
    own = known[at] == session
    own[chosen] = False
    lowest = torch.iinfo(torch.int64).min
    newest = torch.full_like(known, lowest)
    newest = newest.scatter_reduce(0, at, torch.where(own, created, lowest), "amax")
    best = own & (created == newest[at])
    columns = torch.arange(slots, device=session.device)
    last = torch.full_like(known, slots)
    last = last.scatter_reduce(0, at, torch.where(best, columns, slots), "amin")
    before = torch.where(last < slots, last, -1)[which]
    # The block before in the batch goes before what is stored.
    in_order = torch.argsort(sessions, stable=True)
    follows = torch.zeros(count, dtype=torch.bool, device=sessions.device)
    follows[in_order[1:]] = sessions[in_order[1:]] == sessions[in_order[:-1]]
    previous = torch.zeros_like(order)
    previous[in_order[1:]] = in_order[:-1]
    return chosen, torch.where(follows, chosen[previous], before), cursor + 1 + order


def link(
    cursor: torch.Tensor,
    session: torch.Tensor,
    created: torch.Tensor,
    successor: torch.Tensor,
    predecessor: torch.Tensor,
    last_access: torch.Tensor,
    access_count: torch.Tensor,
    relevance: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    predecessors: torch.Tensor,
    numbers: torch.Tensor,
    sessions: torch.Tensor,
    pick: torch.Tensor | None,
    new_token_ids: torch.Tensor,
    new_positions: torch.Tensor,
    new_relevance: torch.Tensor | None,
) -> None:
    """Columns of new blocks and their chains, in place; see `cmr.kernels.ring_link`."""
    if slots.numel() == 0:
        return
    block = token_ids.shape[1]
    rows, tokens = new_token_ids.shape
    blocks = -(-tokens // block)
    if pick is None:
        pick = torch.arange(slots.numel(), device=slots.device)
    expect_numbers("slots", slots, session.shape[0])
    expect_numbers("pick", pick, rows * blocks)
    ids = cut(new_token_ids, pick, block, 0)
    places = cut(new_positions, pick, block, -1)
    after, before = successor[slots], predecessor[slots]
    predecessor[after[after >= 0]] = -1
    successor[before[before >= 0]] = -1
    successor[slots] = -1
    predecessor[slots] = predecessors
    linked = predecessors >= 0
    successor[predecessors[linked]] = slots[linked]
    token_ids[slots] = ids
    positions[slots] = places
    session[slots] = sessions
    created[slots] = numbers
    last_access[slots] = 0
    access_count[slots] = 0
    relevance[slots] = 0.0 if new_relevance is None else new_relevance.reshape(-1)[pick].float()
    cursor.copy_(numbers[-1:])


def write_heads(
    key_store: torch.Tensor,
    value_store: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> None:
    """Blocks of keys (un-rotated) and values into slots; see `cmr.kernels.ring_write_heads`."""
    if slots.numel() == 0:
        return
    block = key_store.shape[2]
    expect_numbers("slots", slots, key_store.shape[0])
    expect_numbers("pick", pick, keys.shape[0] * -(-keys.shape[2] // block))
    new = cut(keys.transpose(1, 2), pick, block, 0).transpose(1, 2)  # [n, G, block, D]
    if cos is not None and sin is not None:
        new = unrotate(new, cut(cos, pick, block, 1), cut(sin, pick, block, 0))
    key_store.index_copy_(0, slots, new.to(key_store.dtype))
    if value_store is not None and values is not None:
        new = cut(values.transpose(1, 2), pick, block, 0).transpose(1, 2)
        value_store.index_copy_(0, slots, new.to(value_store.dtype))


def write_index(
    index: torch.Tensor,
    scale: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    states: torch.Tensor,
) -> None:
    """Blocks of states of norm 1 into an index; see `cmr.kernels.ring_write_index`."""
    if slots.numel() == 0:
        return
    block = index.shape[1]
    expect_numbers("slots", slots, index.shape[0])
    expect_numbers("pick", pick, states.shape[0] * -(-states.shape[1] // block))
    new = cut(states, pick, block, 0).float()
    unit = new * inverse_norm(new).unsqueeze(-1)
    if scale is None:
        index.index_copy_(0, slots, unit.to(index.dtype))
        return
    codes, scales = quantise_rows(unit, index.dtype)
    index.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
    scale.index_copy_(0, slots, scales)


def cut(x: torch.Tensor, pick: torch.Tensor, block: int, fill: int) -> torch.Tensor:
    """Some of the blocks that a text is made of.

    Args:
        x: [B, T, ...].
        pick: [n] int64, row * ceil(T / block) + block number.
        block: tokens in a block.
        fill: what stands behind the last token.

    Returns:
        [n, block, ...].
    """
    tokens = x.shape[1]
    blocks = -(-tokens // block)
    if blocks * block == tokens and x.is_contiguous():
        return x.view(-1, block, *x.shape[2:]).index_select(0, pick)
    row = torch.div(pick, blocks, rounding_mode="floor")
    at = (pick - row * blocks)[:, None] * block + torch.arange(block, device=x.device)
    new = x[row[:, None], at.clamp(max=tokens - 1)]
    real = (at < tokens).view(*at.shape, *[1] * (x.dim() - 2))
    return torch.where(real, new, fill)


def expect_numbers(name: str, numbers: torch.Tensor, count: int) -> None:
    """Raises IndexError unless all numbers are in [0, count): a look at them, for a CPU."""
    if numbers.device.type != "cpu" or not numbers.numel():
        return
    low, high = numbers.min().item(), numbers.max().item()
    if low < 0 or high >= count:
        raise IndexError(f"{name}: numbers in 0..{count - 1} expected, got {low}..{high}")
