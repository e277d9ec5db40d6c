"""Where lines end: Triton's kernel, interpreted, against the specification."""

import pytest
import torch

from cmr.kernels.search.lines import within_lines
from tests.kernels.helpers.compare import specified
from tests.kernels.helpers.lines import lined


@pytest.mark.parametrize(
    ("k", "blocks", "block", "passage", "neighbours"),
    [(1, 1, 1, 1, 1), (3, 40, 5, 2, 1), (5, 60, 4, 1, 3), (2, 30, 32, 2, 8)],
)
def test_within_lines(k: int, blocks: int, block: int, passage: int, neighbours: int) -> None:
    torch.manual_seed(blocks)
    given = (*lined(2, k, blocks, block), passage, neighbours)
    assert torch.equal(within_lines(*given), specified(within_lines, *given))
