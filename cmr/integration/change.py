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

# Settings of how much of what is recalled is read.
RECONSTRUCTION = ("reconstruction_method", "max_memory_tokens", "compression_ratio")
# Settings that may change; the others shape the store or the hooks.
CHANGEABLE = (*PER_REQUEST, "relevance_threshold", "scoring_method", *RECONSTRUCTION)


def change(core: Core, settings: dict[str, Any]) -> CMRConfig:
    """Let a running memory follow some new settings, see `Memory.change`; gives all that hold."""
    for name in settings:
        check.choice("a setting that may change while attached", name, CHANGEABLE)
    old, new = core.config, core.config.with_overrides(**settings)
    # Only what reads these settings is made anew; the store and the hooks are as they were built.
    core.retriever = core.retriever_with(
        {name: getattr(new.retrieval, name) for name in PER_REQUEST}
    )
    core.reducer = Reducer(core.ring, new.reweave)
    keeper = core.keeper
    keeper.policy = replace(keeper.policy, threshold=new.memory.relevance_threshold)
    # What was learnt of one method's scale says nothing of another's; relevance that blocks have
    # already is kept.
    if new.memory.scoring != old.memory.scoring:
        core.scorer = BlockScorer(core.adapter, new, core.layout.index_layer)
    core.config = new
    return new
