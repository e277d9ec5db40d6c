"""`CMRConfig`: all settings of one attached memory.

`CMRConfig()` is the measured default. `CMRConfig.from_dict` takes plain dictionaries, nested by
topic or flat, and `with_overrides` changes single fields by name. A value that names something
this version does not implement parses, and `CMRConfig.unavailable` says so: attaching refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from cmr.config import checks as check
from cmr.config.topics import (
    MemoryConfig,
    NextTokenConfig,
    OptimizationConfig,
    RetrievalConfig,
    ReweaveConfig,
)
from cmr.errors import ConfigError

UNNAMED = ("row", "refuse")
REMEMBER = ("left", "all")
TOPICS = {
    "memory": MemoryConfig,
    "retrieval": RetrievalConfig,
    "reweave": ReweaveConfig,
    "next_token": NextTokenConfig,
    "optimization": OptimizationConfig,
}
# Names of nested dictionaries, and the topic of each.
SECTIONS = {
    f"{topic}{ending}": topic
    for topic in ("memory", "retrieval", "reweave", "next_token", "optimization")
    for ending in ("", "_config")
}
SECTIONS |= {"reconstruction": "reweave", "reconstruction_config": "reweave"}
SYNONYMS = {
    "buffer_size": "budget",
    "max_entries_per_layer": "budget",
    "max_states_per_layer": "budget",
    "retrieval_strategy": "strategy",
    "intervention_layers": "layers",
    "integration_method": "method",
}
# Upper bounds: given under several names, the least holds.
LEAST_HOLDS = {"budget"}


@dataclass(frozen=True)
class CMRConfig(check.Checked):
    """All settings of one attached memory.

    Attributes:
        window: tokens that the model sees locally, 16 or more, above `memory.sinks` and
            `reweave.sink_guard`; the model's own limit is checked at attach.
        memory: what is stored. A dict of its fields is taken too.
        retrieval: how blocks are found. Likewise.
        reweave: how they enter the model. Likewise.
        next_token: whether they say what comes next, too. Likewise.
        optimization: which helpers may steer. Likewise.
        unnamed: requests without a session: 'row' makes row i session `str(i)`, as scripts want it;
            'refuse' raises `SessionError`, as servers want it, where nobody may share a session by
            mistake.
        remember: 'left' makes memory of what leaves a window, 'all' also of what is still in it
            when a `generate` ends, so that the next one knows it.
        strict: False: where memory fails inside of a `generate` or a forward, the model answers
            without it, and the failure is counted (`memory.stats()["failures"]`) and logged; True
            raises it. What is asked for wrongly, and whose memory cannot be told, always raises.

        graphs: decoding steps are recorded as CUDA graphs and replayed, one for each number of
            rows. Refused where the model or a setting allows no step to be recorded; no GPU has
            run it yet.

    Raises:
        ConfigError: a value is unknown, of the wrong type or out of its range.
    """

    window: int = check.setting(512, check.integer, 16)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    reweave: ReweaveConfig = field(default_factory=ReweaveConfig)
    next_token: NextTokenConfig = field(default_factory=NextTokenConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    unnamed: str = check.setting("row", check.choice, UNNAMED)
    remember: str = check.setting("left", check.choice, REMEMBER)
    strict: bool = check.setting(False, check.flag)
    graphs: bool = check.setting(False, check.flag)

    def __post_init__(self) -> None:
        """Checks that each topic has its type, and that something fits between the sinks."""
        super().__post_init__()
        for topic, kind in TOPICS.items():
            if not isinstance(getattr(self, topic), kind):
                raise check.refuse(topic, getattr(self, topic), f"a {kind.__name__}")
        # Sinks never leave the window, and guarded tokens do not read: something must.
        least = max(self.memory.sinks, self.reweave.sink_guard)
        if self.window <= least:
            raise check.refuse(
                "window", self.window, f"more than the {least} tokens of sinks and sink_guard"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> CMRConfig:
        """Builds the settings from dictionaries, nested by topic or flat.

        Args:
            settings: field names, synonyms (`buffer_size`, `max_entries_per_layer` and
                `max_states_per_layer` for `budget`; `retrieval_strategy` for `strategy`;
                `intervention_layers` for `layers`; `integration_method` for `method`) and topics
                (`memory_config`, `retrieval_config`, `reconstruction_config`,
                `optimization_config`, or without `_config`). Inside `reconstruction_config`,
                `method` is `reconstruction_method`. Several names of the budget: the least holds.
                A budget below the default block size makes the blocks as small as itself.

        Raises:
            ConfigError: unknown key (names the nearest known one), one field given twice with
                different values, or a bad value.
        """
        return cls()._changed(resolve(settings, TOPICS))

    def with_overrides(self, **flat: Any) -> CMRConfig:
        """These settings with single fields changed, by the names that `from_dict` takes."""
        return self._changed(resolve(flat, TOPICS))

    def _changed(self, changes: dict[str, dict[str, Any]]) -> CMRConfig:
        # Whole blocks are stored: of a budget below one block nothing would ever be.
        memory = changes.get("memory", {})
        budget = memory.get("budget")
        if isinstance(budget, int) and 0 < budget < self.memory.block_size:
            memory.setdefault("block_size", budget)
        parts = {
            topic: replace(getattr(self, topic), **changes[topic])
            for topic in TOPICS
            if changes.get(topic)
        }
        return replace(self, **parts, **changes.get("", {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON; `from_dict` of them equals these settings."""
        plain = asdict(self)
        weights = plain["retrieval"]["criteria_weights"]
        if weights is not None:
            plain["retrieval"]["criteria_weights"] = dict(weights)
        for topic in TOPICS:
            plain[topic] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in plain[topic].items()
            }
        return plain

    def unavailable(self) -> list[str]:
        """One line for each value that is legal but not implemented in this version."""
        # They parse, as the specification's dictionaries have them all in one, and are refused
        # where they would be ignored.
        lines = []
        if self.memory.device is not None:
            device = self.memory.device
            lines.append(f"device: None expected, as memory lives with each layer, got {device!r}")
        lines += [
            f"optimization.{name}=True: an attached memory does not steer itself, give "
            "this to cmr.CMRPerformanceOptimizer(model, optimization_config), or to FullCMRModel"
            for name in fields_of(self.optimization)
            if getattr(self.optimization, name)
        ]
        return lines


def fields_of(kind: Any) -> tuple[str, ...]:
    """Field names of a dataclass or an instance of one."""
    return tuple(item.name for item in fields(kind))


def resolve(settings: Mapping[str, Any], topics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Topic ('' for those of the whole) -> field -> value, of what was given nested or flat."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings: a dict expected, got {type(settings).__name__}")
    home = {name: topic for topic, kind in topics.items() for name in fields_of(kind)}
    home |= dict.fromkeys(("window", "unnamed", "remember", "strict", "graphs"), "")
    found: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    for section, key, value in _flat(settings, topics):
        path = f"{section}.{key}" if section else key
        name = _field(section, key)
        if name not in home:
            known = {*home, *SYNONYMS} if section else {*home, *SYNONYMS, *SECTIONS}
            said = check.nearest(key, known, "help(cmr.CMRConfig) lists them")
            raise ConfigError(f"unknown setting {path}: {said}")
        # The same field may come twice, from two sections or by a synonym.
        topic = found.setdefault(home[name], {})
        if name in topic and not _same(topic[name], value):
            if name not in LEAST_HOLDS or not _numbers(topic[name], value):
                raise ConfigError(
                    f"{origin[name]}={topic[name]!r} and {path}={value!r} both set {name!r}: "
                    "one of them expected"
                )
            value = min(topic[name], value)
        topic[name], origin[name] = value, path
    return found


def _flat(settings: Mapping[str, Any], topics: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each setting as it was given: its section ('' for none), its key and its value."""
    for key, value in settings.items():
        if key not in SECTIONS:
            yield "", key, value
            continue
        if isinstance(value, topics.get(SECTIONS[key], ())):
            value = {name: getattr(value, name) for name in fields_of(value)}
        if not isinstance(value, Mapping):
            raise check.refuse(key, value, "a dict of settings")
        for inner, item in value.items():
            yield key, inner, item


def _field(section: str, key: str) -> str:
    """The field that a key means: the one word that two topics share is the section's own."""
    if section.startswith("reconstruction") and key == "method":
        return "reconstruction_method"
    return SYNONYMS.get(key, key)


def _same(first: Any, second: Any) -> bool:
    # 1 and True are equal, and say different things.
    return type(first) is type(second) and bool(first == second)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
