"""How much a token is worth keeping, on one scale for every way of telling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cmr.config import SCORING_METHODS
from cmr.kernels.reference.score import expect_weights
from cmr.kernels.score import hybrid_blocks
from cmr.memory.running_quantiles import SAMPLE, RunningQuantiles
from cmr.memory.token_scores import token_mask, token_scores

# What `hybrid` combines, as far as it is to be had.
HYBRID = ("attention_based", "variance_based", "surprise")
MIXED = "mean of "


class RelevanceScorer:
    """Scores tokens by one method, calibrated to [0, 1] while it is used.

    A score says which share of the newest tokens of the same layer and method scored lower (see
    `RunningQuantiles`): 0.5 is the median, whatever the method. The tokens of a call are taken note
    of first, so the first call compares them with each other, and the order of a call's rows makes
    no difference to anything.

    `attention_based`: attention that a token receives from the tokens behind it, over what a token
    that is not special would receive in its place (Zhang et al., H2O, 2023, without the bias to
    early tokens; see `fair_share`). With `attention_weights`, or `query` and `key`, of a layer it
    is that layer's; with states alone it is that of one attention head with identity projections
    over the states, each scaled to unit variance.
    `variance_based`: population variance of a state over its features.
    `surprise`: the token's own loss, from `logits` and `token_ids`.
    `gradient_based`: |g·h|, by how much the loss would change to first order if the state went to
    0, from `gradients`, or from a `loss` that depends on `hidden_states`.
    `hybrid`: mean of the calibrated attention and variance, and surprise where its logits are
    given, calibrated again.

    Args:
        hidden_size: width of the states.
        scoring_method: one of `cmr.config.SCORING_METHODS`.
        weights: of `hybrid`'s parts by their method; parts that are not named have weight 0. None:
            equal.
        sample_size: newest tokens that a score is compared with.

    Raises:
        ValueError: an unknown method, or numbers out of their range.
    """

    def __init__(
        self,
        hidden_size: int,
        scoring_method: str = "hybrid",
        *,
        weights: Mapping[str, float] | None = None,
        sample_size: int = SAMPLE,
    ) -> None:
        if hidden_size < 1:
            raise ValueError(f"hidden_size: 1 or more expected, got {hidden_size}")
        if scoring_method not in SCORING_METHODS:
            known = ", ".join(SCORING_METHODS)
            raise ValueError(f"scoring_method: one of {known} expected, got {scoring_method!r}")
        if weights is not None:
            unknown = set(weights) - set(HYBRID)
            if unknown:
                raise ValueError(f"weights: of {HYBRID} expected, got {sorted(unknown)}")
            expect_weights(list(weights.values()), len(weights))
        self.hidden_size, self.scoring_method = hidden_size, scoring_method
        self.sample_size = sample_size
        self._weights = None if weights is None else dict(weights)
        self._samples: dict[tuple[int, str], RunningQuantiles] = {}
        self._calls = self._tokens = 0
        RunningQuantiles(1, sample_size)  # raises for a bad size

    def __call__(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        layer_idx: int = 0,
        learn: bool = True,
        **inputs: Any,
    ) -> torch.Tensor:
        """Scores of states.

        Args:
            hidden_states: `[B, T, hidden_size]`, any float dtype.
            attention_mask: `[B, T]`, 0 or False for padding on either side; None: no padding.
            layer_idx: layer of the states; each has its own sample.
            learn: take note of these scores.
            **inputs: what the method needs, see `token_scores`.

        Returns:
            `[B, T]` float32 in [0, 1], 0 for padding.

        Raises:
            TypeError, ValueError: shapes that do not fit, or an input that the method needs is
                missing; no score is noted then.
        """
        mask = token_mask(hidden_states, attention_mask, self.hidden_size)
        parts: tuple[str, ...] = (self.scoring_method,)
        if self.scoring_method == "hybrid":
            given = inputs.get("logits") is not None
            parts = HYBRID if given else HYBRID[:2]
        raw = {part: token_scores(part, hidden_states, mask, **inputs) for part in parts}
        return self.calibrated(raw, mask, layer_idx=layer_idx, learn=learn)

    def calibrated(
        self,
        raw: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        *,
        layer_idx: int = 0,
        learn: bool = True,
    ) -> torch.Tensor:
        """Scores `[B, T]` that were computed elsewhere, as this scorer gives them.

        `raw` has those of one method, or of those that are combined; 0 is given where `mask` is
        False. See `__call__` for the rest.
        """
        names = sorted(raw)
        scores = torch.stack([raw[name] for name in names])
        weights = [1.0 if self._weights is None else self._weights.get(n, 0.0) for n in names]
        if len(names) == 1:
            weights = [1.0]
        expect_weights(weights, len(names))
        # Noted before they are compared: the order of a call's rows then makes no difference.
        sample = self._sample(layer_idx, "+".join(names), len(names))
        if learn:
            sample.add(scores[:, mask])
        found = hybrid_blocks(scores, sample.sample().to(scores.device), weights, 1).tokens
        # A mean of shares is no share: those around the middle are the most. So it is calibrated
        # again.
        if len(names) > 1:
            mixed = self._sample(layer_idx, f"{MIXED}{'+'.join(names)}", 1)
            if learn:
                mixed.add(found[mask][None])
            found = mixed.quantiles(found)
        if learn:
            self._calls += 1
            self._tokens += int(mask.sum())
        return found.masked_fill(~mask, 0.0)

    def get_top_k_positions(
        self, scores: torch.Tensor, k: int, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions of the highest scores of each row, best first; of equals the first one.

        Args:
            scores: `[B, T]`.
            k: positions wanted, 0..T.
            attention_mask: `[B, T]`, 0 or False for positions that must not be chosen.

        Returns:
            `[B, k]` int64, -1 behind the last position that may be chosen.

        Raises:
            ValueError: shapes or `k` do not fit.
        """
        if scores.ndim != 2:
            raise ValueError(f"scores [B, T] expected, got {list(scores.shape)}")
        if not 0 <= k <= scores.shape[1]:
            raise ValueError(f"k: 0..{scores.shape[1]} expected, got {k}")
        mask = torch.ones_like(scores, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape != scores.shape:
                raise ValueError(
                    f"attention_mask {list(scores.shape)} expected (that of scores), "
                    f"got {list(attention_mask.shape)}"
                )
            mask = attention_mask.bool()
        ranked = scores.float().masked_fill(~mask, -torch.inf)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, :k]
        return best.masked_fill(~mask.gather(1, best), -1)

    def get_scoring_stats(self) -> dict[str, Any]:
        """Method, calls and tokens scored, and of each layer the sample's size and quantiles.

        Keys: `method`, `calls`, `tokens`, `layers`: layer -> method -> `scores` ever noted, `held`
        in the sample, and its raw `p10`, `p50`, `p90`. Reads the device: for people.
        """
        layers: dict[int, dict[str, dict[str, float]]] = {}
        for (layer, names), sample in self._samples.items():
            for kind, name in enumerate(names.split("+") if sample.kinds > 1 else [names]):
                entry: dict[str, float] = {"scores": sample.seen, "held": sample.held}
                if sample.held:
                    ordered = sample.sample()[kind]
                    for share in (10, 50, 90):
                        entry[f"p{share}"] = float(ordered[(sample.held - 1) * share // 100])
                layers.setdefault(layer, {})[name] = entry
        return {
            "method": self.scoring_method,
            "calls": self._calls,
            "tokens": self._tokens,
            "layers": layers,
        }

    def state(self) -> dict[str, torch.Tensor]:
        """What was learnt, as plain tensors on the CPU by name."""
        return {
            f"{layer}/{names}/{key}": tensor
            for (layer, names), sample in self._samples.items()
            for key, tensor in sample.state().items()
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave, in place of what was learnt here.

        Raises:
            ValueError: for what `state` cannot have given; nothing is changed then.
        """
        groups: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            layer, _, rest = name.partition("/")
            names, _, key = rest.rpartition("/")
            if not layer.isdigit() or not names or key not in ("sample", "seen"):
                raise ValueError(f"'<layer>/<method>/sample' or '.../seen' expected, got {name!r}")
            groups.setdefault((int(layer), names), {})[key] = tensor
        # All of it is read before anything is kept.
        loaded = {}
        for at, group in groups.items():
            sample = RunningQuantiles.from_state(group, self.sample_size)
            kinds = 1 if at[1].startswith(MIXED) else at[1].count("+") + 1
            if sample.kinds != kinds:
                raise ValueError(f"{at[1]}: {kinds} kinds of scores expected, got {sample.kinds}")
            loaded[at] = sample
        self._samples = loaded

    def _sample(self, layer: int, names: str, kinds: int) -> RunningQuantiles:
        return self._samples.setdefault((layer, names), RunningQuantiles(kinds, self.sample_size))
