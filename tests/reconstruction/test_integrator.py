"""`ReconstructionIntegrator`: reconstructed states blended into hidden states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import cmr
from cmr.config import METHODS
from cmr.errors import ModelMismatchError

HIDDEN = 16


def of(states: torch.Tensor, weights: torch.Tensor | None = None, **known: Any) -> Any:
    """A reconstruction of those states."""
    n = len(states)
    parts = {
        "weights": torch.full((n,), 1 / max(1, n)) if weights is None else weights,
        "similarity": torch.zeros(n),
        "relevance": torch.full((n,), 0.5),
        "timestamp": torch.zeros(n, dtype=torch.float64),
        "passages": torch.zeros(n, dtype=torch.int64),
        "layers": torch.full((n,), 3),
        "sources": tuple((i,) for i in range(n)),
        "method": "weighted_sum",
    }
    return cmr.Reconstruction(states=states, **{**parts, **known})


def expected(h: torch.Tensor, memory: torch.Tensor, method: str, w: float) -> torch.Tensor:
    """One token, in float64."""
    h, memory = h.double(), memory.double()
    cosine = torch.stack([F.cosine_similarity(h, m, dim=0) for m in memory])
    if method == "attention":
        bias = math.log(w / (1 - w))
        logits = math.sqrt(len(h)) * torch.cat([cosine + bias / math.sqrt(len(h)), torch.ones(1)])
        return torch.softmax(logits, 0) @ torch.cat([memory, h[None]])
    m = torch.softmax(cosine, 0) @ memory
    if method == "residual":
        return h + w * m
    if method == "gated":
        unit = F.normalize(memory, dim=-1)
        others = (unit @ unit.T)[~torch.eye(len(memory), dtype=torch.bool)]
        floor = others.mean() + others.std(correction=0) * math.sqrt(2 * math.log(len(memory)))
        floor = floor.clamp(0, 1)
        w = w * float(((cosine.max() - floor) / (1 - floor)).clamp(0, 1))
    return (1 - w) * h + w * m


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_blend_is_its_equation(method: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 5, HIDDEN).to(dtype)
    memory = torch.cat([torch.randn(6, HIDDEN), hidden[1, 2:3].float() * 2])
    found = cmr.ReconstructionIntegrator(HIDDEN, method, 0.3)(hidden, memory)
    assert found.shape == hidden.shape and found.dtype == dtype
    for row in range(2):
        for token in range(5):
            want = expected(hidden[row, token], memory, method, 0.3)
            torch.testing.assert_close(found[row, token], want.to(dtype), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_without_memory_or_weight_no_bit_changes(method: str, dtype: torch.dtype) -> None:
    hidden, memory = torch.randn(2, 5, HIDDEN).to(dtype), torch.randn(7, HIDDEN)
    integrator = cmr.ReconstructionIntegrator(HIDDEN, method, 0.5)
    for nothing in (memory[:0], of(memory[:0]), [None, None], [of(memory[:0]), None]):
        assert torch.equal(integrator(hidden, nothing), hidden)
    hidden_away = integrator(hidden, memory, memory_mask=torch.zeros(7))
    assert torch.equal(hidden_away, hidden)
    assert torch.equal(cmr.ReconstructionIntegrator(HIDDEN, method, 0.0)(hidden, memory), hidden)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    some = integrator(hidden, torch.cat([memory, hidden[0].float()]), attention_mask=mask)
    assert torch.equal(some[mask == 0], hidden[mask == 0])
    assert not torch.equal(some, hidden)


def test_the_gate_is_shut_without_a_match_and_open_for_a_copy() -> None:
    memory = torch.eye(HIDDEN)[:8]
    hidden = torch.stack([torch.eye(HIDDEN)[12], 3 * memory[5]])[None]
    found = cmr.ReconstructionIntegrator(HIDDEN, "gated", 0.8)(hidden, memory)
    assert torch.equal(found[0, 0], hidden[0, 0])
    recalled = torch.softmax(memory[5] @ memory.T, 0) @ memory
    torch.testing.assert_close(found[0, 1], 0.2 * hidden[0, 1] + 0.8 * recalled)


def test_a_full_weight_of_attention_reads_memory_alone() -> None:
    hidden, memory = torch.randn(1, 3, HIDDEN), torch.randn(4, HIDDEN)
    found = cmr.ReconstructionIntegrator(HIDDEN, "attention", 1.0)(hidden, memory)
    cosine = F.normalize(hidden[0], dim=-1) @ F.normalize(memory, dim=-1).T
    torch.testing.assert_close(found[0], torch.softmax(4 * cosine, -1) @ memory)


@pytest.mark.parametrize("method", METHODS)
def test_each_row_reads_its_own_memory_alone(method: str) -> None:
    hidden = torch.randn(3, 5, HIDDEN)
    first, second = of(torch.randn(4, HIDDEN)), of(torch.randn(9, HIDDEN))
    integrator = cmr.ReconstructionIntegrator(HIDDEN, method, 0.6)
    found = integrator(hidden, [first, None, second])
    assert torch.equal(found[1], hidden[1])
    for row, memory in ((0, first), (2, second)):
        alone = integrator(hidden[row : row + 1], memory)
        torch.testing.assert_close(found[row : row + 1], alone)
    poisoned = integrator(hidden, [of(torch.full((4, HIDDEN), torch.nan)), None, second])
    assert torch.equal(poisoned[1:], found[1:])


def test_weights_multiply_what_a_token_sees() -> None:
    hidden, states = torch.randn(1, 2, HIDDEN), torch.randn(3, HIDDEN)
    integrator = cmr.ReconstructionIntegrator(HIDDEN, "weighted_sum", 0.5)
    only = integrator(hidden, of(states, torch.tensor([0.0, 1.0, 0.0])))
    torch.testing.assert_close(only, integrator(hidden, states[1:2]))
    twice = integrator(hidden, of(states, torch.tensor([0.5, 0.25, 0.25])))
    torch.testing.assert_close(twice, integrator(hidden, states[[0, 0, 1, 2]]))
    assert torch.equal(integrator(hidden, of(states)), integrator(hidden, states))


def test_a_reconstruction_says_how_it_is_summed() -> None:
    hidden, states = torch.randn(1, 2, HIDDEN), torch.randn(6, HIDDEN)
    integrator = cmr.ReconstructionIntegrator(HIDDEN, "weighted_sum", 1.0)
    runs = torch.tensor([0, 0, 0, 0, 1, 1])
    sums = {
        method: integrator(hidden, of(states, method=method, passages=runs))
        for method in ("weighted_sum", "attention", "hierarchical")
    }
    cosine = F.normalize(hidden[0], dim=-1) @ F.normalize(states, dim=-1).T
    torch.testing.assert_close(sums["weighted_sum"][0], torch.softmax(cosine, -1) @ states)
    torch.testing.assert_close(sums["attention"][0], torch.softmax(4 * cosine, -1) @ states)
    inner = torch.stack(
        [torch.softmax(cosine[:, p], -1) @ states[p] for p in (slice(4), slice(4, 6))]
    )
    outer = torch.softmax(F.cosine_similarity(hidden[0], inner, dim=-1), 0)
    torch.testing.assert_close(sums["hierarchical"][0], (outer[..., None] * inner).sum(0))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_states_and_memory(method: str) -> None:
    hidden = torch.randn(1, 3, HIDDEN, requires_grad=True)
    memory = torch.cat([torch.randn(5, HIDDEN), hidden.detach()[0]]).requires_grad_()
    cmr.ReconstructionIntegrator(HIDDEN, method)(hidden, memory).square().sum().backward()
    for tensor in (hidden, memory):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


def test_mistakes_show_both_sides() -> None:
    integrator = cmr.ReconstructionIntegrator(HIDDEN)
    assert (integrator.method, integrator.memory_weight) == ("weighted_sum", 0.3)
    hidden, memory = torch.randn(2, 3, HIDDEN), torch.randn(4, HIDDEN)
    with pytest.raises(ModelMismatchError, match="hidden_states: hidden size 16 expected, got 8"):
        integrator(hidden[..., :8], memory)
    with pytest.raises(ModelMismatchError, match="memory: hidden size 16 expected, got 8"):
        integrator(hidden, memory[:, :8])
    with pytest.raises(ValueError, match=r"\[batch, tokens, hidden\] expected, got \[3, 16\]"):
        integrator(hidden[0], memory)
    with pytest.raises(TypeError, match=r"a tensor of floats expected, got torch.int64"):
        integrator(hidden, memory.long())
    with pytest.raises(ValueError, match="a batch of 2 expected, got 3"):
        integrator(hidden, memory.expand(3, 4, HIDDEN))
    with pytest.raises(ValueError, match="2 reconstructions expected, one a row, got 1"):
        integrator(hidden, [of(memory)])
    with pytest.raises(TypeError, match="a Reconstruction for each row expected, got Tensor"):
        integrator(hidden, [memory, memory])
    with pytest.raises(ModelMismatchError, match="device cpu expected, got meta"):
        integrator(hidden, memory.to("meta"))
    with pytest.raises(ValueError, match=r"memory_mask: \[4\] expected, got \[3\]"):
        integrator(hidden, memory, memory_mask=torch.ones(3))
    with pytest.raises(ValueError, match="memory_mask: None expected"):
        integrator(hidden, of(memory), memory_mask=torch.ones(4))
    with pytest.raises(
        ValueError, match=r"one method expected, got \['attention', 'weighted_sum'\]"
    ):
        integrator(hidden, [of(memory), of(memory, method="attention")])
    with pytest.raises(ModelMismatchError, match=r"float32 .*expected, got torch.float16"):
        integrator(hidden, [of(memory), of(memory.half())])
    with pytest.raises(cmr.ConfigError, match=r"integration_method: .*'gated'.*got 'mlp'"):
        integrator.method = "mlp"
    with pytest.raises(cmr.ConfigError, match=r"memory_weight: a number in \[0, 1\].*got 1.5"):
        cmr.ReconstructionIntegrator(HIDDEN, memory_weight=1.5)
