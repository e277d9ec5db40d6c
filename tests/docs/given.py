"""What the documents' blocks take for given, and the little that is changed in them to be run."""

from __future__ import annotations

import dataclasses
import time
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

import cmr
from tests.docs.blocks import Block

TEXT = "The village clock was repaired by Marta Lindqvist. My address is 5 Quay Street. " * 4

HUB = {
    ...: "llama",
    "mistralai/Ministral-8B-Instruct-2410": "mistral",
    "openai-community/gpt2": "gpt2",
    "gpt2": "gpt2",
}
"""Names of hub models in the documents, and the family of the tiny decoder in their place."""

SMALLER = (
    # Stores of gigabytes are laid out at once: the same tiers, a thousandth as large.
    ('budget="2GB"', 'budget="2MB"'),
    ('working_budget="8GB"', 'working_budget="8MB"'),
    ("long_term_budget=10_000_000", "long_term_budget=10_000"),
    ("max_new_tokens=32", "max_new_tokens=4"),
)
"""Sizes that would only take time and room here; the settings' names and kinds are the same."""

WITHOUT_GPU = (('device="cuda"', 'device="cpu"'),)
"""Changed where there is no GPU."""


class Given:
    """Values of names that a block uses and does not make itself.

    Args:
        load: gives the model and the tokenizer of a family.
    """

    def __init__(self, load: Callable[[str], tuple[Any, Any]]) -> None:
        self._load = load
        self._made: dict[str, Any] = {}

    def __call__(self, block: Block, name: str) -> Any:
        """The value of a name in a block.

        Raises:
            KeyError: nothing gives it.
        """
        makers = {**EVERYWHERE, **IN_FILE.get(block.file, {}), **IN_BLOCK.get(block.name, {})}
        if name not in self._made:
            self._made[name] = makers[name](self)
        return self._made[name]

    def family(self, name: str) -> tuple[Any, Any]:
        return self._load(name)

    def ids(self, text: str) -> torch.Tensor:
        return self._load("llama")[1](text, return_tensors="pt").input_ids

    def inputs(self, text: str) -> dict[str, Any]:
        """What `model.generate(**question)` takes, for a few tokens."""
        return {**self._load("llama")[1](text, return_tensors="pt"), "max_new_tokens": 4}

    def memory(self) -> cmr.Memory:
        """A memory in which anna has text."""
        model, tokenizer = self._load("llama")
        memory = cmr.attach(model, tokenizer=tokenizer, window=64, budget=4096)
        with memory.session("anna", create=True):
            memory.read(self.ids(TEXT))
        return memory

    def saved(self) -> cmr.Memory:
        """The same, after ben's was saved."""
        memory = self.memory()
        memory.rename("anna", "ben")
        memory.save("ben.cmr", sessions=["ben"])
        memory.rename("ben", "anna")
        return memory


Makers = dict[str, Callable[[Given], Any]]

EVERYWHERE: Makers = {
    "torch": lambda _: torch,
    "cmr": lambda _: cmr,
    "model": lambda given: given.family("llama")[0],
    "tok": lambda given: given.family("llama")[1],
    "tokenizer": lambda given: given.family("llama")[1],
    "memory": Given.memory,
    "book": lambda _: TEXT,
    "ids": lambda given: given.ids(TEXT),
    "mask": lambda given: torch.ones_like(given.ids(TEXT), dtype=torch.bool),
    "question": lambda given: given.inputs("Who repaired the village clock?"),
    "annas_letters": lambda given: given.ids(TEXT),
    "texts": lambda _: [TEXT, TEXT[:200]],
    "questions": lambda _: ["Who repaired the clock?", "Where do I live?"],
    "is_secret": lambda _: lambda ids: ids > 200,
}

CONFIG: dict[str, Any] = {"target_layers": [2, 4, 6], "buffer_size": 64}
HIDDEN = 768


def filled_buffer(_: Given) -> Any:
    """A stand-alone buffer with sixteen entries of layer 4 in sequence 1."""
    buffer = cmr.LayeredMemoryBuffer(max_entries_per_layer=64)
    states = torch.randn(16, HIDDEN)
    for position, state in enumerate(states):
        buffer.add_entry(
            cmr.MemoryEntry(
                hidden_state=state,
                layer_idx=4,
                sequence_id=1,
                position_idx=position,
                relevance_score=0.5,
                timestamp=float(position),
            )
        )
    return buffer


SPEC: Makers = {
    "input_ids": lambda _: torch.randint(3, 200, (1, 24)),
    "attention_mask": lambda _: torch.ones(1, 24, dtype=torch.int64),
    "config": lambda given: given.family("mistral")[0].config,
    "base_config": lambda given: given.family("mistral")[0].config,
    "memory_config": lambda _: dict(CONFIG),
    "cmr_config": lambda _: dict(CONFIG),
    "retrieval_config": lambda _: {"strategy": "multi_criteria", "similarity_threshold": -1.0},
    "optimization_config": lambda _: {
        "enable_adaptive_thresholds": True,
        "enable_batch_optimization": True,
        "enable_prefetching": True,
        "enable_background_optimization": True,
    },
    "hidden_size": lambda _: HIDDEN,
    "hidden_state": lambda _: torch.randn(HIDDEN),
    "hidden_states": lambda _: torch.randn(1, 24, HIDDEN),
    "layer_idx": lambda _: 4,
    "sequence_id": lambda _: 1,
    "seq_id": lambda _: 1,
    "position_idx": lambda _: 3,
    "relevance_score": lambda _: 0.5,
    "memory_buffer": filled_buffer,
    "time": lambda _: time,
    "dataclass": lambda _: dataclasses.dataclass,
    "Optional": lambda _: typing.Optional,
    "SimpleNamespace": lambda _: SimpleNamespace,
    "cmr_model": lambda given: cmr.FullCMRModel(given.family("mistral")[0].config, dict(CONFIG)),
}

IN_FILE: dict[str, Makers] = {
    f"docs/spec/{name}.md": SPEC
    for name in (
        "cmr-transformer",
        "integration-module",
        "models-module",
        "project-readme",
        "python-documentation",
    )
}
IN_FILE["docs/use.md"] = {
    "base_config": SPEC["base_config"],
    "input_ids": SPEC["input_ids"],
    "folder": lambda _: "full",
}
IN_FILE["docs/kernels.md"] = {
    "queries": lambda _: torch.randn(4, 64),
    "entries": lambda _: torch.randn(32, 64),
}

IN_BLOCK: dict[str, Makers] = {
    "README.md#1": {"question": lambda _: "Who repaired the village clock?"},
    "docs/memory.md#5": {"memory": Given.saved},
    **{
        f"docs/steering.md#{number}": {
            "model": lambda given: cmr.FullCMRModel(given.family("mistral")[0], dict(CONFIG)),
            "base_config": lambda given: given.family("mistral")[0].config,
            "input_ids": lambda _: torch.randint(3, 200, (2, 24)),
            "attention_mask": lambda _: torch.ones(2, 24, dtype=torch.int64),
        }
        for number in (2, 3)
    },
}
