"""Settings of a memory that may change while it is attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cmr.config import CMRConfig
from cmr.config import checks as check
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.core import Core
from cmr.integration.reweave.reducer import Reducer
from cmr.retrieval.retriever import PER_REQUEST

RECONSTRUCTION = ("reconstruction_method", "max_memory_tokens", "compression_ratio")
"""Settings of how much of what is recalled is read."""
CHANGEABLE = {
    **dict.fromkeys(PER_REQUEST, "retrieval"),
    "relevance_threshold": "memory",
    "scoring_method": "memory",
    **dict.fromkeys(RECONSTRUCTION, "reweave"),
}
"""Settings that may change, by topic; the others shape the store or the hooks."""


def changed(config: CMRConfig, **settings: Any) -> CMRConfig:
    """The settings with some of `CHANGEABLE` changed, all checked.

    Raises:
        ConfigError: a setting is unknown, fixed while attached, or out of its range.
    """
    for name in settings:
        check.choice("a setting that may change while attached", name, CHANGEABLE)
    new = config.with_overrides(**settings)
    missing = new.unavailable()
    if missing:
        raise check.refuse("settings", settings, missing[0])
    return new


def change(core: Core, config: CMRConfig) -> None:
    """Let a running memory follow new settings, which differ from its own as `changed` allows.

    What a change of `scoring_method` has learnt of the scale of scores starts anew; relevance that
    blocks have already is kept.
    """
    old, core.config = core.config, config
    core.retriever = core.retriever_with(
        {name: getattr(config.retrieval, name) for name in PER_REQUEST}
    )
    core.reducer = Reducer(core.ring, config.reweave)
    keeper = core.ring.keeper
    keeper.policy = replace(keeper.policy, threshold=config.memory.relevance_threshold)
    if config.memory.scoring != old.memory.scoring:
        core.scorer = BlockScorer(core.adapter, config, core.layout.index_layer)
