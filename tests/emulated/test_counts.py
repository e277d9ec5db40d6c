"""What a forward costs on a GPU beside the model: operations that launch, and waits of the host.

Nothing is timed: the bars are counts of an emulated GPU, see `device`. A change that takes fewer
lowers its bar with it; one that takes more has to raise it here, where it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.emulated.decoding import (
    LAYERS,
    Words,
    count_of_reading,
    counts_alone,
    counts_of,
    on_emulated,
)
from tests.emulated.device import Count, Device

# By the kind of forward: most operations beyond the model's own, and most waits of the host.
BARS = {
    "step": (16, 0),
    "search": (22, 0),
    "leaving": (57, 1),
    "prompt": (89, 1),
}
# With a tokenizer what is asked is taken in parts, and words count.
BARS_OF_WORDS = {**BARS, "search": (28, 0), "prompt": (97, 1)}
READING = (2610, 8)
"""Of 4,000 tokens: most operations in all, the model's own among them, and most waits."""


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with torch.no_grad(), Device().running() as running:
        yield running


@pytest.fixture(scope="module")
def model(device: Device) -> torch.nn.Module:
    return on_emulated(device)


@pytest.fixture(scope="module")
def alone(device: Device, model: torch.nn.Module) -> dict[str, Count]:
    return counts_alone(device, model)


@pytest.fixture(scope="module")
def counts(device: Device, model: torch.nn.Module) -> dict[str, Count]:
    return counts_of(device, model)


@pytest.fixture(scope="module")
def counts_of_words(device: Device, model: torch.nn.Module) -> dict[str, Count]:
    return counts_of(device, model, tokenizer=Words())


def hold(count: Count, own: Count, bar: tuple[int, int]) -> None:
    """The counts are below the bar, and not so far below it that the bar says nothing."""
    operations, waits = count.launched - own.launched, count.waited
    said = f"{operations} operations and {waits} waits, at most {bar} expected:\n"
    assert operations <= bar[0] and waits <= bar[1], said + count.beyond(own)
    slack = max(5, bar[0] // 20)
    assert operations >= bar[0] - slack and waits == bar[1], said + "the bar may be lowered"


@pytest.mark.parametrize("kind", sorted(BARS))
def test_a_forward(counts, alone, kind: str) -> None:
    hold(counts[kind], alone["prompt" if kind == "prompt" else "step"], BARS[kind])


@pytest.mark.parametrize("kind", sorted(BARS_OF_WORDS))
def test_a_forward_with_a_tokenizer(counts_of_words, alone, kind: str) -> None:
    own = alone["prompt" if kind == "prompt" else "step"]
    hold(counts_of_words[kind], own, BARS_OF_WORDS[kind])


def test_reading(device: Device, model: torch.nn.Module) -> None:
    hold(count_of_reading(device, model), Count(), READING)


def test_a_target_layer_takes_two_operations(counts, alone) -> None:
    """Its own attention, which the model makes too, and one more."""
    assert counts["step"].names["reweave_paged"] == LAYERS
    local = counts["step"].names["attention_with_lse"] + counts["step"].names["attention_partials"]
    assert local == LAYERS
    assert alone["step"].names["scaled_dot_product_attention"] == LAYERS
