"""Top-k with one rule for ties: the lowest slot wins, whatever the order of the reduction."""

from __future__ import annotations

import torch

LOW_BITS = 0xFFFFFFFF
GROUP = 32
"""Neighbouring slots that a first look takes together."""
LONG_ROW, MANY_SCORES = 1 << 15, 1 << 21
"""In shorter rows, and fewer scores in all, a look at all costs less than one at groups first."""


def pack(scores: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
    """Scores [..., N] float32 with their slots, as int64 that sort like (score, -slot).

    The upper half holds the score's bits in an order-preserving form, the lower half the slot's
    complement. NaN becomes -inf, -0 becomes 0. `slots`: [..., N] int64; None: 0 to N - 1.
    """
    inf = float("inf")
    clean = scores.nan_to_num(nan=-inf, posinf=inf, neginf=-inf).add_(0.0)
    # The bits of positive floats rise with them, those of negative ones fall: turning all but the
    # sign round makes integers of the same order.
    bits = clean.view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).to(torch.int64)
    if slots is None:
        slots = torch.arange(scores.shape[-1], device=scores.device)
    return torch.add(LOW_BITS - slots, ordered, alpha=1 << 32)


def unpack_scores(packed: torch.Tensor) -> torch.Tensor:
    """The scores of packed int64, float32."""
    ordered = (packed >> 32).to(torch.int32)
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def topk_lowest_slot(
    scores: torch.Tensor, k: int, many_ties: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each row, in falling order, ties by rising slot.

    Args:
        scores: [B, N] float32; -inf and NaN are never chosen. N below 2**31.
        k: at least 1; may exceed N.
        many_ties: the scores were rounded to a low precision; only the speed depends on it.

    Returns:
        scores [B, k] float32 and slots [B, k] int64; -inf and -1 where fewer can be chosen.

    Raises:
        ValueError: k below 1.
    """
    _check(k)
    count = scores.shape[1]
    # The other ways look at values to decide, for which a GPU's host would have to wait.
    if scores.device.type != "cpu" or count <= k:
        return topk_of(scores, None, k)
    worth_groups = count >= LONG_ROW or scores.numel() >= MANY_SCORES
    if worth_groups and count >= 2 * GROUP * k:
        return _topk_by_groups(scores, k, many_ties)
    return _topk_plainly(scores, None, k, many_ties)


def topk_of(
    scores: torch.Tensor, slots: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_lowest_slot` of scores [B, C] whose slots [B, C] are given, each at most once a row."""
    _check(k)
    batch, count = scores.shape
    taken = min(k, count)
    if not taken:
        best = torch.full((batch, k), float("-inf"), dtype=torch.float32, device=scores.device)
        return best, torch.full((batch, k), -1, dtype=torch.int64, device=scores.device)
    packed = pack(scores, slots).topk(taken, dim=-1).values
    values = unpack_scores(packed)
    chosen = LOW_BITS - (packed & LOW_BITS)
    chosen = chosen.masked_fill_(values == float("-inf"), -1)
    if taken == k:
        return values, chosen
    room = (0, k - taken)
    pad = torch.nn.functional.pad
    return pad(values, room, value=float("-inf")), pad(chosen, room, value=-1)


def _topk_plainly(
    scores: torch.Tensor, slots: torch.Tensor | None, k: int, many_ties: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch's top-k, which breaks ties anyhow: those are looked at once more."""
    if not many_ties:
        values, chosen = scores.topk(k + 1)
        if bool((values[:, :-1] > values[:, 1:]).all()):  # no tie, no NaN, no -inf among the k
            chosen = chosen[:, :k]
            return values[:, :k], chosen if slots is None else slots.gather(1, chosen)
    # Some more than k, so that a tie at the k-th place is seen whole.
    wide = min(scores.shape[1], 3 * k + 16)
    values, chosen = scores.topk(wide)
    last = values[:, -1:]
    within = (last < values[:, k - 1 : k]) | (last == float("-inf"))
    if not bool((within & (values[:, :1] == values[:, :1])).all()):  # cut within a tie, or a NaN
        return topk_of(scores, slots, k)
    return topk_of(values, chosen if slots is None else slots.gather(1, chosen), k)


def _topk_by_groups(
    scores: torch.Tensor, k: int, many_ties: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, looking closely only at the k groups of slots with the highest maxima.

    A slot of any other group has k slots before it: one of each of those groups, with a higher
    score or with the same one and a lower slot. So nothing is lost, ties included.
    """
    count = scores.shape[1]
    whole = count // GROUP * GROUP
    maxima = scores[:, :whole].unflatten(-1, (-1, GROUP)).amax(-1)
    if whole < count:
        maxima = torch.cat([maxima, scores[:, whole:].amax(-1, keepdim=True)], 1)
    if bool(maxima.isnan().any()):  # a NaN would hide its group
        return topk_of(scores, None, k)
    if maxima.shape[1] > k:
        groups = _topk_plainly(maxima, None, k, many_ties)[1]
    else:
        groups = topk_of(maxima, None, k)[1]
    slots = (groups.unsqueeze(-1) * GROUP + torch.arange(GROUP)).flatten(1)
    near = scores.gather(1, slots.clamp(0, count - 1))
    if whole < count or bool((groups < 0).any()):
        near.masked_fill_((slots < 0) | (slots >= count), float("-inf"))
    return _topk_plainly(near, slots, k, many_ties)


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k: an integer of at least 1 expected, got {k}")
