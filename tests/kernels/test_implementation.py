import subprocess
import sys

from cmr import kernels


def test_every_operation_says_what_runs_and_is_public() -> None:
    said = kernels.implementation()
    assert set(said) == set(kernels.OPERATIONS) <= set(kernels.__all__)
    assert all(text.startswith("reference (PyTorch): ") for text in said.values())
    assert all(callable(getattr(kernels, name)) for name in said)


def test_importing_the_kernels_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, cmr.kernels, cmr.config; "
        "print(sorted({'triton', 'faiss', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
