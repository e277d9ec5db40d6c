"""Each row of a batch draws by its own settings and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from cmr.serving.engines.job import Job


class RowSampler(LogitsProcessor):
    """Lets a greedy `generate` say what each row has drawn.

    `generate` itself draws all rows by the same settings and from the one random state of the
    process, so what a seed gives would depend on who else asks.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        self._drawn: list[tuple[int, list[LogitsProcessor], torch.Generator]] = []
        for row, job in enumerate(jobs):
            if job.temperature == 0:
                continue
            warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(job.temperature)]
            if job.top_p < 1:
                warpers.append(TopPLogitsWarper(job.top_p))
            generator = torch.Generator(device)
            if job.seed is None:
                generator.seed()
            else:
                generator.manual_seed(job.seed)
            self._drawn.append((row, warpers, generator))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[rows, vocabulary]` with one token left in each row that draws."""
        if not self._drawn:
            return scores
        scores = scores.clone()
        for row, warpers, generator in self._drawn:
            own = scores[row : row + 1].float()
            for warper in warpers:
                own = warper(input_ids[row : row + 1], own)
            # By one random number: `multinomial` draws one for each token of the vocabulary.
            reached = own.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
            at = torch.rand(1, 1, generator=generator, device=own.device, dtype=torch.float64)
            token = torch.searchsorted(reached, at * reached[:, -1:], right=True)
            scores[row] = float("-inf")
            scores[row, token.clamp(max=scores.shape[1] - 1)] = 0.0
        return scores
