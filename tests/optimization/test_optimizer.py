"""`CMRPerformanceOptimizer`: forwards as the model's own, and what steers around them."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import cmr
from cmr import AttachError, CMRPerformanceOptimizer, ConfigError, FullCMRModel
from tests.integration.tiny import padded, text

ALL_ON = {
    "enable_adaptive_thresholds": True,
    "enable_batch_optimization": True,
    "enable_prefetching": True,
    "enable_background_optimization": True,
}
SETTINGS = {"target_layers": [1, 2, 3], "budget": 1024, "window": 256, "threshold": 0.0}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    given = padded([text(n, seed=n) for n in (60, 9, 40, 8)], "left")
    return given["input_ids"], given["attention_mask"]


def model_of(tiny) -> FullCMRModel:
    return FullCMRModel(tiny("llama"), SETTINGS)


def texts(model: FullCMRModel, session: str) -> list[int]:
    """All token ids that a session stores, in their order."""
    return [token for block in model.memory.inspect(session) for token in block.token_ids]


def test_split_batches_give_what_the_model_gives_and_remember_it(tiny) -> None:
    ids, mask = batch()
    model = model_of(tiny)
    whole = [model(ids, mask).logits for _ in range(2)]  # the second one recalls the first
    stored = {name: texts(model, name) for name in model.memory.sessions}
    model.cleanup_hooks()
    model = model_of(tiny)
    with CMRPerformanceOptimizer(model, {"enable_batch_optimization": True}) as optimizer:
        optimizer.batching.batch_tokens = 70
        split = [optimizer.optimize_forward(ids, mask).logits for _ in range(2)]
        assert optimizer.stats()["batching"]["saved"] > 0.3
    held = mask.bool()
    assert not torch.equal(whole[0], whole[1])
    for one, other in zip(split, whole, strict=True):
        torch.testing.assert_close(one[held], other[held], rtol=1e-3, atol=1e-4)
    assert {name: texts(model, name) for name in model.memory.sessions} == stored


def test_rows_are_the_sessions_that_were_named(tiny) -> None:
    ids, mask = batch()
    model = model_of(tiny)
    with CMRPerformanceOptimizer(model, ALL_ON, batch_tokens=70, upkeep_seconds=60) as optimizer:
        optimizer.optimize_forward(ids, mask, sessions=["a", "b", "c", "d"])
        with model.session("e", "f", "g", "h"):
            optimizer.optimize_forward(ids, mask)
        optimizer.optimize_forward(ids[:1], sessions="a")
    assert sorted(model.memory.sessions) == list("abcdefgh")
    for row, name in enumerate("efgh"):
        assert texts(model, name) == ids[row][mask[row].bool()].tolist()


def test_a_decoder_with_an_attached_memory(llama) -> None:
    with cmr.attach(llama, window=64, threshold=0.0) as memory:
        memory.read(text(1, 128))
        plain = llama(text(1, 8, seed=2)).logits
        optimizer = CMRPerformanceOptimizer(llama, {"enable_batch_optimization": True})
        assert torch.equal(optimizer.optimize_forward(text(1, 8, seed=2)).logits, plain)
        assert memory.recalled[0]
        memory.pause()
        plain = llama(text(1, 8, seed=2)).logits
        assert torch.equal(optimizer.optimize_forward(text(1, 8, seed=2)).logits, plain)
        with pytest.raises(ConfigError, match="memory is off"):
            optimizer.optimize_forward(text(1, 8), sessions="anna")


def test_the_threshold_follows_who_recalls(tiny) -> None:
    model = model_of(tiny)
    on = {"enable_adaptive_thresholds": True}
    with CMRPerformanceOptimizer(model, on, recall_rate=0.25) as optimizer:
        optimizer.optimize_forward(text(1, 64))  # nothing is stored yet, so nothing recalled
        assert optimizer.thresholds.stats()["recalled"] == 0.0
        model.memory.change(threshold=0.0)
        optimizer.optimize_forward(text(1, 16))
        assert optimizer.thresholds.recalled == 1
        assert model.memory_config.retrieval.threshold == pytest.approx(0.05 * 0.75)


def test_without_memory_it_is_the_plain_forward_and_steers_nothing(tiny) -> None:
    model = model_of(tiny)
    ids, mask = batch()
    model.disable_memory()
    with CMRPerformanceOptimizer(model, ALL_ON) as optimizer:
        split = optimizer.optimize_forward(ids, mask).logits
        assert torch.equal(split, model(ids, mask).logits)
        assert optimizer.thresholds.seen == optimizer.prefetcher.seen == 0


def test_what_a_call_notes_is_its_own(llama, monkeypatch) -> None:
    """Another thread's whole call falls between the forward of one and what it steers by."""
    on = {"enable_adaptive_thresholds": True, "enable_batch_optimization": True}
    with cmr.attach(llama, window=64, threshold=0.8), CMRPerformanceOptimizer(llama, on) as it:
        batched, told, others = it.batching.forward, [], []

        def forward(*given):
            output = batched(*given)
            if not others:
                others.append(threading.Thread(target=it.optimize_forward, args=(text(1, 8),)))
                others[0].start()
                others[0].join(10)
                assert not others[0].is_alive(), "nothing is held between forwards"
            return output

        monkeypatch.setattr(it.batching, "forward", forward)
        monkeypatch.setattr(it.thresholds, "update", lambda rows: told.append(list(rows)))
        it.optimize_forward(text(2, 8))
    assert told == [[False], [False, False]]


def test_background_upkeep_and_forwards_take_turns(tiny) -> None:
    model = model_of(tiny)
    on = {"enable_background_optimization": True}
    with CMRPerformanceOptimizer(model, on, upkeep_seconds=0.002) as optimizer:
        end, forwards = time.monotonic() + 10, 0
        while (optimizer.background.runs < 3 or forwards < 6) and time.monotonic() < end:
            optimizer.optimize_forward(text(1, 32, seed=1))
            forwards += 1
        assert optimizer.background.runs >= 3 and optimizer.background.error is None
    assert not optimizer.background.running
    # The same text again and again: most copies are gone, however forwards and upkeep took turns.
    model.optimize_memory()
    assert 32 <= model.memory.tokens <= 32 * forwards / 2


def test_deferred_work_runs_after_a_forward(tiny) -> None:
    ran = []
    with CMRPerformanceOptimizer(model_of(tiny), upkeep_budget=60) as optimizer:
        optimizer.scheduler.submit("mine", lambda: ran.append(1))
        optimizer.optimize_forward(text(1, 8))
        assert ran == [1]
        optimizer.scheduler.submit("mine", lambda: ran.append(2))
    assert ran == [1, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"enable_prefetch": True}, "did you mean 'enable_prefetching'"),
        ({"enable_prefetching": 1}, "True or False"),
        ([], "a dict of settings"),
    ],
)
def test_bad_settings_are_refused(tiny, settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        CMRPerformanceOptimizer(model_of(tiny), settings)


def test_bad_input_is_refused_before_anything_is_stored(tiny, llama) -> None:
    model = model_of(tiny)
    optimizer = CMRPerformanceOptimizer(model, {"enable_batch_optimization": True})
    with pytest.raises(ValueError, match=r"\[batch, tokens\]"):
        optimizer.optimize_forward(text(8))
    with pytest.raises(ValueError, match="a token in every row"):
        optimizer.optimize_forward(text(2, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match="2 names expected, one a row, got 3"):
        optimizer.optimize_forward(text(2, 8), sessions=["a", "b", "c"])
    assert model.memory.sessions == []
    model.cleanup_hooks()
    with pytest.raises(AttachError, match="without one"):
        CMRPerformanceOptimizer(llama)


def test_plain_attach_says_who_takes_these_settings(llama) -> None:
    with pytest.raises(ConfigError, match="CMRPerformanceOptimizer"):
        cmr.attach(llama, enable_prefetching=True)
