"""The page of all settings, made of the dataclasses that check them.

A setting's default, its range and what it means are read from `cmr.config` and
`cmr.serving.settings`, whether it may change later from what `Memory.change` and `Memory.retrieval`
take. Only what no dataclass knows is written here: which settings nothing looks at until another
one is set.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from cmr.config import TOPICS, CMRConfig
from cmr.config.topics import known_strategies
from cmr.integration.change import CHANGEABLE
from cmr.retrieval.retriever import PER_REQUEST
from cmr.serving.settings import ServerSettings

PAGE, MARK = "settings.md", "<!-- settings -->"
TITLES = {
    CMRConfig: "The whole",
    TOPICS["memory"]: "What is stored",
    TOPICS["retrieval"]: "How it is found",
    TOPICS["reweave"]: "How it is read",
    TOPICS["next_token"]: "Next-token memory",
    TOPICS["optimization"]: "Helpers",
    ServerSettings: "A server",
}
"""Each class of settings, and the heading over it."""
FIRST_SET: dict[str, dict[str, Any]] = {
    "long_term_store": {"long_term_budget": 100_000},
    "long_term_folder": {"long_term_budget": 100_000},
    "recall_context": {"long_term_budget": 100_000},
    "criteria_weights": {"strategy": "multi_criteria"},
    "max_clusters": {"strategy": "hierarchical"},
    "context_heads": {"strategy": "contextual_relevance"},
    "knn_layers": {"knn": True},
    "knn_weight": {"knn": True},
    "knn_threshold": {"knn": True},
    "knn_neighbours": {"knn": True},
    "knn_temperature": {"knn": True},
}
"""Settings that nothing looks at, and what it takes so that something does."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page of settings with all of them in the place of its mark."""
    if page.file.src_uri != PAGE:
        return markdown
    before, mark, behind = markdown.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE}: a line {MARK} expected, where the settings go")
    return before + "\n".join(lines()) + behind


def lines() -> Iterator[str]:
    """All settings as Markdown, a heading each."""
    for kind, title in TITLES.items():
        yield f"## {title}\n"
        yield f"`{kind.__module__}.{kind.__qualname__}`\n"
        described = meanings(kind)
        for item in dataclasses.fields(kind):
            if not item.metadata:
                continue  # a topic, which has a heading of its own
            yield f"### {item.name} {{ #{anchor(kind, item.name)} }}\n"
            yield f"Default `{item.default!r}`. Range: {range_of(item)}. {when(kind, item.name)}\n"
            if item.name in described:
                yield f"{described[item.name]}\n"


def anchor(kind: Any, name: str) -> str:
    """The address of a setting on the page."""
    return f"server-{name}" if kind is ServerSettings else name


def meanings(kind: Any) -> dict[str, str]:
    """Setting to its sentences in the docstring of its class, with names as code."""
    text = inspect.cleandoc(kind.__doc__).partition("Attributes:\n")[2].partition("\nRaises:")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: _plain(" ".join(words.split())) for name, words in found}


def _plain(words: str) -> str:
    words = re.sub(r"'([^' ]+)'", r"`'\1'`", words)
    return words[0].upper() + words[1:]


def range_of(item: dataclasses.Field[Any]) -> str:
    """What a setting may be, in words; a check that has none here is a KeyError."""
    check = item.metadata["check"].__name__
    words = RANGES[check](*item.metadata["arguments"])
    return f"`None`, or {words}" if item.default is None else words


def _between(low: Any, high: Any = None) -> str:
    return f"{low:,} or more" if high is None else f"{low:,} to {high:,}"


def _names(*names: str) -> str:
    return ", ".join(f"`{name!r}`" for name in names)


RANGES: dict[str, Callable[..., str]] = {
    "integer": lambda low, high=None: f"an integer, {_between(low, high)}",
    "real": lambda low, high=None: f"a number, {_between(low, high)}",
    "auto_or_real": lambda low, high: f"`'auto'`, or a number, {_between(low, high)}",
    "share": lambda: "a number above 0, at most 1",
    "positive": lambda: "a number above 0",
    "lifetime": lambda: "seconds, above 0",
    "flag": lambda: "`True` or `False`",
    "choice": lambda allowed: _names(*allowed),
    "layers": lambda: "layer numbers from 0 on, each once",
    "text": lambda expected: "a name",
    "weights": lambda names: f"a dict of weights of {_names(*names)}",
    "budget_of": lambda least: f"tokens, {least} or more, or a size such as `'2GB'`",
    "_strategy": lambda: f"{_names(*known_strategies())}, or one of your own",
    "_calibration": lambda: "`'auto'`, `'sampled'`, `'none'`, or the path of a file",
}
"""Name of a check to a function of its arguments, which says what it lets pass."""


def when(kind: Any, name: str) -> str:
    """When a setting can be set, and what it takes for it to matter."""
    if kind is ServerSettings:
        return "Set when the server starts."
    if name in PER_REQUEST:
        said = "Set at attach, by `memory.change`, or for some requests by `memory.retrieval`."
    elif name in CHANGEABLE:
        said = "Set at attach, or by `memory.change`."
    else:
        said = "Set at attach."
    needed = FIRST_SET.get(name, {})
    given = ", ".join(f"`{other}={value!r}`" for other, value in needed.items())
    return f"{said} Matters only with a setting such as {given}." if given else said
