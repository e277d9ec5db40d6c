"""The specification's own settings build and do what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cmr import FullCMRModel
from tests.integration.models.test_passing import ALWAYS
from tests.integration.tiny import text

Made = Callable[..., Any]
CRITERIA = {"relevance": 0.4, "similarity": 0.3, "recency": 0.2, "diversity": 0.1}


@pytest.mark.parametrize("nested", [False, True])
def test_all_four_criteria(nested: bool, llama: nn.Module, made: Made) -> None:
    """Weighed alike by the memory's search, the buffer's and the blender."""
    given = {"strategy": "multi_criteria", "criteria_weights": CRITERIA}
    settings = {"retrieval_config": given} if nested else given
    model = made(FullCMRModel, llama, {**ALWAYS, **settings})
    assert model.blender.criteria_weights == pytest.approx(CRITERIA)
    assert model.retriever.multi_criteria_ranker.weights == pytest.approx(CRITERIA)
    model(text(1, 60), sessions="anna")
    out = model(text(1, 20), sessions="anna", return_memory_info=True)
    assert out.retrieval_stats["recalled"][0] and torch.isfinite(out.logits).all()
