"""The specification's own settings build, do what they say, and leave recall as good as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import nn

from cmr import FullCMRModel, IntegratedCMRModel
from cmr.demo.text import PLANTED
from cmr.errors import CMRWarning, ConfigError
from tests.integration.models.test_passing import ALWAYS
from tests.integration.test_detach import hooks
from tests.integration.test_real_model import chat
from tests.integration.tiny import build, greedy, text

Made = Callable[..., Any]
CRITERIA = {"relevance": 0.4, "similarity": 0.3, "recency": 0.2, "diversity": 0.1}
USUAL = [1, 2, 3, 4]
"""Where the tiny decoder of six layers reads, if nothing is said."""


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


def answer(made: Made, llama: nn.Module, **settings: Any) -> tuple[Any, torch.Tensor]:
    """A model that has read a text, and what it then says of another one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CMRWarning)
        warnings.filterwarnings("ignore", "target_layers.*their states are captured", CMRWarning)
        warnings.filterwarnings("ignore", ".*weighted_sum.*recalled nothing", CMRWarning)
        model = made(FullCMRModel, llama, {**ALWAYS, **settings})
    model(text(1, 60), sessions="anna")
    logits = model(text(1, 20), sessions="anna").logits
    model.cleanup_hooks()
    return model, logits


def test_target_layers_are_captured_and_say_nothing_of_reading(
    llama: nn.Module, made: Made
) -> None:
    """With gaps, too: recall is that of the default, to the bit."""
    _, want = answer(made, llama, scoring_method="hybrid")
    model, logits = answer(made, llama, scoring_method="hybrid", target_layers=[2, 4, 6])
    assert torch.equal(logits, want)
    assert model.target_layers == (2, 4, 6) == model.memory_config.memory.target_layers
    assert model._memory_stats()["layers_with_memory"] == [2, 4, 6]
    assert model.memory.stats()["target_layers"] == USUAL


def test_layers_with_gaps_are_said_to_be_read_elsewhere(llama: nn.Module, made: Made) -> None:
    """Who asks for the specification's layers is told that memory is not read there."""
    with pytest.warns(CMRWarning, match=r"target_layers=\[2, 4, 6\].*layers 1 to 4") as seen:
        made(FullCMRModel, llama, {**ALWAYS, "target_layers": [2, 4, 6]}).cleanup_hooks()
    assert len(seen) == 1
    for settings in ({"target_layers": [2, 3]}, {"target_layers": [5]}, {}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CMRWarning)
            made(FullCMRModel, llama, {**ALWAYS, **settings}).cleanup_hooks()


def test_intervention_layers_say_where_memory_is_read(llama: nn.Module, made: Made) -> None:
    settings = {**ALWAYS, "target_layers": [2, 4, 6], "intervention_layers": [3, 5]}
    with pytest.warns(CMRWarning, match=r"intervention_layers=\[3, 5\]") as seen:
        model = made(FullCMRModel, llama, settings)
    assert len(seen) == 1 and model.target_layers == (2, 4, 6)
    assert model.memory.stats()["target_layers"] == [3, 5]
    assert model.memory._core.layout.read_layers == {3, 5}
    model.cleanup_hooks()
    with_knn = {"intervention_layers": [2, 3, 4], "knn": True, "knn_layers": [1, 2]}
    model, _ = answer(made, llama, **with_knn)
    assert model.memory.stats()["target_layers"] == USUAL
    assert model.memory._core.layout.read_layers == {2, 3, 4}


@pytest.mark.parametrize("method", ["weighted_sum", "gated", "residual"])
def test_states_are_blended_where_they_are_captured(
    method: str, llama: nn.Module, made: Made
) -> None:
    """As the specification's `integration_method`: no range is better there than another."""
    model, _ = answer(
        made, llama, integration_method=method, memory_weight=0.3, target_layers=[2, 4]
    )
    assert model.memory.stats()["target_layers"] == [2, 4]
    model, _ = answer(
        made, llama, integration_method=method, target_layers=[2, 4], intervention_layers=[3]
    )
    assert model.target_layers == (2, 4) and model.memory.stats()["target_layers"] == [3]


def test_a_limit_of_all_layers_together_is_one_of_captured_states(
    llama: nn.Module, made: Made
) -> None:
    limits = {"target_layers": [2, 4, 6], "max_total_entries": 600}
    model, _ = answer(made, llama, **limits)
    assert model.memory.stats()["capacity_tokens"] == 192  # whole blocks of 600 / 3
    assert model.memory_buffer.limits.max_total_entries == 600
    assert model.memory_config.memory.max_total_entries == 600
    model, _ = answer(made, llama, **limits, max_entries_per_layer=128)
    assert model.memory.stats()["capacity_tokens"] == 128
    before = hooks(llama)
    with pytest.raises(ConfigError, match=r"max_total_entries: at least 96 expected.*got 90"):
        FullCMRModel(llama, {**limits, "max_total_entries": 90})
    assert hooks(llama) == before


def test_layers_that_are_not_there(llama: nn.Module) -> None:
    before = hooks(llama)
    with pytest.raises(ConfigError, match=r"target_layers: numbers of 0\.\.6 .*got 8"):
        FullCMRModel(llama, {"target_layers": [4, 8, 12]})
    with pytest.raises(ConfigError, match=r"layers: numbers of 0\.\.5 .*got 6"):
        FullCMRModel(llama, {"intervention_layers": [6]})
    assert hooks(llama) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"target_layers": [2, 4], "max_total_entries": 600},
        {"target_layers": [2], "intervention_layers": [1, 2, 3, 4]},
        {"intervention_layers": [2, 3, 4]},
    ],
)
def test_saved_models_capture_and_read_where_they_did(
    settings: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    model = made(IntegratedCMRModel, build("llama"), {**ALWAYS, **settings})
    model(text(1, 60), sessions="anna")
    model.save_pretrained(tmp_path / "m", memory=True)
    again = IntegratedCMRModel.from_pretrained(tmp_path / "m")
    assert again.target_layers == model.target_layers
    assert again.memory_config == model.memory_config and again.memory.config == model.memory.config
    ids = text(1, 20)
    assert torch.equal(again(ids, sessions="anna").logits, model(ids, sessions="anna").logits)


def test_another_precision_says_nothing_again(made: Made) -> None:
    with pytest.warns(CMRWarning, match="memory_weight"):
        model = made(FullCMRModel, build("llama"), {"memory_weight": 0.3, "target_layers": [2]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", CMRWarning)
        model.to(torch.bfloat16)
    assert model.target_layers == (2,) and model.memory.stats()["target_layers"] == USUAL
    model(text(1, 20))
    assert model._memory_stats()["layers_with_memory"] == [2]


@pytest.mark.slow
def test_layers_with_gaps_answer_as_the_default_does(
    smollm2: tuple[nn.Module, Any], made: Made
) -> None:
    """Six facts, a text each; where memory itself is read at those layers, none is answered."""
    decoder, tokenizer = smollm2
    model = made(
        FullCMRModel, decoder, {"window": 256, "target_layers": [4, 8, 12]}, tokenizer=tokenizer
    )
    prose, right = topics["class"] + topics["function"], 0
    for number, question in enumerate(PLANTED):
        page = prose[900 * number : 900 * (number + 1)]
        words = f"{page[:450]} {question.fact} {page[450:]}"
        model(tokenizer(words, return_tensors="pt").input_ids, sessions="anna")
    assert model.target_layers == (4, 8, 12)
    for question in PLANTED:
        inputs = chat(tokenizer, question.text)
        told = greedy(model, inputs.pop("input_ids"), tokens=16, sessions="anna", **inputs)
        right += question.answered_by(tokenizer.decode(told[0]))
    assert right >= 5
