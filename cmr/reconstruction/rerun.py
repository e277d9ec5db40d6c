"""States of stored tokens, computed anew by the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from cmr.errors import ConfigError
from cmr.memory.entry import MemoryEntry
from cmr.reconstruction.gathered import Gathered


def run_again(model: Any, gathered: Gathered, entries: Sequence[MemoryEntry]) -> Gathered:
    """The same tokens with states from a forward of the model over each run of text.

    A beginning-of-text token goes in front of each, where the model has one, as its attention sink.
    A memory that is attached to the model rests meanwhile.

    Args:
        model: a transformers decoder that gives `hidden_states`.
        gathered: of the entries.
        entries: with a token id for each of their states.

    Raises:
        ConfigError: an entry does not say which tokens it is of.
    """
    for i in sorted(set(gathered.sources.tolist())):
        tokens = 1 if entries[i].hidden_state.ndim == 1 else len(entries[i].hidden_state)
        if len(entries[i].token_ids) != tokens:
            raise ConfigError(
                f"reconstruction_method='recompute': entries with the ids of their tokens "
                f"expected, got {len(entries[i].token_ids)} ids for {tokens} states"
            )
    begin = getattr(model.config.get_text_config(decoder=True), "bos_token_id", None)
    front = [begin] if isinstance(begin, int) else []
    device = model.get_input_embeddings().weight.device
    states = torch.empty_like(gathered.states)
    with _resting(model), torch.no_grad():
        for run in range(int(gathered.runs.max()) + 1 if len(gathered.runs) else 0):
            rows = (gathered.runs == run).nonzero()[:, 0]
            places = gathered.sources[rows].unique_consecutive().tolist()
            ids = front + [token for i in places for token in entries[i].token_ids]
            found = model(
                input_ids=torch.tensor([ids], device=device),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states[int(gathered.layers[rows[0]])]
            states[rows.to(states.device)] = found[0, len(front) :].to(states)
    return replace(gathered, states=states)


@contextmanager
def _resting(model: Any) -> Iterator[None]:
    """A memory attached to the model neither captures nor recalls inside."""
    memory = getattr(model, "_cmr_memory", None)
    if memory is None or not memory.stats()["active"]:
        yield
        return
    memory.pause()
    try:
        yield
    finally:
        memory.resume()
