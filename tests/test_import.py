"""`import cmr` is light: whoever only looks at it waits for nothing."""

import subprocess
import sys

import pytest

HEAVY = ("triton", "faiss", "transformers", "accelerate", "bitsandbytes", "numpy.testing")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    program = code + f"; import sys; print(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_the_package_loads_nothing_heavy() -> None:
    assert loaded("import cmr; dir(cmr); cmr.__version__", (*HEAVY, "torch")) == []


def test_settings_and_errors_load_nothing_heavy() -> None:
    code = "import cmr; cmr.CMRConfig(window=64); cmr.ConfigError; cmr.AttachError"
    assert loaded(code, (*HEAVY, "torch")) == []


def test_attach_loads_no_model_and_no_kernel_compiler() -> None:
    heavy = ("triton", "faiss", "transformers.models.llama.modeling_llama")
    assert loaded("import cmr; cmr.attach", heavy) == []


def test_every_public_name_is_there() -> None:
    import cmr

    for name in cmr.__all__:
        assert getattr(cmr, name) is not None
    assert set(cmr.__all__) <= set(dir(cmr))
    with pytest.raises(AttributeError, match="no attribute 'attatch'"):
        cmr.attatch  # noqa: B018
