"""Tokens that are written into a query, and what weighs their states."""

import pytest
import torch
import torch.nn.functional as F

from cmr.kernels.search.query import Places, weigh, write_query, write_query_
from tests.kernels.helpers.compare import assert_close
from tests.kernels.helpers.querying import places_of, tokens_of


def test_tokens_stand_at_their_places_and_nowhere_else() -> None:
    states, asks, ids, _ = tokens_of(2, 5, 24, 7)
    whole, places = places_of(2, 5, 24)
    write_query(places, states, asks, ids, 3)
    assert_close("states", places.states, F.normalize(states, dim=-1))
    assert not places.states[0, -1].any()
    assert torch.equal(places.asks, asks) and torch.equal(places.token_ids, ids)
    assert torch.equal(places.of, torch.where(asks, 3, -1))
    for held, before in zip(whole, (7.0, 55, 44, False), strict=True):
        assert (held[:, [0, 1, -1]] == before).all()


def test_without_a_mask_all_ask_and_without_ids_none_is_known() -> None:
    states, *_ = tokens_of(2, 3, 8, 4)
    _, places = places_of(2, 3, 8)
    write_query(places, states, None, None, 1)
    assert places.asks.all() and (places.of == 1).all() and (places.token_ids == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weighing_on_the_way_is_weighing_before(dtype: torch.dtype) -> None:
    states, asks, ids, weighing = tokens_of(2, 4, 24, 7, dtype)
    (_, one), (_, other) = places_of(2, 4, 24), places_of(2, 4, 24)
    write_query(one, states, asks, ids, 1, weighing)
    write_query(other, weigh(states, weighing), asks, ids, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24), (0, 24)])
def test_weighing_by_its_formula(shape: tuple[int, ...]) -> None:
    weighing, states = tokens_of(2, 5, 24, 7)[3], 3.0 + torch.randn(shape)
    have, (mean, projection) = weigh(states, weighing), (x.double() for x in weighing)
    want = (F.normalize(states.double(), dim=-1) - mean) @ projection @ projection.t()
    assert have.shape == states.shape
    assert_close("weighed", have, F.normalize(want, dim=-1), 1e-5, 1e-4)


def arguments(weighed: bool) -> tuple:
    states, asks, ids, weighing = tokens_of(2, 4, 24, 7)
    room = (torch.zeros(8, 24), torch.zeros(8, 7))
    given = (*weighing, *room) if weighed else (None,) * 4
    return states, asks, ids, 1, *given, *places_of(2, 4, 24)[1]


@pytest.mark.parametrize("weighed", [False, True])
def test_opcheck(weighed: bool) -> None:
    torch.library.opcheck(write_query_, arguments(weighed))


def test_full_graph() -> None:
    states, asks, ids, weighing = tokens_of(2, 4, 24, 7)

    def run(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = places_of(2, 4, 24)[1]
        write_query(places, states, asks, ids, 1, weighing)
        return tuple(places)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for have, want in zip(compiled(states), run(states), strict=True):
        assert torch.equal(have, want)


def test_errors() -> None:
    states, asks, ids, weighing = tokens_of(2, 4, 24, 7)
    _, places = places_of(2, 4, 24)
    with pytest.raises(ValueError, match=r"mask: shape \[B=2, n=4\]"):
        write_query(places, states, asks[:, :3], ids)
    with pytest.raises(TypeError, match="token_ids"):
        write_query(places, states, asks, ids.int())
    with pytest.raises(ValueError, match=r"mean: shape \[H=24\]"):
        write_query(places, states, asks, ids, 0, weighing._replace(mean=weighing.mean[:5]))
    with pytest.raises(ValueError, match=r"places.states: shape \[B=2, n=4, H=24\]"):
        write_query(Places(places.states[..., :5]), states, asks, ids)
