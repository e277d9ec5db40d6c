"""What a model class gives in one thread is of that thread's text, whatever runs beside it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from cmr import FullCMRModel
from tests.integration.tiny import text


def test_the_last_hidden_state_is_of_the_callers_own_forward(llama: nn.Module) -> None:
    model = FullCMRModel(llama, {"window": 64}, output_hidden_size=None)
    mine, other = text(1, 20, seed=1), text(1, 20, seed=2)
    want = model(mine, sessions="anna").last_hidden_state
    model.clear_memory()
    beside: list[torch.Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            beside.append(model(other, sessions="ben").last_hidden_state)

    def run_beside(*_: Any) -> None:
        """Behind the decoder and before the call has ended, once."""
        if threading.current_thread() is threading.main_thread() and not beside:
            thread = threading.Thread(target=forward)
            thread.start()
            thread.join()

    handle = llama.lm_head.register_forward_hook(run_beside)
    have = model(mine, sessions="anna").last_hidden_state
    handle.remove()
    model.cleanup_hooks()
    assert beside and not torch.equal(beside[0], want)
    assert torch.equal(have, want)
