"""What a request is about decides how it is looked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmr.config import RetrievalConfig
from cmr.errors import ConfigError
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.retrieval import Retriever
from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever
from cmr.retrieval.entries.context import RetrievalContext
from cmr.retrieval.strategies import tasks
from cmr.retrieval.strategies.registry import Parts, make_strategy, register_strategy
from cmr.retrieval.strategies.semantic import Semantic
from cmr.retrieval.strategies.tasks import TaskSettings, register_task, settings_of
from tests.retrieval.stored import BLOCK, HIDDEN, question, store_of, write

CONFIG = RetrievalConfig(strategy="task_specific")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))


def best(task: str | None, store, states: torch.Tensor) -> int:
    ask = question([0], states.shape[1], states=states, task=task, located=True)
    return int(make_strategy("task_specific", Parts(CONFIG)).score(ask, store).passages.argmax())


def contradicting():
    """Two statements of the same; the older one fits the question a little better."""
    store, states = store_of(60), torch.randn(60, BLOCK, HIDDEN)
    asked = states[[20]].clone()
    states[50] = states[20] + 0.05 * torch.randn(BLOCK, HIDDEN)
    write(store, [0] * 60, states)
    return store, asked


def test_in_a_dialogue_the_newer_of_two_statements_holds() -> None:
    store, asked = contradicting()
    assert best(None, store, asked) in (19, 20)
    assert best("question_answering", store, asked) in (19, 20)
    assert best("dialogue", store, asked) in (49, 50)


def test_in_code_the_very_same_names_count() -> None:
    """One passage is a little more alike, the other one holds the rare tokens asked for."""
    store, states = store_of(40), torch.randn(40, BLOCK, HIDDEN)
    asked = states[[12]].clone()
    states[30] = states[12] + 0.3 * torch.randn(BLOCK, HIDDEN)
    ids = torch.randint(20, (40, BLOCK))
    ids[30], ids[11:14] = torch.tensor([90, 91, 92, 5]), 6
    write(store, [0] * 40, states, ids)

    def first(task: str | None) -> int:
        ask = question([0], BLOCK, states=asked, token_ids=ids[[30]], task=task, located=True)
        found = make_strategy("task_specific", Parts(CONFIG)).score(ask, store)
        return int(found.passages.argmax())

    assert first("code") in (29, 30)
    assert first(None) in (11, 12)


def test_a_task_of_ones_own() -> None:
    store, asked = contradicting()
    weights = {"similarity": 0.01, "recency": 0.99}
    register_task("diary", TaskSettings("multi_criteria", criteria_weights=weights))
    assert "diary" in tasks._TASKS
    assert best("diary", store, asked) == 59
    register_task("diary", TaskSettings())
    assert best("diary", store, asked) in (19, 20)


def test_settings_stand_over_those_of_the_configuration() -> None:
    config = RetrievalConfig(strategy="task_specific", blocks=3, neighbours=2, ratio=0.5)
    summary = settings_of("summarising").over(config)
    assert (summary.strategy, summary.blocks, summary.gain) == ("multi_criteria", 8, 0.0)
    assert (summary.neighbours, summary.ratio) == (2, 0.5)
    assert summary.criteria_weights == (("similarity", 1.0),)
    assert settings_of(None).over(config) == RetrievalConfig(blocks=3, neighbours=2, ratio=0.5)


def test_a_summary_takes_all_that_is_said_of_something() -> None:
    """Eight passages say the same: they explain nothing new, and a summary reads them all."""
    store, states = store_of(80), torch.randn(80, BLOCK, HIDDEN)
    said = range(4, 80, 10)
    for block in said:
        states[block] = states[4] + 0.1 * torch.randn(BLOCK, HIDDEN)
    write(store, [0] * 80, states)
    config = replace(CONFIG, neighbours=0, threshold=0.0)

    def found(task: str | None) -> int:
        ask = question([0], BLOCK, states=states[[4]], task=task, located=True)
        table = Retriever(config).search(ask, store).table
        return len(set(said) & set(table.flatten().tolist()))

    assert found("summarising") == 8 and found(None) <= CONFIG.blocks


def test_what_is_forgotten_is_forgotten_by_the_strategy_of_a_task() -> None:
    told = []

    class Keeping(Semantic):
        def follow(self, store) -> None:
            told.append(store)

        def close(self) -> None:
            told.append("closed")

    register_strategy("keeping", lambda parts: Keeping())
    register_task("kept", TaskSettings("keeping"))
    store, _ = contradicting()
    search = Retriever(CONFIG)
    search.search(question([0], task="kept"), store)
    search.forget(store)
    search.close()
    assert told == [store, "closed"]


def test_an_unknown_task_is_refused() -> None:
    store, _ = contradicting()
    ask = question([0], task="sumarising")
    with pytest.raises(ConfigError, match=r"task: one of .*did you mean 'summarising'"):
        Retriever(CONFIG).search(ask, store)
    buffer = LayeredMemoryBuffer(8, 80)
    buffer.store_state(torch.randn(HIDDEN), 0, 0, 0, 0.5)
    context = RetrievalContext(0, 0, torch.randn(1, HIDDEN), task_type="no such task")
    with pytest.raises(ConfigError, match="task: one of"):
        AdvancedMemoryRetriever(HIDDEN, buffer).retrieve_memories(context, "task_specific")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "task_specific"}, "another strategy's name"),
        ({"blocks": 0}, r"blocks: an integer in 1\.\.64 expected, got 0"),
        ({"neighbours": 9}, r"neighbours: an integer in 0\.\.8 expected, got 9"),
        ({"gain": 1.5}, r"gain: a number in \[0, 1\] expected, got 1.5"),
        ({"criteria_weights": {"novelty": 1.0}}, "criteria_weights key"),
        ({"ensemble_weights": {"lexicl": 1.0}}, "did you mean 'lexical'"),
    ],
)
def test_bad_settings_are_refused(given, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TaskSettings(**given)


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task: a name expected, got ''"):
        register_task("", TaskSettings())
    with pytest.raises(TypeError, match="settings: a TaskSettings expected, got dict"):
        register_task("mine", {})  # type: ignore[arg-type]
    register_task("mine", TaskSettings("no such strategy"))
    with pytest.raises(ConfigError, match="strategy: one of"):
        make_strategy("task_specific", Parts(CONFIG)).strategy("mine")  # type: ignore[attr-defined]
