"""Tokens into a query: Triton's kernel, interpreted, against the specification."""

import pytest
import torch

from cmr.kernels.search.query import weigh, write_query
from tests.kernels.helpers.compare import assert_close, specified
from tests.kernels.helpers.querying import places_of, tokens_of

EXACT, HALF = (torch.float32, 2e-5), (torch.bfloat16, 1.5e-2)


@pytest.mark.parametrize(("dtype", "off"), [EXACT, HALF])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(
    ("rows", "tokens", "hidden", "width"), [(1, 1, 1, 1), (2, 5, 60, 9), (3, 2, 4100, 33)]
)
def test_write_query(rows, tokens, hidden, width, weighed, dtype, off) -> None:
    torch.manual_seed(tokens)
    states, asks, ids, weighing = tokens_of(rows, tokens, hidden, width, dtype)
    for told in ((asks, ids), (None, None)):
        (whole, places), (wanted, others) = (places_of(rows, tokens, hidden, dtype) for _ in "ab")
        given = (states, *told, 2, weighing if weighed else None)
        write_query(places, *given)
        specified(write_query, others, *given)
        assert_close("states", whole.states, wanted.states, off, off)
        assert all(torch.equal(a, b) for a, b in zip(whole[1:], wanted[1:], strict=True))


def test_weigh_states_of_any_strides() -> None:
    states, _, _, weighing = tokens_of(2, 6, 60, 9)
    for given in (states, states.mT.contiguous().mT, states[:, ::2], states[0], states[:0]):
        want = specified(weigh, given, weighing)
        assert_close("weighed", weigh(given, weighing), want, 2e-5, 2e-5)
