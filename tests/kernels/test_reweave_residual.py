"""Stored states woven in, gathered and paged, against brute force in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.reweave_residual import reweave_residual_paged, weave_states
from tests.kernels.helpers.compare import assert_close, assert_error_at_most_twice
from tests.kernels.helpers.paged import Paged


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    steps=st.sampled_from([1, 4]),
    entries=st.sampled_from([1, 7, 63]),
    width=st.sampled_from([60, 100]),
    weight=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    temperature=st.sampled_from([0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_residual_matches_brute_force(
    batch, steps, entries, width, weight, temperature, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, steps, width, generator=rng)
    memory = torch.randn(batch, entries, width, generator=rng)
    mask = torch.rand(batch, entries, generator=rng) > 0.3
    mask[0] = False
    filled = memory.masked_fill(~mask[..., None], math.nan)
    out = weave_states(states, filled, mask, torch.full((batch,), weight), temperature)
    for b in range(batch):
        kept = memory[b][mask[b]].double()
        if not len(kept) or weight == 0:
            assert torch.equal(out[b], states[b])
            continue
        cosines = F.cosine_similarity(states[b].double()[:, None], kept[None], dim=-1)
        recalled = torch.softmax(cosines / temperature, -1) @ kept
        assert_close("out", out[b], (1 - weight) * states[b].double() + weight * recalled)


def test_residual_bfloat16_error_is_at_most_twice_the_naive() -> None:
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(2, 5, 576, generator=rng).bfloat16()
    memory = torch.randn(2, 200, 576, generator=rng).bfloat16()

    def blend(h, m):
        shares = torch.softmax(F.normalize(h, dim=-1) @ F.normalize(m, dim=-1).mT / 0.1, -1)
        return 0.7 * h + 0.3 * (shares @ m)

    everything = torch.ones(2, 200, dtype=torch.bool)
    have = weave_states(states, memory, everything, torch.tensor([0.3, 0.3]), 0.1)
    exact = blend(states.double(), memory.double())
    assert_error_at_most_twice("out", have, blend(states, memory), exact, 1e-3)


def stored(hidden: int, block: int, **settings):
    """States and the arguments that choose blocks of them; NaN in what cannot be read."""
    case = Paged.draw(1, 1, settings.pop("steps", 3), hidden, block, **settings)
    case.spoil()
    states, store = case.query[:, 0].contiguous(), case.key_store[:, 0].contiguous()
    return case, states, (store, case.table, case.stamps, case.created, case.positions)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("block", [1, 5, 32])
def test_paged_is_the_gathered_form_in_place(block, temperature, guarded) -> None:
    case, states, where = stored(60, block)
    weight = torch.tensor([0.3, 1.0])
    guard = torch.tensor([[True, False, True], [False] * 3]) if guarded else None
    memory = case.gathered()[0][:, 0]
    want = weave_states(states, memory, case.mask(), weight, temperature)
    if guard is not None:
        want = torch.where(guard[..., None], want, states)
    before = states.clone()
    have = reweave_residual_paged(states, *where, weight, temperature, guard)
    assert have is states and not torch.equal(states, before)
    assert_close("states", states, want)
    if guard is not None:
        assert torch.equal(states[~guard], before[~guard])


def test_paged_leaves_what_reads_nothing_bit_for_bit() -> None:
    case, states, where = stored(60, 8, dtype=torch.bfloat16)
    before = states.clone()
    case.table[0] = -1
    reweave_residual_paged(states, *where, torch.tensor([0.5, 0.0]))
    assert torch.equal(states, before)
    case.stamps += 1
    reweave_residual_paged(states, *where, torch.tensor([0.5, 0.5]))
    assert torch.equal(states, before)


def test_paged_leaves_all_where_nothing_is_chosen() -> None:
    case, states, (store, *_) = stored(60, 8)
    before, none = states.clone(), torch.empty(2, 0, dtype=torch.int64)
    weight = torch.tensor([0.5, 0.5])
    reweave_residual_paged(states, store, none, none, case.created, case.positions, weight)
    assert torch.equal(states, before)


def test_paged_is_a_well_formed_operation_and_compiles_as_one_graph() -> None:
    _, states, where = stored(60, 8)
    weight = torch.tensor([0.3, 0.5])
    given = (states.clone(), *where, weight, 1.0, None)
    torch.library.opcheck(torch.ops.cmr.reweave_residual_paged.default, given)
    want = reweave_residual_paged(states.clone(), *where, weight)
    compiled = torch.compile(reweave_residual_paged, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(states.clone(), *where, weight), want)


def test_paged_bad_input_is_named() -> None:
    _, states, where = stored(60, 8)
    weight = torch.tensor([0.3, 0.5])
    with pytest.raises(ValueError, match=r"store: shape \[slots, block, H=59\]"):
        reweave_residual_paged(states[..., :59], *where, weight)
    with pytest.raises(TypeError, match="weight: dtype"):
        reweave_residual_paged(states, *where, weight.double())
    with pytest.raises(ValueError, match="temperature: a number above 0 expected, got 0"):
        reweave_residual_paged(states, *where, weight, 0)
    with pytest.raises(ValueError, match="no gradient flows through states"):
        reweave_residual_paged(states.requires_grad_(), *where, weight)
