"""What a GPU stores of layers that are written together is what a CPU stores of each by itself."""

from __future__ import annotations

import torch

from cmr.memory import BlockBatch, BlockStore, LayerShape, LayerSource
from tests.emulated.device import DEVICE, Device

CPU = torch.device("cpu")
BLOCK, HIDDEN, TOKENS, HEADS, DIM = 4, 12, 10, 2, 6
# Two kinds of rotation, layers without any, a layer of another shape, and states.
ROTARY = {1: "near", 2: "far", 3: "near", 5: None, 6: "near", 7: "far"}
WIDE, STATES = 4, 8
TOGETHER = [(1, 3, 6), (2, 7), (WIDE,), (5,), (STATES,)]


def store_on(device: torch.device) -> BlockStore:
    layers = {
        number: LayerShape(HEADS, DIM, DIM, torch.float32, device, rotary)
        for number, rotary in ROTARY.items()
    }
    layers[WIDE] = LayerShape(HEADS, 2 * DIM, DIM, torch.float32, device, "near")
    layers[STATES] = LayerShape(1, HIDDEN, 0, torch.float32, device)
    return BlockStore(
        slots=8,
        block_size=BLOCK,
        hidden=HIDDEN,
        layers=dict(sorted(layers.items())),
        index_dtype=torch.float32,
        device=device,
    )


def batch_on(device: torch.device) -> BlockBatch:
    """Two rows of one and a half blocks more than one."""
    generator = torch.Generator().manual_seed(1)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator).to(device)

    turns = {kind: (made(TOKENS, DIM), made(TOKENS, DIM)) for kind in ("near", "far")}
    layers = {
        number: LayerSource(
            made(HEADS, TOKENS, DIM), made(HEADS, TOKENS, DIM), rotary and turns[rotary]
        )
        for number, rotary in ROTARY.items()
    }
    wide = made(HEADS, TOKENS, 2 * DIM)
    layers[WIDE] = LayerSource(wide, made(HEADS, TOKENS, DIM), turns["near"])
    layers[STATES] = LayerSource(made(1, TOKENS, HIDDEN))
    return BlockBatch(
        sessions=[0, 0, 1, 1],
        token_ids=torch.arange(2 * TOKENS).view(2, TOKENS).to(device),
        positions=torch.arange(TOKENS).expand(2, -1).to(device),
        index=made(TOKENS, HIDDEN),
        layers=layers,
        pick=torch.tensor([0, 2, 3, 4]),
    )


def test_layers_that_are_alike_are_written_in_one_go() -> None:
    with torch.no_grad(), Device().running() as device:
        here, there = store_on(CPU), store_on(DEVICE)
        here.add(batch_on(CPU))
        batch = batch_on(DEVICE)
        with device.counting() as count:
            slots = there.add(batch)
        assert [group.layers for group in there.together] == TOGETHER
        assert count.names["ring_write_heads"] == len(TOGETHER)
        assert list(here.parts[0]) == ["index", *(f"keys.{n}" for n in range(1, 9)),
                                       *(f"values.{n}" for n in range(1, 8))]  # fmt: skip
        for name, part in here.parts[0].items():
            assert part.is_contiguous(), f"{name}: a CPU writes each layer by itself"
            stored = there.parts[0][name].cpu()
            assert stored.equal(part), f"{name}: at {(stored != part).nonzero()[:1]}"
            assert bool(part[slots].any(-1).any()), f"{name}: nothing was stored"


def test_what_is_forgotten_of_one_layer_is_gone_of_all() -> None:
    with torch.no_grad(), Device().running():
        store = store_on(DEVICE)
        store.add(batch_on(DEVICE))
        store.clear(0)
        assert store.stored_tokens() == 2 * BLOCK
        for name, part in store.parts[0].items():
            rows = part.cpu().flatten(1).any(1).tolist()
            assert rows == [False, False, True, True] + [False] * 4, name
