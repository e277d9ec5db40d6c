"""A decoding step whose tensors stay where they are, compiled as one graph, without a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cmr
from cmr.integration.hooks import graph, replays
from cmr.integration.reweave import recall
from tests.integration.tiny import READS_ALL, build, text

STEPS = 36


class Compiled:
    """Stands for a CUDA graph: the step compiled, without a break, for what each replay finds."""

    def __init__(self, body: Callable[[], Any], graphs: list[Any]) -> None:
        def keep(module: torch.fx.GraphModule, _: object) -> Any:
            graphs.append(module.graph)
            return module.forward

        self._body = torch.compile(body, fullgraph=True, backend=keep)
        self.result: Any = None

    def replay(self) -> None:
        self.result = self._body()


@torch.no_grad()
def decoded(family: str, graphs: bool) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits of a text that goes on, and what its memory counts."""
    model = build(family)
    settings = {**READS_ALL, "target_layers": [2, 3], "window": 40, "refresh": 8, "store": "kv"}
    with cmr.attach(model, **settings, graphs=graphs) as memory:
        memory.read(text(200))
        out, said = model(text(30, seed=4)[None], use_cache=True), []
        for _ in range(STEPS):
            following = out.logits[:, -1:].argmax(-1)
            out = model(following, past_key_values=out.past_key_values, use_cache=True)
            said.append(out.logits[:, -1])
        return torch.cat(said), memory.stats()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_step_is_one_graph(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """The decoder's layers, what they read of memory, and the window that a token is written to."""
    monkeypatch.setattr(recall, "in_place", lambda device: True)
    monkeypatch.setattr(replays, "require_fit", lambda core: None)
    found: list[Any] = []
    monkeypatch.setattr(graph, "record", lambda body, _: Compiled(body, found))
    plain, before = decoded(family, graphs=False)
    compiled, stats = decoded(family, graphs=True)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
    assert len(found) == 1, "one graph for all steps, whatever is searched or leaves in between"
    called = [str(node.target) for node in found[0].nodes if node.op == "call_function"]
    assert sum("reweave_paged" in name for name in called) == 2, "layers that read"
    assert stats["graphs"]["replayed"] == STEPS - 1 and not stats["graphs"]["plain"]
    assert stats["tokens"] == before["tokens"] > 200 and stats["searches"] > 4
