"""Stand-ins for the model, its tokenizer and the memory: the command line's wiring only."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from typer.testing import CliRunner

import cmr
from cmr.cli import common as shared
from cmr.cli import main
from tests.cli.saved import build

EOS = 0


class Tokenizer:
    """One token a character; 0 ends."""

    chat_template = None
    eos_token_id = pad_token_id = EOS

    def __call__(self, text, return_tensors=None, **_):
        ids = [ord(letter) % 5000 for letter in text]
        return SimpleNamespace(input_ids=torch.tensor([ids]) if return_tensors else ids)

    def decode(self, ids, skip_special_tokens=False):
        ids = [int(i) for i in ids]
        return "".join(chr(i) if i != EOS else "" if skip_special_tokens else "<end>" for i in ids)


class TemplateTokenizer(Tokenizer):
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        turns = "".join(
            f"[{m['role']}]{m['content']}{'<end>' if m['role'] == 'assistant' else ''}"
            for m in messages
        )
        return turns + "[assistant]"


class Model:
    """Says one sentence, to every prompt; notes what it was given."""

    device = torch.device("cpu")
    dtype = torch.bfloat16
    calibrated = True
    config = SimpleNamespace(max_position_embeddings=8192)

    def __init__(self, says="the answer é"):
        self.says = says
        self.calls = []
        self.memory = None

    def parameters(self):
        return [torch.zeros(4)]

    def generate(self, input_ids, attention_mask, streamer, max_new_tokens, **options):
        assert attention_mask.shape == input_ids.shape
        self.calls.append((input_ids, options))
        streamer.put(input_ids)
        words = [ord(letter) for letter in self.says[: max_new_tokens - 1]] + [EOS]
        for word in words:
            streamer.put(torch.tensor([word]))
        streamer.end()
        ids = torch.cat([input_ids, torch.tensor([words])], dim=1)
        if options.get("return_dict_in_generate"):
            return SimpleNamespace(sequences=ids, past_key_values=f"cache {len(self.calls)}")
        return ids


class Memory:
    """Records what is asked of it; recalls one passage unless paused."""

    def __init__(self, model, tokenizer, overrides):
        self.model, self.tokenizer, self.overrides = model, tokenizer, overrides
        self.log = []
        self.tokens, self.nbytes, self.evicted = 0, 20_000_000, 0
        self.paused = self.detached = False
        self.calibrated = model.calibrated
        model.memory = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.detached = True

    def read(self, input_ids, progress=False):
        assert input_ids.ndim == 2
        self.tokens += input_ids.shape[1]
        self.log.append("read")
        if progress:
            progress(input_ids.shape[1], input_ids.shape[1])
        return SimpleNamespace(
            tokens=input_ids.shape[1], blocks=1, seconds=2.0, tokens_per_second=50.0
        )

    @contextmanager
    def session(self, name, create=False):
        self.log.append(f"session {name} {create}")
        yield

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def stats(self):
        tier = {"blocks": 3, "capacity_blocks": 128, "bytes": self.nbytes}
        return {
            "searches": 8,
            "recalls": 6,
            "tokens": 1024,
            "sessions": 1,
            "capacity_tokens": 4096,
            "bytes": self.nbytes,
            "tiers": {"recent": tier},
            "evicted_blocks": self.evicted,
            "expired_blocks": 0,
            "active": not self.paused,
            "calibrated": self.calibrated,
        }

    @property
    def recalled(self):
        if self.paused:
            return [[]]
        return [
            [
                SimpleNamespace(
                    text="a passage that was read",
                    token_ids=[1, 2],
                    start=1200,
                    end=1264,
                    score=3.25,
                    gate=0.5,
                    session="0",
                )
            ]
        ]


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def fake(monkeypatch):
    """Puts the stand-ins in place; ``fake.memory`` is the last memory attached."""
    state = SimpleNamespace(model=Model(), tokenizer=Tokenizer(), memory=None)

    def attach(model, config=None, tokenizer=None, **overrides):
        state.memory = Memory(model, tokenizer, overrides)
        return state.memory

    # Public names load when first used: this one is not to load at all.
    monkeypatch.setitem(vars(cmr), "attach", attach)
    monkeypatch.setattr(shared, "load_smollm2", lambda: (state.model, state.tokenizer))
    return state


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Once upon a time. " * 20)
    return path


class Result(NamedTuple):
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a tiny decoder by the name 'tiny'."""
    return build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """One of another shape, whose tokenizer is another, too."""
    folder = build(tmp_path_factory.mktemp("models") / "other", num_hidden_layers=2)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def run_cmr(tiny_model):
    """Runs ``main`` with the tiny model, unless the words name one; ``--model None``: no option."""

    def run(*words, stdin: str | None = None, encoding: str = "utf-8") -> Result:
        words = [str(word) for word in words]
        if "--model" not in words:
            words += ["--model", str(tiny_model)]
        elif words[words.index("--model") + 1] == "None":
            at = words.index("--model")
            del words[at : at + 2]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            if stdin is not None:
                patch.setattr(sys, "stdin", io.StringIO(stdin))
            with pytest.raises(SystemExit) as end:
                main(words)
            out.flush()
            err.flush()
        shown = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
        return Result(end.value.code, *shown)

    return run


@pytest.fixture(name="cmr")
def run_cmr_without_a_key(run_cmr, monkeypatch):
    """The same, with no passphrase in the environment."""
    monkeypatch.delenv("CMR_MEMORY_KEY", raising=False)
    return run_cmr
