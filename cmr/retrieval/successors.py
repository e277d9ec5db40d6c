"""Next-token memory in tensors: what followed the stored tokens that are most like a new one.

Source: Khandelwal et al. (2020), Generalization through Memorization: Nearest Neighbor Language
Models. There all of a training set is searched and the weight is fixed; here the tokens are those
that a search for passages chose, and the weight follows how well the best of them fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cmr.config.topics import NextTokenConfig
from cmr.errors import ConfigError
from cmr.kernels.ring_link import Columns

UNSURE, SURE = 1.2, 1.8
"""Certainties of the search between which the fit that is asked for falls (docs/next-token.md)."""
UNSURE_FIT = 1.2
"""Fit that is asked for at least where the search is not certain."""
RAMP = 0.2
"""Fit from the one at which the gate begins to open to the one at which it is open."""
DOUBT = 0.1
"""Power of how likely the model finds what memory says; see `interpolate`."""
RUN, RUN_WEIGHT = 4, 0.5
"""Equal tokens up to the two compared that count, and what so many add to their similarity: a
sentence that is being said goes on, where a token alike in another one would lead astray."""
SHARES = (0.6, 0.7, 0.8)
"""Where in the depth tokens are compared unless layers are named (docs/next-token.md)."""


@dataclass(frozen=True)
class Successors:
    """Stored tokens to compare with, and what followed each; all but the keys `[batch, stored]`.

    Attributes:
        keys: for each layer compared `[batch, stored, width]` of norm 1, see `unit`.
        own_ids: the tokens themselves.
        places: their positions in the text, below 0 where there is none.
        token_ids: the token behind each.
        mask: True where there is a token and what followed it is known.
        certainty: `[batch]` float32 of the search that chose them.
    """

    keys: tuple[torch.Tensor, ...]
    own_ids: torch.Tensor
    places: torch.Tensor
    token_ids: torch.Tensor
    mask: torch.Tensor
    certainty: torch.Tensor

    def select(self, rows: torch.Tensor) -> Successors:
        """The same of the given rows, in their order."""
        parts = (self.own_ids, self.places, self.token_ids, self.mask, self.certainty)
        others = (part[rows.to(part.device)] for part in parts)
        return Successors(tuple(key[rows.to(key.device)] for key in self.keys), *others)

    def runs(self, asked: torch.Tensor) -> torch.Tensor:
        """How many tokens, at most `RUN`, up to each of a text's equal those up to stored ones."""
        asked = asked.to(self.places.device)
        same = (self.places >= 0)[:, None]
        found = torch.zeros(*asked.shape, self.places.shape[1], device=self.places.device)
        for back in range(RUN):
            # Shifted by `back`: ids outside of the text match none, and a stored run ends where the
            # places do not follow each other, as chosen blocks lie side by side in any order.
            was = F.pad(asked, (back, 0), value=-1)[:, : asked.shape[1]]
            own, place = (
                F.pad(x, (back, 0), value=-2)[:, : x.shape[1]] for x in (self.own_ids, self.places)
            )
            goes_on = (place == self.places - back)[:, None]
            same = same & goes_on & (was[..., None] == own[:, None])
            found += same
        return found


@dataclass(frozen=True)
class Proposal:
    """What memory says of the next tokens.

    Attributes:
        token_ids: `[batch, tokens, k]` int64; one may stand there several times.
        shares: `[batch, tokens, k]` float32, probabilities that sum to 1.
        gate: `[batch, tokens]` float32 weight of it all, 0 where nothing fits.
    """

    token_ids: torch.Tensor
    shares: torch.Tensor
    gate: torch.Tensor


def compared_layers(config: NextTokenConfig, targets: Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers at which tokens are compared, rising; none where next-token memory is off.

    They are among the `targets`, whose keys and values memory has, of a decoder of `depth` blocks:
    a ConfigError says which of those that the settings name are not.
    """
    if not config.on:
        return ()
    if config.knn_layers is None:
        wanted = [share * depth for share in SHARES]
        return tuple(sorted({min(targets, key=lambda n: abs(n - w)) for w in wanted}))
    missing = sorted(set(config.knn_layers) - set(targets))
    if missing:
        raise ConfigError(
            f"knn_layers: layers that are stored expected ({list(targets)}), "
            f"got {list(config.knn_layers)}: {missing} store nothing to compare with"
        )
    return config.knn_layers


def what_follows(
    table: torch.Tensor, columns: Columns, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that followed those of some blocks, and where one did.

    Of blocks in the slots `table` `[batch, blocks]`, -1 for none, whose tokens may be looked at
    where `mask` `[batch, blocks * block_size]` is True: two tensors of the mask's shape, int64 ids
    and bool. A token whose follower was forgotten, never stored or has not come has none.
    """
    # The text goes on inside a block, and behind its last token with the block that the store
    # links to it.
    at = table.clamp(min=0)
    behind = columns.successor[at]
    linked = (behind >= 0) & (table >= 0)
    behind = behind.clamp(min=0)
    places, ids = columns.positions[at], columns.token_ids[at]
    beyond = columns.positions[behind][..., :1].masked_fill(~linked[..., None], -1)
    place = torch.cat([places[..., 1:], beyond], dim=-1)
    token = torch.cat([ids[..., 1:], columns.token_ids[behind][..., :1]], dim=-1)
    # What a model was given as embeddings has no ids: they are stored as 0, one after the other.
    named = (ids != 0) | (token != 0)
    known = ((place == places + 1) & named).flatten(1) & mask
    return token.flatten(1).masked_fill(~known, 0), known


def unit(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What is compared of a layer's un-rotated keys and its values: `[batch, tokens, width]`.

    They stand side by side, float32 of norm 1 together, each of them half of the cosine.
    """
    parts = [F.normalize(x.transpose(1, 2).flatten(2).float(), dim=-1) for x in (keys, values)]
    return torch.cat(parts, dim=-1) * 0.5**0.5


def propose(
    queries: Sequence[torch.Tensor],
    stored: Successors,
    config: NextTokenConfig,
    runs: torch.Tensor,
    reads: torch.Tensor | None = None,
) -> Proposal:
    """What followed the stored tokens that are most like the new ones, and how much it counts.

    The similarity of two tokens is their cosine, averaged over layers, and what a run of equal
    tokens up to them adds, r = `RUN_WEIGHT` · run / `RUN`. With s the cosine of the best one and m
    the mean cosine over all that is stored, the fit is (s - m) / (1 - m) + r, and the gate rises
    from 0 to `knn_weight` over `RAMP` from the fit on that is asked for: `knn_threshold` where the
    search was certain, `UNSURE_FIT` where it was not. Ties: the earlier stored token wins.

    Args:
        queries: for each layer `[batch, tokens, width]`, see `unit`.
        stored: to compare with; the proposal is on its mask's device.
        config: the `knn_` settings.
        runs: `[batch, tokens, stored]`, see `Successors.runs`.
        reads: `[batch, tokens]` bool, False for tokens that must not read memory; None: all may.
    """
    device, mask = stored.mask.device, stored.mask[:, None]
    similarity = torch.stack(
        [torch.bmm(q, key.mT).to(device) for q, key in zip(queries, stored.keys, strict=True)]
    ).mean(0)
    count = mask.sum(-1)
    mean = similarity.masked_fill(~mask, 0.0).sum(-1) / count.clamp(min=1)
    added = runs * (RUN_WEIGHT / RUN)
    similarity = (similarity + added).masked_fill(~mask, -torch.inf)
    k = min(config.knn_neighbours, similarity.shape[-1])
    # Sorted and not `topk`, whose choice among equals is nowhere promised.
    best, at = similarity.sort(dim=-1, descending=True, stable=True)
    best, at = best[..., :k], at[..., :k]
    bonus = added.gather(2, at[..., :1])[..., 0]
    fit = (best[..., 0] - bonus - mean) / (1 - mean).clamp(min=1e-6) + bonus
    gate = _gate(fit, stored.certainty, config)
    off = count == 0 if reads is None else (count == 0) | ~reads.to(device)
    ids = stored.token_ids[:, None].expand(-1, at.shape[1], -1).gather(2, at)
    shares = (best / config.knn_temperature).softmax(-1)
    return Proposal(ids, shares.nan_to_num(0.0), gate.masked_fill(off, 0.0))


def _gate(fit: torch.Tensor, certainty: torch.Tensor, config: NextTokenConfig) -> torch.Tensor:
    """Weight `[batch, tokens]` of what memory says, by how well its best token fits."""
    sure = ((certainty - UNSURE) / (SURE - UNSURE)).clamp(0, 1)[:, None]
    least = config.knn_threshold
    asked = least + (max(UNSURE_FIT, least) - least) * (1 - sure)
    return config.knn_weight * ((fit - asked) / RAMP).clamp(0, 1)


def interpolate(logits: torch.Tensor, said: Proposal) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of (1 - g) p_model + g p_memory where g is above 0, and that g.

    What the model holds for impossible counts less: with t the token that memory says most, the
    gate is multiplied by (p_model(t) / max p_model) ** `DOUBT`. Of logits `[batch, tokens,
    vocabulary]`, which are not changed, come the same shape and dtype, bit for bit the same where g
    is 0; g is `[batch, tokens]` float32.
    """
    gate = said.gate.to(logits.device)
    # On a GPU all tokens are mixed: which ones need it would have to come from the device first.
    if logits.device.type != "cpu":
        mixed, share = _mixed(logits, said.token_ids, said.shares, gate)
        return torch.where(share[..., None] > 0, mixed, logits), share
    fits = (gate > 0).nonzero(as_tuple=True)
    if not len(fits[0]):
        return logits, gate
    mixed, share = _mixed(logits[fits], said.token_ids[fits], said.shares[fits], gate[fits])
    mixed = torch.where(share[..., None] > 0, mixed, logits[fits])
    # Not in place: the logits may be the model's own, or have a gradient.
    return logits.index_put(fits, mixed), gate.index_put(fits, share)


def _mixed(
    logits: torch.Tensor, token_ids: torch.Tensor, shares: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `interpolate` gives, wherever g is above 0; `[..., vocabulary]` and `[...]`."""
    own = logits.float().log_softmax(-1)
    memory = torch.zeros_like(own).scatter_add_(-1, token_ids.to(own.device), shares.to(own))
    most = memory.argmax(-1, keepdim=True)
    # Detached: the gate says whom to believe, and a loss must not train the model to close it.
    doubt = own.detach().gather(-1, most) - own.detach().amax(-1, keepdim=True)
    share = gate[..., None] * (DOUBT * doubt).exp()
    mixed = torch.logaddexp(own + torch.log1p(-share), (share * memory).log())
    return mixed.to(logits.dtype), share[..., 0]
