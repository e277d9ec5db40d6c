"""A decode step of an attached model: no host sync, few launches, the operations seen to run."""

from __future__ import annotations

import pytest

from tests.gpu.every import FORWARDS, Check
from tests.gpu.inputs import NotHere


@pytest.mark.parametrize("check", FORWARDS, ids=lambda check: check.name)
def test_forwards(check: Check, device: str) -> None:
    try:
        check.run(device)
    except NotHere as error:
        pytest.skip(str(error))
