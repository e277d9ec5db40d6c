"""The tiny decoders of the integration's tests."""

from tests.integration.conftest import all_detached, llama, tiny  # noqa: F401
