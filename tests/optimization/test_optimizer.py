"""`CMRPerformanceOptimizer`: forwards as the model's own, and what steers around them."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import transformers

import cmr
from cmr import AttachError, CMRPerformanceOptimizer, ConfigError, FullCMRModel
from tests.docs.tiny import tokenizer
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


def asked(model: FullCMRModel, session: str) -> None:
    """A `generate` of a session that has text, which searches."""
    model.generate(text(1, 12, seed=3), sessions=[session], max_new_tokens=2)


@pytest.mark.parametrize("way", ["generate", "handle", "context", "forward", "pipeline"])
def test_every_way_of_asking_a_stock_model_steers(llama, way: str) -> None:
    on = {"enable_adaptive_thresholds": True, "enable_prefetching": True}
    question, few = text(1, 12, seed=3), {"max_new_tokens": 2}
    with cmr.attach(llama, window=64, budget=2048) as memory:
        memory.read(text(1, 512), sessions=["anna"])
        with CMRPerformanceOptimizer(llama, on) as optimizer:
            if way == "handle":
                memory.session("anna").generate(question, **few)
            with memory.session("anna"):
                if way in ("generate", "context"):
                    llama.generate(question, **few)
                if way == "forward":
                    llama(question)
                if way == "pipeline":
                    pipe = transformers.pipeline(
                        "text-generation", model=llama, tokenizer=tokenizer()
                    )
                    pipe("0123456789abc", do_sample=False, **few)
            assert optimizer.thresholds.seen == optimizer.prefetcher.seen == 1
        llama.generate(question, **few)
        assert optimizer.thresholds.seen == 1, "closed, it is told of nothing"
        assert not memory._core.answers.on


def test_one_request_counts_once_however_many_searches_it_makes(llama) -> None:
    with cmr.attach(llama, window=64, budget=2048, refresh=2) as memory:
        told = []
        end = memory.watch_requests(told.append)
        memory.read(text(1, 512), sessions=["anna"])
        memory.read(text(1, 512, seed=5), sessions=["ben"])
        memory.session("anna", "ben").generate(
            text(2, 12, seed=3), max_new_tokens=12, num_beams=2, do_sample=False
        )
        end()
        memory.session("anna").generate(text(1, 12), max_new_tokens=2)
    (answers,) = told
    assert [answer.session for answer in answers] == ["anna", "ben"]
    for answer in answers:
        assert answer.certainty > 0 and answer.recalled == (answer.certainty >= 0.8)
        assert (answer.nbytes > 0) == answer.recalled == (sum(answer.tiers) > 0)


def test_a_request_from_within_another_is_one_of_its_own(llama) -> None:
    """A streamer asks for somebody else while an answer is under way."""
    with cmr.attach(llama, window=64, budget=2048, refresh=2) as memory:
        told, handles = [], {}
        for name in ("anna", "ben"):
            memory.read(text(1, 256, seed=ord(name[0])), sessions=[name])
            handles[name] = memory.session(name)
        memory.watch_requests(lambda answers: told.append([a.session for a in answers]))

        class Asks:
            def put(self, _) -> None:
                if not told:
                    handles["ben"].forward(text(1, 12, seed=4))

            def end(self) -> None: ...

        handles["anna"].generate(text(1, 12, seed=3), max_new_tokens=6, streamer=Asks())
    assert told == [["ben"], ["anna"]]


def test_what_a_request_reads_is_told_in_bytes(llama) -> None:
    with cmr.attach(llama, window=64, budget=2048, threshold=0.0, neighbours=0, blocks=1) as memory:
        told = []
        memory.watch_requests(told.append)
        memory.read(text(1, 512), sessions=["anna"])
        memory.session("anna").forward(text(1, 12, seed=3))
        tokens = sum(p.end - p.start for p in memory.session("anna").search(text(1, 12, seed=3)))
        width = 2 * 2 * 16 * 4  # keys and values, two heads of 16, float32
        layers = len(memory._core.layout.read_layers)
    # Of the first block the attention sink is not read.
    assert 0 <= tokens * width * layers - told[0][0].nbytes <= width * layers


def test_who_is_told_and_raises_breaks_no_request(llama, caplog) -> None:
    with cmr.attach(llama, window=64, budget=2048) as memory:
        memory.read(text(1, 256))
        plain = llama.generate(text(1, 12, seed=3), max_new_tokens=4)
        memory.watch_requests(lambda answers: 1 / 0)
        for _ in range(2):
            assert torch.equal(llama.generate(text(1, 12, seed=3), max_new_tokens=4), plain)
    assert [r.message for r in caplog.records if "ZeroDivisionError" in r.message] == [
        "who is told of a memory's requests raised ZeroDivisionError; not logged again"
    ]


def test_nothing_is_registered_where_all_is_off(tiny) -> None:
    model = model_of(tiny)
    before = threading.active_count()
    with CMRPerformanceOptimizer(model) as optimizer:
        assert not model.memory._core.answers.on and optimizer.slack is None
        assert threading.active_count() == before


def test_a_full_model_steers_itself(tiny, tmp_path) -> None:
    on = {"enable_adaptive_thresholds": True, "enable_background_optimization": True}
    model = FullCMRModel(tiny("llama"), {**SETTINGS, "optimization_config": on})
    model(text(1, 200), sessions=["anna"])
    for _ in range(3):
        asked(model, "anna")
    assert model.optimizer.thresholds.seen == 3 and model.optimizer.background.running
    assert model.optimizer.prefetcher is model.optimizer.batching is None
    assert model.memory_config.optimization.enable_adaptive_thresholds, "it is saved with it"
    assert model.monitor.metrics()["calls"] == 0 and model.performance is model.monitor
    asked(model, "anna")
    assert model.monitor.metrics()["calls"] == 1
    steered = model.optimizer
    model.cleanup_hooks()
    assert model.optimizer is None and not steered.background.running
    model.register_memory_hooks()
    assert model.optimizer is not steered and model.optimizer.background.running
    model.cleanup_hooks()
    plain = FullCMRModel(tiny("llama"), SETTINGS)
    assert plain.optimizer is None and not plain.memory._core.answers.on


def test_classes_that_do_not_steer_themselves_say_so(tiny) -> None:
    on = {"optimization_config": {"enable_prefetching": True}}
    with pytest.raises(ConfigError, match="or to FullCMRModel"):
        cmr.IntegratedCMRModel(tiny("llama"), {**SETTINGS, **on})


def test_the_threshold_follows_who_recalls(tiny) -> None:
    model = model_of(tiny)
    model(text(1, 400), sessions=["anna"])
    on = {"enable_adaptive_thresholds": True}
    with CMRPerformanceOptimizer(model, on, wanted=0.25) as optimizer:
        for seed in range(40):
            model.generate(text(1, 12, seed=seed), sessions=["anna"], max_new_tokens=1)
        stats = optimizer.thresholds.stats()
    assert stats["requests"] == 40 and 0.15 <= stats["recalled"] <= 0.35
    assert model.memory_config.retrieval.threshold == stats["value"] != 0.0


def test_without_memory_it_is_the_plain_forward_and_steers_nothing(tiny) -> None:
    model = model_of(tiny)
    ids, mask = batch()
    model.disable_memory()
    with CMRPerformanceOptimizer(model, ALL_ON) as optimizer:
        split = optimizer.optimize_forward(ids, mask).logits
        assert torch.equal(split, model(ids, mask).logits)
        assert optimizer.thresholds.seen == optimizer.prefetcher.seen == 0


def test_background_upkeep_and_forwards_take_turns(tiny) -> None:
    model = model_of(tiny)
    on = {"enable_background_optimization": True}
    with CMRPerformanceOptimizer(model, on, upkeep_seconds=0.002, quiet_seconds=0) as optimizer:
        end, forwards, gone = time.monotonic() + 30, 0, 0
        while (optimizer.background.runs < 3 or gone < 3) and time.monotonic() < end:
            optimizer.optimize_forward(text(1, 32, seed=1))
            forwards += 1
            gone = forwards - model.memory.tokens // 32
        assert optimizer.background.runs >= 3 and optimizer.background.error is None
    assert not optimizer.background.running
    # The same text again and again: copies go, however forwards and upkeep take turns.
    assert 32 <= model.memory.tokens <= 32 * (forwards - 3)


def test_deferred_work_runs_in_slack_or_at_the_end(tiny) -> None:
    ran, model = [], model_of(tiny)
    with CMRPerformanceOptimizer(model) as optimizer:
        optimizer.scheduler.submit("mine", lambda: ran.append(1))
        optimizer.optimize_forward(text(1, 8))
        assert ran == []
    assert ran == [1]
    with CMRPerformanceOptimizer(model, {"enable_prefetching": True}) as optimizer:
        with model.memory._core.lock:  # as in a forward
            optimizer.scheduler.submit("mine", lambda: ran.append(2))
            time.sleep(0.1)
            assert ran == [1]
        end = time.monotonic() + 10
        while len(ran) < 2 and time.monotonic() < end:
            time.sleep(0.01)
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
