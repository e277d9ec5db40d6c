"""Text that is stored twice: which blocks stand again, word for word, in what was stored later.

Only a verbatim repetition loses nothing when one of the two goes, and only the tokens can tell. On
the states of SmolLM2-135M at two fifths of its depth, the late interaction of two blocks of 32
tokens (mean over the tokens of the best cosine, the lower of both directions; least, median, most):

    the same text again                        0.951  0.998  0.999
    one word differs and the fact with it      0.986  0.993  0.996   red / blue, is / is not
    one digit of a number differs              0.968  0.987  0.990
    a harmless word differs                    0.957  0.972  0.973
    another number in the same sentence        0.914  0.968  0.983
    the same said in other words               0.871  0.892  0.924
    other text                                 0.649  0.702  0.768

No cosine parts the second line from the fourth, and the share of tokens in common does not either:
0.969 in both, and 1 where digits changed places. So all tokens have to agree, in their order, which
also is found without comparing every block with every other one. The cosine of each token with
itself, as it stands in the other place, then says whether it means the same there: 0.913 to 0.999
for text that was repeated, however it fell into blocks; lowest right where the repetition begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cmr.memory.sessions import NO_SESSION

# Default threshold, below what any text reached that was repeated word for word.
SAME_TEXT = 0.85
NO_TOKEN = -1
# Blocks that are hashed, and pairs whose states are compared, at once.
_HASHED, _COMPARED = 4096, 64
# Odd, of 61 bits: what the hash of a text is a polynomial in, modulo 2^64.
_BASE = 0x1E3779B97F4A7C15


class Duplicates(NamedTuple):
    """`m` blocks whose text was stored again; columns `[m]` on the CPU, by age of `earlier`.

    All text of `earlier` stands in `later`, or in `later` and `second`, the block behind it (-1
    where `later` alone holds it). `similarity`: mean cosine of the states in both places, float32.
    """

    earlier: torch.Tensor
    later: torch.Tensor
    second: torch.Tensor
    similarity: torch.Tensor


class Merge(NamedTuple):
    """What merging changes: `[k]` blocks that can be emptied, and `[n]` columns of all blocks.

    In the columns those that stay have taken over from those that go.
    """

    goes: torch.Tensor
    access_count: torch.Tensor
    last_access: torch.Tensor
    relevance: torch.Tensor


def near_duplicates(
    states: Callable[[torch.Tensor], torch.Tensor],
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    session: torch.Tensor,
    created: torch.Tensor,
    successor: torch.Tensor,
    *,
    threshold: float = SAME_TEXT,
) -> Duplicates:
    """Blocks whose whole text the same session stored again later, each with the newest such place.

    Blocks need not begin at the same word: the text of a block may stand across two blocks that
    follow each other. Takes time linear in `n`, and memory for the states of some 200 blocks.

    `states` gives the states `[k, size, hidden]` of the blocks at positions `[k]`, the columns are
    those of a store, on the CPU, and `threshold` is the least similarity, in [-1, 1].
    """
    size = token_ids.shape[1]
    _check(token_ids, positions, session, created, successor)
    ids = torch.where(positions >= 0, token_ids, NO_TOKEN)
    used = (session != NO_SESSION) & (positions >= 0).any(1)
    second = _continued(positions, session, created, successor)

    known, text = _hashes(ids, size, session)[:, 0].unique(return_inverse=True)
    hosts = used.nonzero().view(-1)
    hosts = hosts[created[hosts].argsort()]
    # For each text that a block has, the newest place: a host's rank, then the least offset in it.
    place = torch.full((len(known),), -1)
    for at in torch.arange(len(hosts)).split(_HASHED):
        hashes = _hashes(_with_next(ids, hosts[at], second), size, session[hosts[at]])
        near = torch.searchsorted(known, hashes).clamp(max=len(known) - 1)
        same = known[near] == hashes
        # Within one block, only all of it: the two then hold the same, and either of them may go.
        same[:, 1:] &= second[hosts[at], None] >= 0
        row, offset = same.nonzero(as_tuple=True)
        number = at[row] * size + (size - 1 - offset)
        place.scatter_reduce_(0, near[row, offset], number, "amax")

    found = place[text]
    earlier = (used & (found >= 0)).nonzero().view(-1)
    later = hosts[found[earlier] // size]
    offset = size - 1 - found[earlier] % size
    window = torch.arange(size) + offset[:, None]
    alike = _with_next(ids, later, second).gather(1, window) == ids[earlier]
    is_new = (created[later] > created[earlier]) & (session[later] == session[earlier])
    pairs = (alike.all(1) & is_new).nonzero().view(-1)
    pairs = pairs[created[earlier[pairs]].argsort()]
    earlier, later, offset = earlier[pairs], later[pairs], offset[pairs]
    beyond = torch.where(offset > 0, second[later], -1)
    tokens = positions[earlier] >= 0
    likeness = torch.cat(
        [torch.zeros(0)]
        + [
            _likeness(states, earlier[at], later[at], beyond[at], offset[at], tokens[at])
            for at in torch.arange(len(earlier)).split(_COMPARED)
            if len(at)
        ]
    )
    enough = likeness >= threshold
    return Duplicates(earlier[enough], later[enough], beyond[enough], likeness[enough])


def merged(
    pairs: Duplicates,
    created: torch.Tensor,
    access_count: torch.Tensor,
    last_access: torch.Tensor,
    relevance: torch.Tensor,
    pinned: torch.Tensor,
) -> Merge:
    """Which block of each pair goes, and what the others take over from it.

    The earlier one goes, so that text stays where it was read last. Two exceptions where a single
    block holds the text: the one that was recalled more often stays, and so does one that is
    pinned. Pinned blocks never go, nor does a block that stays for another one. The access counts
    are summed, of the last access and of the relevance the larger one holds; two blocks that stay
    for one take over alike. The columns `[n]` are those of a store, and left as they are.
    """
    counts, used, worth = access_count.clone(), last_access.clone(), relevance.clone()
    gone: set[int] = set()
    stays: set[int] = set()
    columns = [column.tolist() for column in (pairs.earlier, pairs.later, pairs.second)]
    newest_first = (-created[pairs.later]).argsort(stable=True).tolist()
    for earlier, later, second in ([column[i] for column in columns] for i in newest_first):
        goes, keeps = earlier, [later] if second < 0 else [later, second]
        if second < 0 and (
            bool(pinned[earlier]) > bool(pinned[later])
            or (pinned[earlier] == pinned[later] and access_count[earlier] > access_count[later])
        ):
            goes, keeps = later, [earlier]
        # What is left undone here is found again the next time.
        if pinned[goes] or goes in stays or gone.intersection([goes, *keeps]):
            continue
        gone.add(goes)
        stays.update(keeps)
        counts[keeps] += counts[goes]
        used[keeps] = used[keeps].clamp(min=int(used[goes]))
        worth[keeps] = torch.maximum(worth[keeps], worth[goes])
    return Merge(torch.tensor(sorted(gone), dtype=torch.int64), counts, used, worth)


def _check(token_ids: torch.Tensor, positions: torch.Tensor, *columns: torch.Tensor) -> None:
    if positions.shape != token_ids.shape:
        raise ValueError(
            f"positions: {list(token_ids.shape)} expected, as token_ids, "
            f"got {list(positions.shape)}"
        )
    names = ("session", "created", "successor")
    for name, column in zip(names, columns, strict=True):
        if column.shape != token_ids.shape[:1]:
            raise ValueError(f"{name}: [{len(token_ids)}] expected, got {list(column.shape)}")


def _continued(
    positions: torch.Tensor, session: torch.Tensor, created: torch.Tensor, successor: torch.Tensor
) -> torch.Tensor:
    """The block whose text goes on where this one's ends, -1 for none; `[n]` int64."""
    goes_on = (
        (successor >= 0)
        & (session[successor] == session)
        & (created[successor] > created)
        & (positions >= 0).all(1)
        & (positions[successor, 0] == positions[:, -1] + 1)
    )
    return torch.where(goes_on, successor, -1)


def _with_next(ids: torch.Tensor, at: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Token ids of some blocks and of all but the last token behind them: `[k, 2 size - 1]`."""
    rest = torch.where(second[at, None] >= 0, ids[second[at], :-1], NO_TOKEN)
    return torch.cat([ids[at], rest], 1)


def _hashes(ids: torch.Tensor, size: int, session: torch.Tensor) -> torch.Tensor:
    """A number for each run of `size` tokens and its session, `[k, tokens - size + 1]` int64."""
    windows = ids.shape[1] - size + 1
    total = session[:, None].expand(-1, windows) + 1
    for first in range(size):
        total = total * _BASE + (ids[:, first : first + windows] + 2)
    return total


def _likeness(
    states: Callable[[torch.Tensor], torch.Tensor],
    earlier: torch.Tensor,
    later: torch.Tensor,
    second: torch.Tensor,
    offset: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Mean cosine of the states in both places, over `tokens` `[m, size]`; `[m]` float32."""
    one, other = states(earlier).float(), states(later).float()
    size = other.shape[1]
    if bool((offset > 0).any()):
        beyond = states(torch.where(second >= 0, second, later)).float()
        window = (torch.arange(size) + offset[:, None]).to(other.device)
        both = torch.cat([other, beyond], 1)
        other = both.gather(1, window[..., None].expand_as(other))
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1).cpu()
    return (cosine * tokens).sum(1) / tokens.sum(1)
