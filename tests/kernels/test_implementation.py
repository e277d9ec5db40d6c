import subprocess
import sys

import torch

from cmr import kernels


def test_every_operation_is_public_and_registered() -> None:
    assert len(kernels.OPERATIONS) > 10
    assert set(kernels.OPERATIONS) <= set(kernels.__all__)
    for name in kernels.OPERATIONS:
        assert callable(getattr(kernels, name))
        schema = getattr(torch.ops.cmr, name).default._schema
        assert not schema.returns and any(a.is_write for a in schema.arguments)


def test_importing_the_kernels_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, cmr.kernels, cmr.config; "
        "print(sorted({'triton', 'faiss', 'nvtx', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
