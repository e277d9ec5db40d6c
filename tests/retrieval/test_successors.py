"""Next-token memory in tensors: against loops over single tokens, and where it must keep silent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cmr.config.topics import NextTokenConfig
from cmr.errors import ConfigError
from cmr.retrieval import successors as next_token
from cmr.retrieval.successors import (
    Proposal,
    Successors,
    compared_layers,
    interpolate,
    propose,
    unit,
    what_follows,
)
from tests.retrieval.stored import BLOCK, store_of, write

ON = NextTokenConfig(knn=True)


def stored(batch: int = 2, many: int = 9, layers: int = 2, width: int = 6) -> Successors:
    keys = [torch.randn(batch, many, width) for _ in range(layers)]
    return Successors(
        tuple(torch.nn.functional.normalize(key, dim=-1) for key in keys),
        torch.randint(5, (batch, many)),
        torch.arange(many).expand(batch, -1),
        torch.randint(5, (batch, many)),
        torch.rand(batch, many) < 0.7,
        torch.tensor([2.5, 1.5])[:batch],
    )


def alike(memory: Successors, tokens: int) -> torch.Tensor:
    """Runs of no equal token."""
    return torch.zeros(len(memory.mask), tokens, memory.mask.shape[1])


def silent(tokens: int = 3, batch: int = 2, k: int = 4) -> Proposal:
    shares = torch.full((batch, tokens, k), 1 / k)
    return Proposal(torch.randint(50, (batch, tokens, k)), shares, torch.zeros(batch, tokens))


def test_what_follows_goes_on_in_the_next_block_of_the_text() -> None:
    store = store_of(8)
    mine, other = write(store, [0, 0]), write(store, [1])
    table = torch.stack([mine, torch.tensor([int(other[0]), -1])])
    seen = (store.positions[table.clamp(min=0)] >= 0) & (table >= 0)[..., None]
    ids, known = what_follows(table, store.columns, seen.flatten(1))
    said = store.token_ids[mine].flatten()
    assert ids[0, :-1].tolist() == said[1:].tolist()
    assert known[0].tolist() == [True] * (2 * BLOCK - 1) + [False]  # nothing came behind it
    assert known[1].tolist() == [True] * (BLOCK - 1) + [False] * (BLOCK + 1)
    assert not ids[~known].any()


def test_the_text_of_another_session_never_goes_on() -> None:
    """What is in slot 0 stands where the text would go on, and no link leads there."""
    store = store_of(8)
    other, mine = write(store, [1]), write(store, [0])
    assert other.tolist() == [0]
    store.positions[0] += BLOCK
    ids, known = what_follows(mine[None], store.columns, torch.ones(1, BLOCK).bool())
    assert known[0].tolist() == [True] * (BLOCK - 1) + [False]
    assert ids[0, -1] == 0


@pytest.mark.parametrize("hole", ["in the block", "behind the block", "forgotten"])
def test_a_token_whose_follower_is_not_stored_has_none(hole: str) -> None:
    store = store_of(8)
    slots = write(store, [0, 0])
    if hole == "forgotten":
        store.empty(slots[1:])
    else:
        row, column = (0, 2) if hole == "in the block" else (1, 0)
        store.positions[slots[row], column] = -1
        store.token_ids[slots[row], column] = 0
    seen = (store.positions[slots[:1]] >= 0).flatten()[None]
    ids, known = what_follows(slots[None, :1], store.columns, seen)
    want = [True, False, False, True] if hole == "in the block" else [True, True, True, False]
    assert known[0].tolist() == want
    assert not ids[~known].any()


def test_a_proposal_is_what_loops_over_single_tokens_say() -> None:
    memory, config = stored(), NextTokenConfig(knn=True, knn_neighbours=3, knn_temperature=0.1)
    queries = [torch.nn.functional.normalize(torch.randn(2, 4, 6), dim=-1) for _ in range(2)]
    queries[0][0, 0], queries[1][0, 0] = memory.keys[0][0, 0], memory.keys[1][0, 0]
    memory.mask[0, 0] = True
    queries[0][1, 0] = queries[1][1, 0] = 0.0  # all as far away as what is masked could seem
    memory.mask[1, 0], memory.mask[1, 1:] = False, True
    runs = torch.randint(5, (2, 4, 9)).float()
    runs[:, 0] = 0
    said = propose(queries, memory, config, runs)
    for row in range(2):
        asked = (0.7, 0.7 + 0.5 * (1.8 - 1.5) / 0.6)[row]
        for token in range(4):
            fits = {
                at: sum(
                    float(q[row, token] @ key[row, at])
                    for q, key in zip(queries, memory.keys, strict=True)
                )
                / 2
                for at in range(9)
                if memory.mask[row, at]
            }
            mean = sum(fits.values()) / len(fits)
            total = {at: fit + 0.5 * float(runs[row, token, at]) / 4 for at, fit in fits.items()}
            best = sorted(total, key=total.__getitem__, reverse=True)[:3]
            fit = (fits[best[0]] - mean) / (1 - mean) + total[best[0]] - fits[best[0]]
            gate = 0.9 * min(1.0, max(0.0, (fit - asked) / 0.2))
            powers = [math.exp(total[at] / 0.1) for at in best]
            assert said.gate[row, token] == pytest.approx(gate, abs=1e-5)
            ids = memory.token_ids[row, best]
            assert said.token_ids[row, token].tolist() == ids.tolist()
            want = torch.tensor(powers) / sum(powers)
            torch.testing.assert_close(said.shares[row, token], want, rtol=1e-4, atol=1e-6)
    assert said.gate[0, 0] == pytest.approx(0.9), "what fits exactly is told at full weight"


def test_of_equals_the_earlier_stored_token_wins() -> None:
    memory = stored(batch=1)
    keys = tuple(key[:, :1].expand(-1, 9, -1) for key in memory.keys)
    memory = replace(
        memory, keys=keys, token_ids=torch.arange(9)[None], mask=torch.ones(1, 9).bool()
    )
    said = propose([key[:, :1] for key in keys], memory, ON, alike(memory, 1))
    assert said.token_ids[0, 0].tolist() == list(range(9))


def test_tokens_that_may_not_read_and_rows_without_memory_get_nothing() -> None:
    memory = stored()
    memory.mask[0], memory.mask[1] = True, False
    memory.keys[0][1] = float("nan")  # what is not there may hold anything
    queries = [key[:, :3].nan_to_num(0.0) for key in memory.keys]
    said = propose(queries, memory, ON, alike(memory, 3), torch.tensor([[True, False, True]] * 2))
    assert (said.gate[0] > 0).tolist() == [True, False, True]
    assert not said.gate[1].any()
    assert not said.shares.isnan().any()


def test_the_less_certain_the_search_the_better_a_token_must_fit() -> None:
    fit = torch.linspace(0, 1.5, 50)[None].expand(3, -1)
    gates = next_token._gate(fit, torch.tensor([0.9, 1.5, 2.0]), ON)
    opens = [float(fit[row][gates[row] > 0].min()) for row in range(3)]
    assert opens[0] > opens[1] > opens[2] > 0.7
    assert opens[0] > 1.2
    assert gates[2, -1] == pytest.approx(0.9)


def test_keys_and_values_each_make_half_of_the_cosine() -> None:
    keys, values = torch.randn(1, 2, 5, 4), 100 * torch.randn(1, 2, 5, 8)
    rows = unit(keys, values)[0]
    assert rows.shape == (5, 24)
    flat = [x[0].transpose(0, 1).flatten(1) for x in (keys, values)]
    want = sum(torch.cosine_similarity(x[0], x[3], dim=0) for x in flat) / 2
    assert rows[0] @ rows[3] == pytest.approx(float(want), abs=1e-6)


def test_a_run_is_of_tokens_that_stand_side_by_side_in_both_texts() -> None:
    own = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7]])
    places = torch.tensor([[0, 1, 2, 3, 4, 40, -1, 42]])  # one is not there, and a passage ends
    memory = replace(stored(batch=1, many=8), own_ids=own, places=places)
    runs = memory.runs(torch.tensor([[4, 5, 6, 7, 8, 9]]))[0]
    assert runs[1].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert runs[3].tolist() == [0, 0, 3, 0, 0, 0, 0, 1]
    assert runs[5].tolist() == [0, 0, 0, 0, 4, 0, 0, 0], "no more than four count"
    assert not runs[0].any()


def test_what_came_as_embeddings_has_no_follower() -> None:
    store = store_of(8)
    slots = write(store, [0], ids=torch.tensor([[0, 0, 0, 3]]))
    _, known = what_follows(slots[None], store.columns, torch.ones(1, BLOCK).bool())
    assert known[0].tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpolated_logits_are_the_mixture(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(2, 3, 50)).to(dtype)
    said = silent()
    said.gate[0, 1], said.gate[1, 2] = 0.6, 0.3
    before = logits.clone()
    mixed, share = interpolate(logits, said)
    assert torch.equal(logits, before)
    assert mixed.dtype == dtype
    assert torch.equal((share > 0), (said.gate > 0))
    for row, token in ((0, 1), (1, 2)):
        own = logits[row, token].double().softmax(-1)
        memory = torch.zeros(50, dtype=torch.float64)
        for at, weight in zip(said.token_ids[row, token], said.shares[row, token], strict=True):
            memory[at] += weight
        gate = said.gate[row, token] * (own[memory.argmax()] / own.max()) ** next_token.DOUBT
        assert share[row, token] == pytest.approx(float(gate), rel=1e-3)
        want = (1 - gate) * own + gate * memory
        error = (mixed[row, token].double().softmax(-1) - want).abs().max()
        assert error < (1e-6 if dtype == torch.float32 else 1e-2)
    quiet = said.gate == 0
    assert torch.equal(mixed[quiet], logits[quiet])


def test_logits_are_the_same_object_where_nothing_fits() -> None:
    logits = torch.randn(2, 3, 50)
    assert interpolate(logits, silent())[0] is logits


def test_what_is_forbidden_stays_forbidden() -> None:
    logits = torch.randn(1, 1, 50)
    logits[..., 7] = -torch.inf
    said = Proposal(torch.full((1, 1, 2), 7), torch.full((1, 1, 2), 0.5), torch.ones(1, 1))
    assert torch.equal(interpolate(logits, said)[0], logits)


def test_the_weight_of_memory_is_no_way_round_a_gradient() -> None:
    logits = torch.randn(1, 2, 50, requires_grad=True)
    said = silent(tokens=2, batch=1)
    said.gate[0, 0] = 0.5
    interpolate(logits, said)[0][..., 3].sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_layers_lie_late_and_must_be_stored() -> None:
    assert compared_layers(ON, range(4, 25), 30) == (18, 21, 24)
    assert compared_layers(ON, (2, 7), 12) == (7,)
    assert compared_layers(NextTokenConfig(), range(30), 30) == ()
    assert compared_layers(NextTokenConfig(knn=True, knn_weight=0), range(30), 30) == ()
    named = NextTokenConfig(knn=True, knn_layers=(5, 3))
    assert compared_layers(named, range(8), 30) == (3, 5)
    with pytest.raises(ConfigError, match=r"\[2, 4\].*\[3, 5\].*\[3, 5\] store nothing"):
        compared_layers(named, (2, 4), 30)


def test_the_given_rows_are_selected() -> None:
    memory = stored()
    other = memory.select(torch.tensor([1, 1, 0]))
    assert torch.equal(other.keys[1][0], memory.keys[1][1])
    assert torch.equal(other.mask[2], memory.mask[0])
    assert other.certainty.tolist() == [1.5, 1.5, 2.5]
