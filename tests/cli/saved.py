"""A tiny decoder in a folder, as the command line loads it, and memories that it saves."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BLOCK = 32
CITY = "The secret of Ada is lavender in the north tower. "
OTHER = "Rain fell on the harbour and the boats came home early that day. "


def build(folder: Path, **shape: int) -> Path:
    """Save a random Llama decoder with a token a byte; returns the folder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "vocab_size": len(vocabulary),
    }
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**{**sizes, **shape}, eos_token_id=None, bos_token_id=None)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
