"""When nobody wants a memory, and what is done then."""

from __future__ import annotations

import threading
import time

import pytest

import cmr
from cmr import BackgroundOptimizer, ComputationScheduler, ConfigError
from cmr.optimization.slack import Slack
from tests.integration.tiny import text


@pytest.fixture
def memory(llama):
    with cmr.attach(llama, window=64, budget=2048) as memory:
        memory.read(text(1, 256), sessions=["anna"])
        yield memory


def until(true, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(true())


def test_a_request_under_way_leaves_no_slack_between_its_steps(memory, llama) -> None:
    seen = []

    class Looks:
        def put(self, _) -> None:
            seen.append((slack.here, memory.quiet_seconds))

        def end(self) -> None: ...

    with Slack(memory, quiet=0.0) as slack:
        assert slack.here
        memory.session("anna").generate(text(1, 8), max_new_tokens=3, streamer=Looks())
        assert len(seen) > 2 and set(seen) == {(False, 0.0)}
        assert slack.here
    assert not memory._core.answers.on


def test_who_waits_gets_slack_when_it_was_quiet_for_long_enough(memory, llama) -> None:
    with Slack(memory, quiet=0.15) as slack:
        memory.session("anna").generate(text(1, 8), max_new_tokens=1)
        began = time.monotonic()
        assert slack.wait()
        assert 0.1 <= time.monotonic() - began < 5 and slack.waited == 1


def test_a_request_that_raises_is_over(memory, llama) -> None:
    def broken(*_, **__) -> None:
        raise RuntimeError("in the middle")

    with Slack(memory, quiet=0.0) as slack:
        with pytest.raises(RuntimeError, match="middle"):
            memory.session("anna").generate(text(1, 8), max_new_tokens=2, logits_processor=[broken])
        assert slack.here


def test_closing_lets_those_who_wait_go(memory) -> None:
    slack, found = Slack(memory, quiet=60.0), []
    thread = threading.Thread(target=lambda: found.append(slack.wait()))
    thread.start()
    slack.close()
    thread.join(5)
    assert found == [False]


def test_upkeep_waits_in_front_of_each_piece(memory) -> None:
    asked = []

    def upkeep(between) -> None:
        asked.append(between())

    slack = Slack(memory, quiet=0.0)
    with memory._core.lock, BackgroundOptimizer(upkeep, 0.01, slack) as background:
        time.sleep(0.1)
        assert not asked and not background.runs
        slack.close()
    # Closed while it waited, it has done nothing.
    assert not asked
    with Slack(memory, quiet=0.0) as slack, BackgroundOptimizer(upkeep, 0.01, slack) as background:
        assert until(lambda: background.runs)
        slack.close()
    assert asked[0] is True


def test_a_task_that_fails_is_logged_by_its_kind_and_others_go_on(memory, caplog) -> None:
    ran = []
    with Slack(memory, quiet=0.0) as slack:
        scheduler = ComputationScheduler(slack=slack)
        scheduler.submit("bad", lambda: {}["secret words"], priority=1)
        scheduler.submit("good", lambda: ran.append(1))
        assert until(lambda: ran)
        slack.close()
        scheduler.close()
    assert [r.message for r in caplog.records] == ["a deferred task failed with KeyError"]
    assert scheduler.waiting == []


def test_consolidation_ends_where_it_is_told_to(memory) -> None:
    memory.read(text(1, 256), sessions=["anna"])
    held = memory.tokens
    assert memory.consolidate(between=lambda: False).merged == 0 and memory.tokens == held
    pieces = []
    assert memory.consolidate(between=lambda: pieces.append(1)).merged > 0
    assert len(pieces) > 1


def test_copies_are_looked_for_again_when_something_was_stored(memory) -> None:
    while memory.consolidate().merged:
        pass
    pieces = []
    memory.consolidate(between=lambda: pieces.append(1))
    assert not pieces, "nothing was stored since: nothing is compared"
    memory.read(text(1, 256), sessions=["anna"])
    assert memory.consolidate().merged > 0


def test_a_negative_quiet_is_refused(memory) -> None:
    with pytest.raises(ConfigError, match="quiet"):
        Slack(memory, quiet=-1)
    assert not memory._core.answers.on
