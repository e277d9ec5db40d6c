"""The words of what is asked, by stored token ids: how rare they are, and which passages say them.

Source: Robertson and Zaragoza (2009), BM25, with b = 0, as passages are equally long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cmr.kernels.arguments import CONTIGUOUS, expect
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference._own_blocks import beginnings, seen_first

NO_WORD = 0
"""Class of what is no word: punctuation, spaces, special tokens, numbers beyond the vocabulary."""
SATURATION = 1.2
"""BM25's k1: a word that stands in a passage twice says little more than once."""


class Words(NamedTuple):
    """What the words of a query say, by the frequencies among what each row may see alone.

    Attributes:
        rarity: [B, Q] float32, inverse document frequency of each token's word; of what is no word
            that asks, that of a word in every passage.
        scores: [B, P, N] float32, BM25 of the passage that begins at each block for the words of
            each part, each counted once; at least 0.
    """

    rarity: torch.Tensor
    scores: torch.Tensor


def words(
    query: torch.Tensor,
    of: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    successor: torch.Tensor,
    seen: torch.Tensor,
    classes: torch.Tensor,
    kinds: int,
    parts: int,
) -> Words:
    """The words of a query in passages, a block and its successor each. Three launches.

    No row learns of what another one stored.

    Args:
        query: [B, Q] int64 token ids.
        of: [B, Q] int64, the part that a token belongs to, below `parts`; -1: it does not ask.
        token_ids: [N, block] int64 of the stored blocks.
        positions: [N, block] int64, -1 where no token is stored.
        successor: [N] int64, slot of the text's next block, or -1.
        seen: [B, N] bool, the blocks that a row may see.
        classes: [V] int64: the word that each token is, `NO_WORD` for none; the last one stands for
            all ids that are no token's.
        kinds: classes are below it.
        parts: how many parts there are.

    Returns:
        A `Words`.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    Equivalent PyTorch: `words_plain`.
    """
    whole = torch.int64
    sizes = expect(
        ("query", query, "B Q", whole),
        ("of", of, "B Q", whole),
        ("token_ids", token_ids, "N block", whole, CONTIGUOUS),
        ("positions", positions, "N block", whole, CONTIGUOUS),
        ("successor", successor, "N", whole, CONTIGUOUS),
        ("seen", seen, "B N", torch.bool),
        ("classes", classes, "V", whole, CONTIGUOUS),
    )
    rows, tokens, blocks = sizes["B"], sizes["Q"], sizes["N"]
    plain = runs_plain(query)
    # The kernels count first, of every token in every passage; who runs plainly needs no room.
    counts, weights, rarity, scores = (
        query.new_empty(rows, *shape, dtype=torch.float32)
        for shape in ((0 if plain else tokens, blocks), (tokens,), (tokens,), (parts, blocks))
    )
    found = Words(rarity, scores)
    stored = (token_ids, positions, successor, seen)
    (words_plain if plain else words_)(query, of, *stored, classes, kinds, counts, weights, *found)
    return found


def words_plain(*given: Any) -> None:
    """The specification of `words`, of the operation's arguments, checked before."""
    query, of, token_ids, positions, successor, seen, classes, kinds = given[:8]
    rarity, scores = given[10:]
    stored = classes_of(token_ids, classes).masked_fill(positions < 0, NO_WORD)
    asked = classes_of(query, classes)
    # Which of the words that any row asks a stored one is, or none of them (the last number), is
    # looked up once for all rows: no distinct words are sought.
    none = asked.numel()
    first = torch.full((kinds,), none, device=asked.device)
    place = torch.arange(none, device=asked.device)
    first.scatter_reduce_(0, asked.flatten(), place, "amin")
    first[NO_WORD] = none
    stored, asked = first[stored], first[asked]
    # Among many users' blocks a row sees few: only those are looked at where that saves something,
    # and of all rows at once then. Otherwise row by row, as what is counted of one is large.
    # A passage is a block and the next: it says the words of the next one, though its own block
    # may be one that the row does not see.
    sayers = seen_first(beginnings(seen, successor))
    if sayers is not None:
        after = successor[sayers]
        linked = (after >= 0) & seen.gather(1, after.clamp(min=0))
        places = torch.zeros_like(seen, dtype=torch.int64)
        places.scatter_(1, sayers, torch.arange(sayers.shape[1]).expand_as(sayers))
        after = torch.where(linked, places.gather(1, after.clamp(min=0)), -1)
        given = stored[sayers], after, seen.gather(1, sayers)
        rare, found = _of_rows(asked, of, none, *given, scores.shape[1])
        rarity.copy_(rare)
        scores.zero_().scatter_(2, sayers[:, None].expand_as(found), found)
        return
    for row in range(len(asked)):
        one = slice(row, row + 1)
        given = stored[None], successor[None], seen[one]
        rare, found = _of_rows(asked[one], of[one], none, *given, scores.shape[1])
        rarity[one], scores[one] = rare, found


def _of_rows(
    asked: torch.Tensor,
    part: torch.Tensor,
    none: int,
    stored: torch.Tensor,
    successor: torch.Tensor,
    sees: torch.Tensor,
    parts: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rarity [b, Q] and scores [b, P, n] of rows among n blocks each, [b, n, block].

    Words are numbers up to `none`, which is no word that is asked; successors are places among the
    n blocks.
    """
    (rows, tokens), device = asked.shape, asked.device
    # The first token with a word stands for it in its row.
    first = torch.full((rows, none + 1), tokens, device=device)
    place = torch.arange(tokens, device=device).expand(rows, -1)
    first.scatter_reduce_(1, torch.where(part >= 0, asked, none), place, "amin")
    first[:, none] = tokens
    says = first.gather(1, stored.flatten(1)).view(stored.shape)
    found = torch.zeros(*stored.shape[:2], tokens + 1, device=device)
    found.scatter_add_(2, says, sees[..., None].expand(stored.shape).float())
    found = found[..., :tokens]
    after = found.gather(1, successor.clamp(min=0)[..., None].expand_as(found))
    found = found + after * (successor >= 0).float()[..., None]
    total, holding = sees.sum(1, keepdim=True), (found * sees[..., None] > 0).sum(1)
    rare = rarity_of(holding, total)
    own = first.gather(1, asked)
    known = rare.gather(1, own.clamp(max=tokens - 1))
    rarity = torch.where(own < tokens, known, 0.5 / (total + 0.5))
    member = torch.zeros(rows, parts * (tokens + 1), device=device)
    at = part.clamp(min=0) * (tokens + 1) + own
    member.scatter_reduce_(1, at, (part >= 0).float(), "amax")
    member = member.view(rows, parts, tokens + 1)[..., :tokens]
    return rarity, member @ (rare[:, None] * saturated(found)).mT


def classes_of(token_ids: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Class of each token, any shape int64; of numbers that are no token's the last one's."""
    # Below 0 stands the last one of a table, as behind its end.
    return classes[token_ids.clamp(-1, len(classes) - 1)]


def rarity_of(holding: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Inverse document frequency of words by how many of `total` passages hold each; any shape."""
    return torch.log1p((total - holding + 0.5) / (holding + 0.5))


def saturated(counts: torch.Tensor) -> torch.Tensor:
    """How much it says that a word stands so often in a passage, float32 of any shape."""
    return counts * (SATURATION + 1) / (counts + SATURATION)


words_ = register(
    "words(Tensor query, Tensor of, Tensor token_ids, Tensor positions, Tensor successor, "
    "Tensor seen, Tensor classes, int kinds, Tensor(a!) counts, Tensor(b!) weights, "
    "Tensor(c!) rarity, Tensor(d!) scores) -> ()",
    words_plain,
    "words:words",
    "cmr.retrieve",
)
