"""Tokens of chosen blocks: Triton's kernels, interpreted, against their specifications."""

import pytest
import torch

from cmr.kernels.search.recalled import recalled, without_unread
from tests.kernels.helpers.compare import specified
from tests.kernels.helpers.recalling import chosen, counting


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 6, 9, 4, 5), (2, 40, 50, 5, 100)])
def test_recalled(shape: tuple[int, ...]) -> None:
    torch.manual_seed(shape[0])
    table, within, *stored, index = chosen(*shape)
    for given in (
        (table, within, *stored, index),
        (table, None, *stored, index.bfloat16()),
        (table, within, *stored, None),
    ):
        used, sure = counting(shape[0], shape[2])
        other = used._replace(
            access_count=used.access_count.clone(), last_access=used.last_access.clone()
        )
        have = recalled(*given, used, sure)
        want = specified(recalled, *given, other, sure)
        assert torch.equal(used.access_count, other.access_count)
        assert torch.equal(used.last_access, other.last_access)
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
        unread = stored[0], table, have.read
        assert torch.equal(without_unread(*unread), specified(without_unread, *unread))
