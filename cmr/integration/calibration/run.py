"""One calibration of one model: every layer and width is tried, the best one looked at closely."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cmr.integration.calibration.facts import Fact
from cmr.integration.calibration.files import identity
from cmr.integration.calibration.measures import (
    Passages,
    block_maxima,
    null,
    rows_of,
    spectrum,
    whitening,
)
from cmr.integration.calibration.states import LayerStates, Planted, Prompt, question, read, running
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.retrieval.calibration import Calibration

MOST_BYTES = 1 << 30
"""Of states that are held at once; where they need more, the text is read more than once."""
HEADS, HEAD_SHARE = 4, 0.5
"""Heads that are kept at most, and what share of the index layer's rank they must reach."""
TEXTS = 24
"""Running texts that ask for nothing in particular."""
ASKED = 3
"""Questions about a fact: one in its own words, then those in others."""
OTHER_WEIGHT = 2.0
"""What a paraphrase counts for beside a question in a fact's own words."""
_PART = 2_048

Show = Callable[[int], None]


@dataclass(frozen=True)
class Trial:
    """What a candidate found: `ranks` is one over the place of each question's right passage."""

    layer: int
    width: int | None
    ranks: torch.Tensor


class Run:
    """One calibration of a model in evaluation mode, by a text with facts planted in it.

    `seed` is that of the running texts that ask, and of the smaller memories that are looked at.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        tokenizer: Any,
        planted: Planted,
        facts: Sequence[Fact],
        seed: int,
    ) -> None:
        self._adapter, self._planted, self._seed = adapter, planted, seed
        device = adapter.input_device
        self._passages = Passages(len(planted.ids), planted.spans, device)
        self._background = planted.background().to(device)
        asked = [(n, text) for n, fact in enumerate(facts) for text in (fact.same, *fact.other)]
        self._facts = torch.tensor([n for n, _ in asked], device=device)
        self._weights = torch.tensor([1.0, *(ASKED - 1) * [OTHER_WEIGHT]]).repeat(len(facts))
        self._prompts: list[Prompt] = [question(tokenizer, text) for _, text in asked]
        rng, said = random.Random(seed), [fact.sentence for fact in facts]
        # What no passage of the text is about when the facts are hidden: the facts themselves.
        self._prompts += [
            running(tokenizer, " ".join(rng.sample(said, len(said)))) for _ in range(TEXTS)
        ]
        self._counts = [sum(prompt.asks) for prompt in self._prompts]
        self._questions = len(asked)
        self._asking = sum(self._counts[: self._questions])

    def tokens(self, layers: int) -> int:
        """How many tokens go through the model when so many layers are tried."""
        once = len(self._planted.ids) + sum(len(prompt.ids) for prompt in self._prompts)
        return once * len(self._groups(range(layers)))

    def read(self, layers: Sequence[int], show: Show) -> dict[int, LayerStates]:
        """States at some layers."""
        return read(self._adapter, self._planted, self._prompts, layers, show)

    def trials(
        self, layers: Sequence[int], widths: Sequence[int | None], show: Show
    ) -> list[Trial]:
        """Every layer with every width."""
        found = []
        for group in self._groups(layers):
            for layer, states in self.read(group, show).items():
                values = spectrum(states.text[self._background]) if any(widths) else None
                for width in widths:
                    fitted = self._calibration(layer, width, values)
                    ranks = self._ranks(self._maxima(fitted, states, self._asking))
                    found.append(Trial(layer, width, ranks))
        return found

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The smallest index among those that the best one does not beat beyond the noise."""
        # That is the narrowest, and of those the one at the lowest layer: a query gets there first.
        # Layers beside each other hold nearly the same, so each is judged with its neighbours.
        trials = [replace(trial, ranks=_with_neighbours(trial, trials)) for trial in trials]
        best = max(trials, key=self.rank)
        ties = [trial for trial in trials if self._ties(best, trial)]
        return min(ties, key=lambda trial: (trial.width or self._adapter.hidden, trial.layer))

    def look_closely(self, best: Trial, show: Show) -> tuple[Calibration, list[dict[str, Any]]]:
        """The chosen index with its nulls and heads, and what each head found."""
        states = self.read([best.layer], show)[best.layer]
        values = spectrum(states.text[self._background]) if best.width else None
        found = self._calibration(best.layer, best.width, values)
        maxima, mask = rows_of(self._maxima(found, states), self._counts)
        n = self._questions
        generator = torch.Generator().manual_seed(self._seed)
        # All facts are hidden: beside documentation, a sentence about people fits any question.
        question_null = null(self._passages, maxima[:n], mask[:n], 1, generator)
        text_null = null(self._passages, maxima[n:], mask[n:], 2, generator)
        rows = []
        # A head can only be asked where its keys are stored, and before the query has passed it.
        stored = [n for n in self._adapter.target_layers(None) if n <= best.layer]
        for group in self._groups(stored):
            for layer, held in self.read(group, show).items():
                rows += self._heads(layer, held)
        rows.sort(key=lambda row: -row["rank"])
        # Heads far worse than the index would only add noise to it.
        least = HEAD_SHARE * self.rank(best)
        heads = tuple((r["layer"], r["head"]) for r in rows[:HEADS] if r["rank"] >= least)
        return (
            Calibration(
                model="",
                identity=identity(self._adapter),
                index_layer=best.layer,
                mean=found.mean,
                projection=found.projection,
                heads=heads,
                question_null=question_null,
                text_null=text_null,
            ),
            rows[: 2 * HEADS],
        )

    def rank(self, trial: Trial) -> float:
        """The mean reciprocal rank, paraphrases counting double."""
        return float((trial.ranks * self._weights).sum() / self._weights.sum())

    def row(self, trial: Trial) -> dict[str, Any]:
        """What a candidate found, as plain JSON."""
        same = self._weights == 1.0
        return {
            "layer": trial.layer,
            "width": trial.width,
            "same_words": round(float(trial.ranks[same].mean()), 4),
            "paraphrased": round(float(trial.ranks[~same].mean()), 4),
            "rank": round(self.rank(trial), 4),
        }

    def _groups(self, layers: Sequence[int]) -> list[Sequence[int]]:
        """Layers whose states are held at once."""
        size = max(1, MOST_BYTES // (len(self._planted.ids) * self._adapter.hidden * 2))
        return [layers[first : first + size] for first in range(0, len(layers), size)]

    def _calibration(
        self,
        layer: int,
        width: int | None,
        fitted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> Calibration:
        if width is None or fitted is None:
            return Calibration("", "", layer)
        mean, values, vectors = fitted
        # Rounded as a file holds it, so that what is saved is what was measured.
        mean, projection = (
            part.half().float().cpu() for part in (mean, whitening(values, vectors, width))
        )
        return Calibration("", "", layer, mean, projection)

    def _maxima(
        self, fitted: Calibration, states: LayerStates, asking: int | None = None
    ) -> torch.Tensor:
        return block_maxima(fitted.index(states.prompts[:asking]), fitted.index(states.text))

    def _ranks(self, maxima: torch.Tensor) -> torch.Tensor:
        rows, mask = rows_of(maxima, self._counts[: self._questions])
        visible = mask.new_ones(len(rows), self._passages.blocks)
        line = self._passages.line(rows, mask, visible, 1)
        return self._passages.reciprocal_ranks(line, self._facts).cpu()

    def _ties(self, best: Trial, other: Trial) -> bool:
        """Whether the questions do not tell two candidates apart: within one standard error."""
        # Questions about the same fact go together: they are one observation.
        by_fact = ((best.ranks - other.ranks) * self._weights).view(-1, ASKED).sum(1)
        apart = by_fact / self._weights[:ASKED].sum()
        return bool(apart.mean() <= apart.std(correction=0) / len(apart) ** 0.5)

    def _heads(self, layer: int, states: LayerStates) -> list[dict[str, Any]]:
        """What each query head of a layer finds by its centred queries and keys."""
        adapter = self._adapter
        keys, queries = [], []
        for unit, norms in zip(
            states.text.split(_PART), states.text_norms.split(_PART), strict=True
        ):
            entered = self._entering(unit, norms, layer)
            keys.append(adapter.keys_values(layer, entered)[0][0].float())
            queries.append(adapter.queries(layer, entered)[0].float().sum(1))
        # What all tokens have in common says nothing: each head is centred before it is asked.
        key = torch.cat(keys, dim=1)
        key -= key[:, self._background].mean(1, keepdim=True)
        usual = torch.stack(queries).sum(0) / key.shape[1]
        entered = self._entering(
            states.prompts[: self._asking], states.prompt_norms[: self._asking], layer
        )
        query = adapter.queries(layer, entered)[0].float() - usual[:, None]
        device, shared = self._background.device, adapter.heads // adapter.kv_heads
        rows = []
        for head in range(adapter.heads):
            found = block_maxima(query[head].to(device), key[head // shared].to(device))
            trial = Trial(layer, None, self._ranks(found))
            rows.append({"layer": layer, "head": head, "rank": round(self.rank(trial), 4)})
        return rows

    def _entering(self, unit: torch.Tensor, norms: torch.Tensor, layer: int) -> torch.Tensor:
        """States `[1, tokens, hidden]` as they entered a block."""
        states = (unit.float() * norms[:, None])[None]
        return states.to(self._adapter.device(layer), self._adapter.dtype)


def _with_neighbours(trial: Trial, trials: Sequence[Trial]) -> torch.Tensor:
    """A trial's ranks, averaged with those of the layers tried next to it, which count half."""
    line = sorted((t for t in trials if t.width == trial.width), key=lambda t: t.layer)
    at = [t.layer for t in line].index(trial.layer)
    near = [t.ranks for t in line[max(0, at - 1) : at + 2] if t.layer != trial.layer]
    return (2 * trial.ranks + sum(near, torch.zeros(()))) / (2 + len(near))
