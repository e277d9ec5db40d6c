"""What a row draws: by its own probabilities, and nothing that has none."""

from __future__ import annotations

import torch

from cmr.serving.engines.job import Job
from cmr.serving.engines.sampling import RowSampler


def test_rows_draw_by_their_probabilities() -> None:
    shares = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    jobs = [Job((1,), None, temperature=t, seed=3, top_p=p) for t, p in
            ((1.0, 1.0), (0.0, 1.0), (0.5, 1.0), (1.0, 0.7))]  # fmt: skip
    sampler = RowSampler(jobs, torch.device("cpu"))
    scores = shares.log().expand(4, -1)
    ids = torch.zeros(4, 1, dtype=torch.int64)
    drawn = torch.stack([sampler(ids, scores).argmax(dim=-1) for _ in range(1_000)])
    found = torch.stack([(drawn == token).float().mean(dim=0) for token in range(6)], dim=1)
    squared = shares.square() / shares.square().sum()
    narrow = torch.tensor([0.0, 0.625, 0.0, 0.375, 0.0, 0.0])
    wanted = torch.stack([shares, torch.tensor([0.0, 1, 0, 0, 0, 0]), squared, narrow])
    # Four standard errors of a share of a half.
    assert (found - wanted).abs().max() < 4 * 0.5 / 1_000**0.5
    assert found[wanted == 0].sum() == 0
    assert torch.equal(scores[0], shares.log())  # what it is given stays as it is
