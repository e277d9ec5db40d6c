"""A tiny model with a chat template."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tests.cli.saved import build

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random decoder with a token a byte, and its tokenizer."""
    folder = build(tmp_path_factory.mktemp("models") / "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer
