"""Stand-ins for models of a hub: tiny random decoders of the same families, and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
}
SPECIAL = ("<pad>", "<s>", "</s>")
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


def tokenizer() -> Any:
    """One token a byte, with a chat template; nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        chat_template=TEMPLATE,
    )


def save(family: str, folder: Path) -> str:
    """A random decoder of the family and its tokenizer in a folder, as a hub would give them."""
    import transformers

    words = tokenizer()
    known: dict[str, Any] = {
        "vocab_size": len(words),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "llama":
        known["num_hidden_layers"] = 6
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=12, n_head=4, **known)
    else:
        config = transformers.AutoConfig.for_model(family, **{**SHAPE, **known})
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
