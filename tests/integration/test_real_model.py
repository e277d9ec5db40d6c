"""The oracles, and everyday use, on the small real model."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TextStreamer, pipeline

import cmr
from tests.integration.test_detach import attributes, hooks
from tests.integration.tiny import greedy, stepwise
from tests.kernels.helpers.compare import assert_error_at_most_twice

FACT, QUESTION, ANSWER = (
    " The parrot of the lighthouse keeper is called Marzipan. ",
    "What is the parrot of the lighthouse keeper called?",
    "Marzipan",
)
PROSE = topics["class"][:4000]


@pytest.fixture
def real(smollm2: tuple[nn.Module, Any]) -> nn.Module:
    return smollm2[0]


@pytest.fixture
def prose(smollm2: tuple[nn.Module, Any]) -> torch.Tensor:
    """About 900 tokens of prose with the fact in the middle, `[1, tokens]`."""
    half = len(PROSE) // 2
    return smollm2[1](PROSE[:half] + FACT + PROSE[half:], return_tensors="pt").input_ids


@pytest.mark.parametrize("how", ["paused", "weight 0", "empty"])
def test_a_memory_that_is_off_changes_no_bit(
    how: str, real: nn.Module, prose: torch.Tensor
) -> None:
    ids = prose[:, :48]
    want = real(ids).logits, stepwise(real, ids, 44), greedy(real, ids, tokens=4)
    with cmr.attach(real, window=64, memory_weight=0.0 if how == "weight 0" else 0.5) as memory:
        if how != "empty":
            memory.read(prose[:, 200:400])
        if how == "paused":
            memory.pause()
        have = real(ids).logits, stepwise(real, ids, 44), greedy(real, ids, tokens=4)
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("store", ["kv", "states"])
def test_all_in_memory_at_true_positions_is_full_attention(
    store: str, real: nn.Module, prose: torch.Tensor
) -> None:
    """As near to the model in float32 as the model itself in bfloat16 is."""
    whole, stored = prose[:, :160], 128
    narrow = copy.deepcopy(real).bfloat16()
    naive = narrow(whole).logits[:, stored:]
    exact = copy.deepcopy(real).float()(whole).logits[:, stored:].double()
    with cmr.attach(
        narrow, window=192, left_context=0, positions="true", store=store, memory_weight=0.5,
        target_layers=range(30), threshold=0.0, gain=0.0, neighbours=8, sink_guard=0,
    ) as memory:  # fmt: skip
        memory.read(whole[:, :stored])
        places = torch.arange(stored, 160)[None]
        have = narrow(whole[:, stored:], position_ids=places).logits
        assert len(memory.recalled[0][0].token_ids) == stored
    assert_error_at_most_twice("logits", have, naive, exact, floor=0.0)


def test_keys_are_stored_unrotated(real: nn.Module, prose: torch.Tensor) -> None:
    """As near to the float32 model's keys as the bfloat16 model's own are."""
    ids = prose[:, :96]
    narrow = copy.deepcopy(real).bfloat16()
    states = copy.deepcopy(real).float()(ids, output_hidden_states=True).hidden_states
    own = narrow(ids, output_hidden_states=True).hidden_states
    with cmr.attach(narrow, window=128, left_context=0, store="kv") as memory:
        memory.read(ids)
        core = memory._core
        for layer in (4, 14, 24):
            keys, _ = core.ring.gather(layer, torch.tensor([[0, 1, 2]]))
            naive, _ = core.adapter.keys_values(layer, own[layer])
            norm, project = (
                real.model.layers[layer].input_layernorm,
                real.model.layers[layer].self_attn.k_proj,
            )
            wide = copy.deepcopy(project).double()(
                copy.deepcopy(norm).double()(states[layer].double())
            )
            exact = wide.view(1, 96, 3, 64).transpose(1, 2)
            assert_error_at_most_twice(f"layer {layer}", keys, naive, exact, floor=0.02)


def test_detach_leaves_nothing(real: nn.Module, prose: torch.Tensor) -> None:
    before, ids = (hooks(real), attributes(real)), prose[:, :48]
    want = real(ids).logits
    with cmr.attach(real, window=64, threshold=0.0) as memory:
        memory.read(prose[:, 48:300])
        assert not torch.equal(real(ids).logits, want)
    assert (hooks(real), attributes(real)) == before
    assert torch.equal(real(ids).logits, want)


def chat(tokenizer: Any, *questions: str) -> dict[str, torch.Tensor]:
    talks = [[{"role": "user", "content": question}] for question in questions]
    return tokenizer.apply_chat_template(
        talks, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )


@pytest.mark.parametrize("store", ["kv", "tokens"])
def test_a_fact_outside_the_window_is_recalled(
    store: str, smollm2: tuple[nn.Module, Any], prose: torch.Tensor
) -> None:
    model, tokenizer = smollm2
    inputs = chat(tokenizer, QUESTION)
    with cmr.attach(model, window=128, tokenizer=tokenizer, store=store) as memory:
        memory.read(prose)
        told = greedy(model, inputs.pop("input_ids"), tokens=14, **inputs)
        assert ANSWER in tokenizer.decode(told[0])
        assert any(ANSWER in passage.text for passage in memory.recalled[0])


def test_streaming_and_pipelines(
    smollm2: tuple[nn.Module, Any], prose: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = smollm2
    inputs = chat(tokenizer, QUESTION)
    talk = [{"role": "user", "content": QUESTION}]
    with cmr.attach(model, window=128) as memory:
        memory.read(prose, sessions=["anna"])
        with memory.session("anna"):
            streamer = TextStreamer(tokenizer, skip_prompt=True)
            model.generate(**inputs, max_new_tokens=14, do_sample=False, streamer=streamer)
            assert ANSWER in capsys.readouterr().out
            generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
            asked = {"max_new_tokens": 14, "do_sample": False}
            found = generator(talk, **asked)[0]["generated_text"][-1]["content"]
            assert ANSWER in found
        found = generator(talk, **asked)[0]["generated_text"][-1]["content"]
    assert ANSWER not in found


def test_only_the_row_whose_session_read_it_knows(
    smollm2: tuple[nn.Module, Any], prose: torch.Tensor
) -> None:
    """Left padding, two sessions, one batch: the other one is none the wiser."""
    model, tokenizer = smollm2
    inputs = chat(tokenizer, QUESTION, f"Please tell me: {QUESTION}")
    assert not inputs["attention_mask"].all()
    with cmr.attach(model, window=128) as memory:
        memory.read(prose, sessions=["anna"])
        memory.read(prose[:, :150], sessions=["ben"])
        with memory.session("anna", "ben"):
            out = greedy(model, inputs.pop("input_ids"), tokens=14, **inputs)
    anna, ben = tokenizer.batch_decode(out)
    assert ANSWER in anna and ANSWER not in ben


@pytest.mark.parametrize("tier", ["working", "long_term"])
def test_a_fact_is_answered_from_a_lower_tier(
    tier: str, smollm2: tuple[nn.Module, Any], prose: torch.Tensor
) -> None:
    model, tokenizer = smollm2
    settings = {"budget": 64, f"{tier}_budget": 4096, "window": 128}
    with cmr.attach(model, tokenizer=tokenizer, **settings) as memory:
        memory.read(prose)
        assert {block.tier for block in memory.inspect(text="Marzipan")} == {tier}
        assert ANSWER in asked(model, tokenizer)
        assert ANSWER in memory.recalled[0][0].text


def asked(model: nn.Module, tokenizer: Any) -> str:
    """The reply to the question, greedily."""
    messages = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    return tokenizer.decode(greedy(model, ids, tokens=16)[0])


def test_a_new_process_says_the_same_to_the_bit(
    smollm2: tuple[nn.Module, Any], prose: torch.Tensor, tmp_path: Path
) -> None:
    """Of all tiers; the answer and the logits of every token of it."""
    model = smollm2[0]
    tiers = {"budget": 256, "working_budget": 256, "long_term_budget": 4096, "window": 128}
    with cmr.attach(model, **tiers) as memory:
        memory.read(prose)
        memory.save(tmp_path / "memory")
        torch.save(logits(model, prose[:, 440:480]), tmp_path / "logits.pt")
    script = (
        "import sys, torch, cmr\n"
        "from cmr.demo import load_smollm2\n"
        "from tests.integration.test_real_model import logits\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "model, tokenizer = load_smollm2()\n"
        "want = torch.load(sys.argv[1] + '/logits.pt')\n"
        "question = torch.tensor([eval(sys.argv[3])])\n"
        "with cmr.load(sys.argv[1] + '/memory', model) as memory:\n"
        "    assert torch.equal(logits(model, question), want)\n"
        "    assert memory.recalled[0]\n"
    )
    words = [str(tmp_path), str(torch.get_num_threads()), str(prose[0, 440:480].tolist())]
    subprocess.run([sys.executable, "-c", script, *words], check=True)


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Of the tokens of a greedy answer, `[tokens, vocabulary]`."""
    out = model.generate(
        ids, max_new_tokens=20, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.cat(out.logits)
