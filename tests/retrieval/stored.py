"""Small stores with keys, tokens and several sessions, and questions about them."""

from __future__ import annotations

import torch

from cmr.memory import BlockBatch, LayerShape, LayerSource, Lower
from cmr.retrieval.ask import Ask
from tests.memory.kept import KeptStore

BLOCK, HIDDEN, HEADS, GROUPS, DIM, LAYER, WORDS = 4, 16, 4, 2, 8, 2, 60
CPU = torch.device("cpu")


def store_of(slots: int, keys: bool = True, working: int = 0) -> KeptStore:
    shape = LayerShape(GROUPS, DIM, DIM, torch.float32, CPU)
    return KeptStore(
        slots=slots,
        block_size=BLOCK,
        hidden=HIDDEN,
        layers={LAYER: shape} if keys else {},
        index_dtype=torch.float32,
        device=CPU,
        lower=Lower(working=working),
    )


def write(
    store: KeptStore,
    sessions: list[int],
    states: torch.Tensor | None = None,
    ids: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """Blocks for the sessions; what is not given is drawn. `keys`: `[n, GROUPS, BLOCK, DIM]`."""
    n = len(sessions)
    states = torch.randn(n, BLOCK, HIDDEN) if states is None else states
    ids = torch.randint(WORDS, (n, BLOCK)) if ids is None else ids
    keys = torch.randn(n, GROUPS, BLOCK, DIM) if keys is None else keys
    layers = {layer: LayerSource(keys, torch.zeros_like(keys)) for layer in store.keys}
    places = torch.arange(n * BLOCK).view(n, BLOCK)
    return store.write(BlockBatch(sessions, ids, places, states, layers))


def question(sessions: list[int], tokens: int = 3, **more) -> Ask:
    rows = len(sessions)
    given = {
        "states": torch.randn(rows, tokens, HIDDEN),
        "mask": None,
        "token_ids": torch.randint(WORDS, (rows, tokens)),
        "heads": {LAYER: torch.randn(rows, HEADS, tokens, DIM)},
    }
    return Ask(sessions=torch.tensor(sessions), **{**given, **more})
