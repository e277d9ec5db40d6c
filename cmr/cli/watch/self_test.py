"""What `cmr doctor` tries: that memory changes an answer, is its own session's, and goes again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import cmr
from cmr._frames import raised_at

TOKENS = 200
SETTINGS: dict[str, Any] = {"window": 64, "budget": 1024, "threshold": 0.0, "strict": True}


class Tried(NamedTuple):
    """One thing that was tried; `wrong` says what did not hold, '' where all did."""

    name: str
    wrong: str


def tiny_model(device: str) -> Any:
    """A random decoder of four layers, always the same."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    before = torch.random.get_rng_state()
    torch.manual_seed(7)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    finally:
        torch.random.set_rng_state(before)
    return model.eval().to(device)


def tried(device: str) -> list[Tried]:
    """Everything, on one device with a tiny random model; what raises is wrong, too."""
    found = []
    with torch.no_grad():
        for name, check in CHECKS.items():
            try:
                wrong = check(device)
            except Exception as error:  # whatever it is, the others are tried
                wrong = f"{type(error).__name__} at {raised_at(error)}"
            found.append(Tried(name, wrong))
    return found


def _ids(tokens: int, seed: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 200, (tokens,), generator=generator).to(device)


def _changes(device: str) -> str:
    model, ids = tiny_model(device), _ids(32, 1, device)[None]
    with cmr.attach(model, **SETTINGS) as memory:
        plain = model(ids).logits
        memory.read(_ids(TOKENS, 2, device))
        if not memory.tokens:
            return "a text was read and nothing is stored"
        remembering = model(ids)
        if not memory.stats()["recalls"]:
            return "nothing was recalled of what was read"
        if torch.equal(remembering.logits, plain):
            return "what was recalled changes no logits"
    return ""


def _restores(device: str) -> str:
    model, ids = tiny_model(device), _ids(32, 1, device)[None]
    before = model(ids).logits
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(_ids(TOKENS, 2, device))
        model(ids)
    after = model(ids).logits
    return "" if torch.equal(before, after) else "after detach the logits are others than before"


def _isolates(device: str) -> str:
    model, ids = tiny_model(device), _ids(32, 1, device)[None]
    with cmr.attach(model, **SETTINGS) as memory:
        with memory.session("one", create=True):
            alone = model(ids).logits
        memory.forget("one")
        memory.read(_ids(TOKENS, 2, device), sessions=["two"])
        with memory.session("one", create=True):
            if not torch.equal(model(ids).logits, alone):
                return "a session's answer depends on what another one stores"
    return ""


def _forgets(device: str) -> str:
    model = tiny_model(device)
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(_ids(TOKENS, 2, device), sessions=["one"])
        memory.forget("one")
        left = [tier for tier in memory.stats()["tiers"].values() if tier["blocks"]]
        return "something is stored of a session that was forgotten" if left else ""


def _saves(device: str) -> str:
    model, ids = tiny_model(device), _ids(32, 1, device)[None]
    with tempfile.TemporaryDirectory(prefix="cmr-doctor-") as folder:
        where = Path(folder) / "memory"
        with cmr.attach(model, **SETTINGS) as memory:
            memory.read(_ids(TOKENS, 2, device))
            memory.save(where)
            said = model(ids).logits
        with cmr.load(where, model) as memory:
            if not torch.equal(model(ids).logits, said):
                return "a memory that was saved and loaded gives another answer"
    return ""


CHECKS: dict[str, Callable[[str], str]] = {
    "memory changes an answer": _changes,
    "detach restores the model bit for bit": _restores,
    "a session reads nothing of another": _isolates,
    "what is forgotten is gone": _forgets,
    "a saved memory answers the same": _saves,
}


def tried_with_the_small_model() -> Tried:
    """The small real model knows by its memory what it is told; for when it is installed."""
    from cmr.cli.common import Speaker, encoded
    from cmr.demo import demo_document, load_smollm2

    name = "SmolLM2-135M-Instruct answers from its memory"
    try:
        model, tokenizer = load_smollm2()
        document = demo_document(tokenizer, 1_000)
        asked = document.questions[:3]
        with cmr.attach(model, tokenizer=tokenizer, window=512, strict=True) as memory:
            speaker = Speaker(model, tokenizer, memory, 16)
            memory.read(encoded(tokenizer, document.text, verbose=False))
            answers = [(q, speaker.answer(speaker.encode(q.text))) for q in asked]
        right = sum(question.answered_by(answer.text) for question, answer in answers)
        least = len(answers) // 2
        return Tried(name, "" if right > least else f"{right} of {len(answers)} answers are right")
    except Exception as error:
        return Tried(name, f"{type(error).__name__} at {raised_at(error)}")
