"""What is asked decides how it is looked for: settings for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from cmr.config import CRITERIA, RetrievalConfig
from cmr.config import checks as check
from cmr.retrieval.ask import Ask, Scored, Searched, Strategy, tell
from cmr.retrieval.strategies.ensemble import PARTS

Weights = Mapping[str, float] | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TaskSettings:
    """How passages are looked for; see `RetrievalConfig` for the fields.

    Attributes:
        strategy: name of a strategy other than 'task_specific'.
        blocks, neighbours, gain: None: as the configuration says.
        criteria_weights: a dict, kept as its items. None: as the configuration says.
        ensemble_weights: for 'hybrid_ensemble', of 'semantic', 'contextual' and 'lexical'; a dict,
            kept as its items. None: those that suit most questions.

    Raises:
        ConfigError: a value is out of its range, or the strategy is 'task_specific' itself.
    """

    strategy: str = "maxsim"
    blocks: int | None = None
    neighbours: int | None = None
    gain: float | None = None
    criteria_weights: Weights | None = None
    ensemble_weights: Weights | None = None

    def __post_init__(self) -> None:
        """Checks every field. Whether there is such a strategy shows when it is made."""
        if not isinstance(self.strategy, str) or self.strategy == "task_specific":
            raise check.refuse("strategy", self.strategy, "another strategy's name")
        for name, low, high in (("blocks", 1, 64), ("neighbours", 0, 8)):
            value = getattr(self, name)
            if value is not None:
                check.put(self, name, check.integer(name, value, low, high))
        if self.gain is not None:
            check.put(self, "gain", check.real("gain", self.gain, 0.0, 1.0))
        for name, known in (("criteria_weights", CRITERIA), ("ensemble_weights", PARTS)):
            if getattr(self, name) is not None:
                check.put(self, name, check.weights(name, getattr(self, name), known))

    def over(self, config: RetrievalConfig) -> RetrievalConfig:
        """A configuration with what is set here in the place of what it says."""
        # The one field that a configuration has not; it reaches the strategy by its parts.
        names = (f.name for f in fields(self) if f.name != "ensemble_weights")
        said = {name: getattr(self, name) for name in names}
        return replace(config, **{name: x for name, x in said.items() if x is not None})


USUAL = "question_answering"
_TASKS: dict[str, TaskSettings] = {
    USUAL: TaskSettings(),
    # Of two statements that contradict each other the newer one holds (it is found first in 72 %
    # of the questions instead of 56 %: `benchmarks.retrieval.tasks`).
    "dialogue": TaskSettings(
        "multi_criteria", criteria_weights={"similarity": 0.7, "recency": 0.3}
    ),
    # All that is said of something: many passages, be they about the same words. A weight on
    # diversity loses some of what belongs to it.
    "summarising": TaskSettings(
        "multi_criteria", blocks=8, gain=0.0, criteria_weights={"similarity": 1.0}
    ),
    # Names in code are rare tokens: whether they are the very same counts. The line that defines
    # what is called is found first in 73 % of the questions instead of 50 %.
    "code": TaskSettings("hybrid_ensemble", ensemble_weights={"semantic": 1.0, "lexical": 1.0}),
}


def register_task(name: str, settings: TaskSettings) -> None:
    """Add a task, or change one. What was attached before keeps what it has used already.

    Args:
        name: what a request calls it.
        settings: how passages are looked for.

    Raises:
        ConfigError: the name is empty or no text.
        TypeError: the settings are none.
    """
    if not isinstance(name, str) or not name:
        raise check.refuse("task", name, "a name")
    if not isinstance(settings, TaskSettings):
        raise TypeError(f"settings: a TaskSettings expected, got {type(settings).__name__}")
    _TASKS[name] = settings


def settings_of(task: str | None) -> TaskSettings:
    """The settings of a task, of question answering for None; a ConfigError names the nearest."""
    return _TASKS[check.choice("task", USUAL if task is None else task, _TASKS)]


class TaskSpecific:
    """Looks for passages as the task of the request needs it."""

    def __init__(self, make: Callable[[TaskSettings], Strategy]) -> None:
        self._make = make
        self._made: dict[TaskSettings, Strategy] = {}

    def strategy(self, task: str | None) -> Strategy:
        """The strategy for a task, made when it is needed first."""
        settings = settings_of(task)
        # By settings and not by name: a task that is registered anew is followed at once.
        if settings not in self._made:
            self._made[settings] = self._make(settings)
        return self._made[settings]

    def settings(self, ask: Ask, config: RetrievalConfig) -> RetrievalConfig:
        """The settings of the search for what is asked; see `Strategy`."""
        return settings_of(ask.task).over(config)

    def follow(self, store: Searched) -> None:
        """Have the strategies that were made drop what is stored no more; see `Strategy`."""
        tell(self._made.values(), "follow", store)

    def close(self) -> None:
        """End what they do in the background."""
        tell(self._made.values(), "close")

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores of the task's strategy; see `Strategy`."""
        return self.strategy(ask.task).score(ask, store)
