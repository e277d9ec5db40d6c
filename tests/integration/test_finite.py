"""States that are NaN or infinite are never stored, by whatever way they come."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import CMRWarning, CorruptMemoryError, NonFiniteStateError
from cmr.integration.decoder.finite import all_finite
from cmr.memory.store import Saved
from tests.integration.tiny import READS_ALL, build, padded, text

SETTINGS: dict[str, Any] = {"window": 64, "budget": 4096, **READS_ALL}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"store": "states"},
    {"store": "tokens"},
    {"method": "weighted_sum", "layers": None},
    {"long_term_budget": 4096, "budget": 64},
    {"working_budget": 512, "budget": 128},
    {"scoring_method": "surprise", "eviction_strategy": "lru_relevance"},
)


@contextmanager
def broken(module: nn.Module, value: float, row: int | None = None) -> Iterator[None]:
    """What the module gives is infinite or NaN inside, in one row or in all."""

    def spoil(_: nn.Module, __: Any, output: Any) -> Any:
        states = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        states[slice(None) if row is None else row, -3] = value
        return states if isinstance(output, torch.Tensor) else (states, *output[1:])

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def stored(memory: cmr.Memory) -> list[Any]:
    """All that is stored, tensor by tensor, and where the sessions' texts stand."""
    ring = memory._core.ring
    parts = [x.clone() for tier in ring.parts for x in tier.values()]
    return [*parts, *(x.clone() for x in ring.columns), memory._core.table.infos()]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())) or "kv")
def test_a_text_that_is_not_finite_is_refused_before_anything_is_stored(
    way: dict[str, Any], value: float
) -> None:
    model, ids = build("llama"), text(1, 20)
    with cmr.attach(model, **{**SETTINGS, **way}) as memory:
        memory.read(text(200), sessions=["ben"])
        memory.read(text(80, seed=3), sessions=["anna"])
        before, scores = stored(memory), memory._core.scorer.state()
        with memory.session("ben"):
            good = model(ids).logits
        before = stored(memory)
        bad = broken(memory._core.adapter.layers[1], value)
        with (
            bad,
            pytest.raises(NonFiniteStateError, match=r"'anna'.*position 109 .*from position 80"),
        ):
            memory.read(text(32, seed=4), sessions=["anna"])
        assert same(stored(memory), before)
        assert all(torch.equal(x, scores[n]) for n, x in memory._core.scorer.state().items())
        memory.read(text(200, seed=5), sessions=["anna"])
        assert memory._core.table.info(memory._core.table.find("anna")).position == 280
        with memory.session("ben"):
            assert torch.equal(model(ids).logits, good)
        with memory.session("anna"):
            assert model(ids).logits.isfinite().all() and memory.recalled[0]


@pytest.mark.parametrize("method", ["surprise", "gradient_based"])
def test_what_judges_a_text_must_be_finite_too(method: str) -> None:
    """What lies behind the last layer that is stored never gets into the scores' scale."""
    model = build("llama")
    with cmr.attach(model, window=64, scoring_method=method, target_layers=(1, 2)) as memory:
        memory.read(text(64))
        scores = memory._core.scorer.state()
        with (
            broken(memory._core.adapter.layers[5], math.inf),
            pytest.raises(NonFiniteStateError, match="the last layer"),
        ):
            memory.read(text(64, seed=2))
        assert all(torch.equal(x, scores[n]) for n, x in memory._core.scorer.state().items())


def test_windows_before_the_bad_one_are_stored_and_said() -> None:
    model, windows = build("llama"), []
    with cmr.attach(model, **SETTINGS, left_context=0) as memory:
        layer = memory._core.adapter.layers[1]

        def third(_: nn.Module, __: Any, output: Any) -> Any:
            windows.append(1)
            return output if len(windows) < 3 else output * math.nan

        handle = layer.register_forward_hook(third)
        with pytest.raises(NonFiniteStateError, match=r"position 128 .*from position 128 on"):
            memory.read(text(300), sessions=["anna"])
        handle.remove()
        assert memory.tokens == 128
        assert memory._core.table.position(memory._core.table.find("anna")) == 128


def test_numbers_that_only_add_up_to_too_much_are_stored() -> None:
    assert all_finite([torch.ones(3), torch.full((2,), 6e4, dtype=torch.float16)])
    assert not all_finite([torch.full((8,), 3e38)]), "this is where one looks closer"
    assert not all_finite([torch.ones(2), torch.tensor([math.inf, -math.inf])])
    assert all_finite([torch.tensor([1, 2])]) and all_finite([])
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:

        def huge(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            return torch.full_like(output, 1e36)

        handle = memory._core.adapter.attention(2).v_proj.register_forward_hook(huge)
        memory.read(text(64))
        handle.remove()
        assert memory.tokens == 64


def test_padding_may_be_anything_and_is_not_stored() -> None:
    model = build("llama")
    settings = {**SETTINGS, "target_layers": (1, 2), "index_layer": 2}
    with cmr.attach(model, **settings, left_context=0) as memory:
        batch = padded([text(40), text(64, seed=2)], "right")
        rows = memory._core.adapter.layers[1]
        with broken(rows, math.nan, row=0):  # the third last column is padding in row 0
            memory.read(batch["input_ids"], batch["attention_mask"], sessions=["anna", "ben"])
        assert memory.tokens == 104
        for tier in memory._core.ring.parts:
            assert all(x.isfinite().all() for x in tier.values())


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
@pytest.mark.parametrize("side", ["left", None])
def test_a_bad_row_of_a_batch_stores_nothing_and_its_neighbours_do(
    store: str, side: str | None
) -> None:
    """What leaves a window in a forward: nobody's answer is broken off for another's numbers."""
    model = build("llama")
    rows = [text(96, seed=n) for n in (1, 2, 3)]
    names = ("anna", "ben", "cleo")
    batch = {"input_ids": torch.stack(rows)}
    if side:
        batch = padded([rows[0][:90], rows[1], rows[2]], side)
    with cmr.attach(model, **SETTINGS, store=store) as memory, memory.session(*names, create=True):
        layer, table = memory._core.adapter.layers[1], memory._core.table
        mask = torch.ones(3, 96 + 2 * 64, dtype=torch.int64)
        if side:
            mask[:, :96] = batch["attention_mask"]

        def go_on(seed: int) -> None:
            ids = torch.stack([text(64, seed=seed + n) for n in range(3)])
            seen = cache.get_seq_length() + 64
            model(ids, attention_mask=mask[:, :seen], past_key_values=cache)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CMRWarning)
            cache = model(**batch, use_cache=True).past_key_values
            with broken(layer, math.nan, row=1), memory.retrieval(blocks=0):
                go_on(4)
            go_on(7)
            memory.absorb(cache)
        assert len([w for w in said if "'ben': NaN or infinite states" in str(w.message)]) == 1
        held = {name: sum(len(block.token_ids) for block in memory.inspect(name)) for name in names}
        stands = {name: table.position(table.find(name)) for name in names}
        # Positions go on over what is not stored: each text stands where it would have anyway.
        assert stands["ben"] == stands["cleo"] and held["anna"] == stands["anna"]
        assert held["cleo"] == stands["cleo"] and 0 < held["ben"] < stands["ben"]
        assert memory.stats()["not_finite_tokens"] == stands["ben"] - held["ben"]
        for tier in memory._core.ring.parts:
            assert all(x.isfinite().all() for x in tier.values())
        assert model(torch.stack([text(9)] * 3)).logits.isfinite().all()


def test_what_is_run_again_must_be_finite() -> None:
    model, ids = build("llama"), text(1, 20)
    with (
        cmr.attach(model, **SETTINGS, store="tokens", strict=True) as memory,
        memory.session("anna", create=True),
    ):
        memory.read(text(200))
        attention = memory._core.adapter.attention(3)

        def spoil(_: nn.Module, __: Any, output: torch.Tensor) -> Any:
            # Only where a passage is run again: the prompt itself has 20 tokens.
            return output * math.nan if output.shape[1] != 20 else output

        handle = attention.v_proj.register_forward_hook(spoil)
        with pytest.raises(NonFiniteStateError, match=r"layer 3: .*run through the model again"):
            model(ids)
        handle.remove()
        assert model(ids).logits.isfinite().all() and memory.recalled[0]


@pytest.mark.parametrize("part", ["index", "keys.2", "values.2"])
def test_a_saved_memory_that_is_not_finite_is_refused(part: str, tmp_path: Path) -> None:
    model = build("llama")
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(text(200), sessions=["anna"])
        slot = int(memory._core.ring.ledger.slots_of(None)[3])
        memory._core.ring.parts[0][part][slot].view(-1)[5] = math.nan
        memory.save(tmp_path / "m")
    with cmr.attach(model, **SETTINGS) as memory:
        before = stored(memory)
        with pytest.raises(CorruptMemoryError, match=rf"'{part}': finite numbers"):
            memory.load(tmp_path / "m")
        assert same(stored(memory), before)
    assert len(Saved.open(tmp_path / "m")) == 7
    with pytest.raises(CorruptMemoryError):
        cmr.load(tmp_path / "m", model)
    assert not hasattr(model, "_cmr_memory")
