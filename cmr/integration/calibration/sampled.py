"""How a model's states are weighed in a search where nothing was measured for it: by a sample."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.partial_pass import at_rest, states_entering
from cmr.kernels.search.query import Weighing

ROWS, TOKENS = 4, 256
"""Texts of random tokens that a sample is, and the tokens of each."""
SHARE = 0.94
"""Of the sample's variance: so much is held by the directions that are kept."""
EVEN = 0.3
"""Share of the kept variances' mean that is added to each before it divides."""
_log = logging.getLogger(__name__)


class Metric(Weighing):
    """What weighs the states that ask, so that stored ones are compared as they are.

    States at the index layer lie in a narrow cone, and a few directions rule every cosine. The
    product of two whitened states is (q - m)' P P' (k - m), where m is the mean and P whitens; of
    a token that asks, what m takes from k is the same for all that is stored, and a search
    standardises it away. So it is enough to weigh what asks, by P P', and nothing that is stored
    depends on the metric: only the length that k has when whitened is left out.

    It is of the model alone. Nothing that was read is in it, so that no session's text shows in
    the scores of another.

    Source: Su et al. (2021), whitening sentence representations.
    """

    @classmethod
    def of(cls, states: torch.Tensor) -> Metric | None:
        """The metric of a sample, states `[tokens, hidden]`; on the CPU.

        Those that are not finite are left out; None where there are no others, or all are the same.
        """
        unit = F.normalize(states.float().cpu(), dim=-1)
        unit = unit[unit.isfinite().all(-1)]
        mean = unit.mean(0)
        centred = unit - mean
        if not centred.square().sum(-1).mean() > torch.finfo(torch.float32).eps:
            return None
        # By the products of the tokens, which are fewer than a large model's directions.
        values, vectors = torch.linalg.eigh(centred @ centred.t() / len(unit))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        # At most as many as there are: rounding leaves something of those that are not.
        most = min(len(unit) - 1, unit.shape[1])
        width = min(most, int((values.cumsum(0) < SHARE * values.sum()).sum()) + 1)
        kept = values[:width]
        directions = F.normalize(centred.t() @ vectors[:, :width], dim=0)
        return cls(mean, directions * (kept + EVEN * kept.mean()).rsqrt())

    def to(self, device: torch.device) -> Metric:
        """The same on a device."""
        return Metric(self.mean.to(device), self.projection.to(device))


def sample(adapter: ModelAdapter, layer: int) -> Metric | None:
    """The metric of a model's states at a layer, by what it makes of random tokens.

    They are drawn from the vocabulary, the same ones every time, and need no tokenizer and no
    text; where it was measured they served better than prose, whose largest directions are what it
    is about. Only the layers before `layer` are run. Whoever calls lets the decoder's hooks rest.
    None, and it is logged, where the model makes nothing of them that could be weighed by.
    """
    tokens = min(TOKENS, adapter.max_positions)
    ids = torch.randint(
        0, adapter.config.vocab_size, (ROWS, tokens), generator=torch.Generator().manual_seed(0)
    )
    with at_rest(adapter.model), states_entering(adapter, [layer], stop=layer) as found:
        adapter.decoder(input_ids=ids.to(adapter.input_device), use_cache=False)
    # A text's first token is a sink, whose state says nothing of the others.
    metric = Metric.of(found[layer][:, 1:].flatten(0, 1))
    if metric is None:
        _log.warning("no finite states of random tokens at layer %d: searched unweighed", layer)
    return metric
