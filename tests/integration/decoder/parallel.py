"""One process of a tensor-parallel model: what `test_tensor_parallel.py` starts several of.

Run as `python -m tests.integration.decoder.parallel FOLDER` in the environment that torchrun gives;
writes what the process found to `FOLDER/rank<n>.pt`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cmr
from tests.integration.tiny import READS_ALL, greedy, text

STORES = ("kv", "states", "tokens")


def answers(model: nn.Module, store: str) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Logits, generated tokens, and what the rows recalled."""
    ids = text(2, 40)
    with cmr.attach(model, **READS_ALL, window=64, store=store) as memory:
        memory.read(text(2, 96, seed=1))
        logits = model(ids).logits
        recalled = [[passage.token_ids for passage in row] for row in memory.recalled]
        return logits, greedy(model, ids, 6), recalled


def refused(folder: Path, model: nn.Module) -> str:
    """Why a saved memory cannot be loaded; empty where it can."""
    try:
        cmr.load(folder, model).detach()
    except cmr.ModelMismatchError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    import torch.distributed
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rank = int(os.environ["RANK"])
    plan = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, distributed_config=plan
    )
    found: dict[str, Any] = {store: answers(model, store) for store in STORES}
    with cmr.attach(model, **READS_ALL, window=64) as memory:
        memory.read(text(2, 96, seed=1))
        found["kv_heads"] = {keys.shape[1] for keys in memory._core.ring.keys.values()}
        memory.save(folder / f"rank{rank}")
        before = model(text(2, 40)).logits
    with cmr.load(folder / f"rank{rank}", model):
        found["loaded"] = torch.equal(model(text(2, 40)).logits, before)
    torch.distributed.barrier()  # the other one has saved, too
    found["of another process"] = refused(folder / f"rank{1 - rank}", model)
    found["of one process"] = refused(folder / "whole", model)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
