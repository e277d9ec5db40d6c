"""Run beside every module: the version that was asked for is the one that runs, and strictly."""

import os

import triton


def test_the_version_under_test() -> None:
    wanted = os.environ.get("CMR_EXPECTED_TRITON", triton.__version__)
    assert triton.__version__.startswith(wanted)
