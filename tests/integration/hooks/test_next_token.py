"""Next-token memory of attached models: silent where it must be, exact where it speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import ConfigError
from cmr.retrieval import successors as next_token
from cmr.retrieval.successors import Successors, interpolate, propose, unit
from tests.integration.canaries import NAMES
from tests.integration.tiny import VOCABULARY, greedy, stepwise, text
from tests.kernels.helpers.compare import assert_close

TOKENS = 480
ALONE: dict[str, Any] = {"window": 64, "threshold": 0.0, "knn": True, "memory_weight": 0}
"""Nothing but the next-token memory can change anything."""
TELLS: dict[str, Any] = {**ALONE, "knn_threshold": 0.3, "knn_layers": [1], "sink_guard": 0}
"""At a random model's first layers a state is still much like its token's."""


def said_once(tokens: int, seed: int) -> torch.Tensor:
    """Token ids `[tokens]` of which none comes twice nearby."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-tokens // (VOCABULARY - 3))
    parts = [torch.randperm(VOCABULARY - 3, generator=generator) + 3 for _ in range(rounds)]
    return torch.cat(parts)[:tokens]


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models find nothing likely: here what they think of a token does not count."""
    monkeypatch.setattr(next_token, "DOUBT", 0.0)
    monkeypatch.setattr(next_token, "UNSURE_FIT", 0.0)


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@pytest.mark.parametrize("how", ["off", "empty", "paused", "no match", "weight 0", "detached"])
def test_bit_by_bit_the_model_itself(how: str, llama: nn.Module) -> None:
    model = llama
    ids, stored = text(1, 30, seed=3), text(TOKENS)
    want = logits(model, ids), stepwise(model, ids, 28), greedy(model, ids, tokens=3)
    settings = dict(ALONE)
    if how == "off":
        settings["knn"] = False
    if how == "weight 0":
        settings["knn_weight"] = 0
    if how == "no match":
        settings["knn_threshold"] = 1.0
    with cmr.attach(model, **settings) as memory:
        if how != "empty":
            memory.read(stored)
        if how == "paused":
            memory.pause()
        if how == "detached":
            memory.detach()
        have = logits(model, ids), stepwise(model, ids, 28), greedy(model, ids, tokens=3)
        if how == "no match":
            assert memory.stats()["next_token"]["tokens"] > 30, "it was asked, and kept silent"
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one, other)


def equal_before(asked: list[int], stored: list[int]) -> torch.Tensor:
    """How many tokens up to each pair are equal, at most four, `[1, asked, stored]`."""
    out = torch.zeros(1, len(asked), len(stored))
    for i in range(len(asked)):
        for j in range(len(stored)):
            while (run := int(out[0, i, j])) < min(4, i + 1, j + 1) and asked[i - run] == stored[
                j - run
            ]:
                out[0, i, j] += 1
    return out


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("store", ["kv", "states"])
def test_logits_are_those_of_the_definition(store: str, model: nn.Module) -> None:
    """All of a short memory is compared with, and every part of it is computed here anew."""
    stored = text(1, 96, seed=1)
    ids = torch.cat([stored[:, 20:40], text(1, 10, seed=5)], dim=1)
    settings = {**TELLS, "window": 256, "gain": 0.0, "neighbours": 8, "store": store}
    plain = model(ids, output_hidden_states=True)
    read = model(stored, output_hidden_states=True)
    with cmr.attach(model, **settings) as memory:
        memory.read(stored)
        have = logits(model, ids)
        core, recall = memory._core, memory._stepper.last.recall
        shown = memory.recalled[0][0].next_token
        keys = unit(*core.adapter.keys_values(1, read.hidden_states[1]))
        asked = unit(*core.adapter.keys_values(1, plain.hidden_states[1]))
        assert int(recall.mask.sum()) == 96
        known = torch.arange(95)[None]
        successors = Successors(
            (keys[:, :-1],),
            stored[:, :-1],
            known,
            stored[:, 1:],
            known >= 0,
            recall.choice.certainty,
        )
        runs = equal_before(ids[0].tolist(), stored[0, :-1].tolist())
        said = propose([asked], successors, memory.config.next_token, runs)
        want, share = interpolate(plain.logits, said)
        # Tokens before a step are known from the window, but for its sinks.
        steps = stepwise(model, ids, 16)
    assert shown == pytest.approx(float(share.mean()), abs=1e-3)
    assert share.max() > 0.1
    assert_close("logits", have, want, 5e-3, 5e-3)
    assert_close("step by step", steps, want, 5e-3, 5e-3)


@pytest.mark.usefixtures("trusting")
def test_what_was_read_is_said_again(llama: nn.Module) -> None:
    stored = said_once(TOKENS, 1)[None]
    prompt, follows = stored[:, 200:240], stored[:, 240:252]
    with cmr.attach(llama, **TELLS) as memory:
        plain = greedy(llama, prompt)
        memory.read(stored)
        said = greedy(llama, prompt)
        counted = memory.stats()["next_token"]
    assert (plain == follows).sum() < 3
    assert (said == follows).float().mean() > 0.7
    assert counted["tokens"] == 12 and counted["fitted"] == 12 and counted["gate"] > 0.5


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("how", ["greedy", "beams", "sampled"])
def test_rows_hear_their_own_session_only(how: str, llama: nn.Module) -> None:
    ways = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        "sampled": {"do_sample": True, "num_return_sequences": 3, "top_k": 1},
    }
    texts = torch.stack([said_once(TOKENS, 1), said_once(TOKENS, 2)])
    ids = texts[:, 100:130]
    outs = []
    with cmr.attach(llama, **TELLS, refresh=3) as memory:
        memory.read(texts, sessions=["anna", "ben"])
        with memory.session("anna", "ben"):
            both = llama.generate(ids, max_new_tokens=8, **ways[how])
            assert len(memory.recalled) == len(both) or how == "beams"
        for row, name in enumerate(["anna", "ben"]):
            with memory.session(name):
                outs.append(llama.generate(ids[row : row + 1], max_new_tokens=8, **ways[how]))
    assert torch.equal(both, torch.cat(outs))
    own = [both[: len(both) // 2], both[len(both) // 2 :]]
    for row in range(2):  # it has said something of its text
        assert (own[row][:, 30:] == texts[row, 130:138]).any()


@pytest.mark.usefixtures("trusting")
def test_no_token_of_another_session_is_ever_proposed(llama: nn.Module) -> None:
    """Sessions with vocabularies of their own, in a store so small that blocks are overwritten."""
    width = (VOCABULARY - 10) // len(NAMES)
    texts = [
        10 + n * width + torch.randint(width, (300,), generator=torch.Generator().manual_seed(n))
        for n in range(len(NAMES))
    ]
    said: list[tuple[int, torch.Tensor]] = []
    with cmr.attach(llama, **TELLS, budget=512, refresh=2) as memory:
        own = propose

        def look(queries: Any, successors: Successors, *more: Any) -> Any:
            numbers = memory._stepper.last.sessions
            for row, number in enumerate(numbers):
                said.append((number, successors.token_ids[row][successors.mask[row]]))
            return own(queries, successors, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cmr.integration.hooks.next_token.propose", look)
            for turn in range(2):
                for name, ids in zip(NAMES, texts, strict=True):
                    memory.read(ids[turn * 100 : turn * 100 + 100], sessions=[name])
                with memory.session(*NAMES):
                    llama.generate(torch.stack(texts)[:, :70], max_new_tokens=24)
        numbers = {memory._core.table.find(name): n for n, name in enumerate(NAMES)}
    assert len(said) > 100
    assert sum(len(ids) for _, ids in said) > 1000
    for number, ids in said:  # what was generated is in the windows still
        low = 10 + numbers[number] * width
        assert ((ids >= low) & (ids < low + width)).all()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    "settings",
    [
        {"store": "tokens"},
        {"budget": 64, "working_budget": TOKENS},
        {"budget": 64, "long_term_budget": TOKENS, "long_term_store": "kv"},
        {"budget": 64, "long_term_budget": TOKENS},
        {"method": "weighted_sum"},
        {"positions": "layout"},
    ],
    ids=lambda s: " ".join(map(str, s.values())),
)
def test_wherever_and_however_it_is_stored(settings: dict[str, Any], llama: nn.Module) -> None:
    stored = said_once(TOKENS, 1)[None]
    prompt = stored[:, 200:240]
    with cmr.attach(llama, **{**TELLS, **settings}) as memory:
        memory.read(stored)
        said = logits(llama, prompt)
        assert memory.recalled[0][0].next_token > 0.3
    assert (said[0, 10:-1].argmax(-1) == prompt[0, 11:]).float().mean() > 0.6


@pytest.mark.usefixtures("trusting")
def test_with_the_attention_read_both_count(llama: nn.Module) -> None:
    stored = said_once(TOKENS, 1)[None]
    outs = []
    for settings in ({"memory_weight": 0.5, "knn": False}, {"memory_weight": 0.5}, {}):
        with cmr.attach(llama, **{**TELLS, **settings}) as memory:
            memory.read(stored)
            outs.append(logits(llama, stored[:, 200:240]))
            gates = memory._stepper.last.gates
            assert bool(gates) == ("memory_weight" in settings)
    assert not torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[1], outs[2])


@pytest.mark.usefixtures("trusting")
def test_saved_loaded_and_forgotten(llama: nn.Module, tmp_path: Path) -> None:
    stored = said_once(TOKENS, 1)[None]
    prompt = stored[:, 200:230]
    plain = logits(llama, prompt)
    with cmr.attach(llama, **TELLS) as memory:
        memory.read(stored)
        want = logits(llama, prompt)
        memory.save(tmp_path)
    with cmr.load(tmp_path, llama) as memory:
        assert memory.config.next_token.knn
        assert torch.equal(logits(llama, prompt), want)
        memory.forget("0")
        assert memory._stepper.last is None
        assert torch.equal(logits(llama, prompt), plain)
    assert not torch.equal(want, plain)


@pytest.mark.usefixtures("trusting")
def test_tokens_that_were_not_to_be_stored_are_never_said(llama: nn.Module) -> None:
    secret = 77
    stored = said_once(TOKENS, 1)[None]
    stored[stored == secret] = 78
    stored[0, 240:250] = secret
    with cmr.attach(llama, **TELLS, keep=lambda ids: ids != secret) as memory:
        memory.read(stored)
        logits(llama, stored[:, 205:245])
        successors = memory._stepper.last.recall.successors
        assert successors.mask.sum() > 50
        assert not (successors.token_ids == secret).any()


@pytest.mark.usefixtures("trusting")
def test_whatever_logits_are_asked_for(llama: nn.Module) -> None:
    stored = said_once(TOKENS, 1)[None]
    prompt = stored[:, 200:230]
    with cmr.attach(llama, **TELLS) as memory:
        memory.read(stored)
        want = logits(llama, prompt)
        last = llama(prompt, logits_to_keep=2).logits
        some = llama(prompt, logits_to_keep=torch.tensor([3, 29])).logits
        plain = llama(prompt, return_dict=False)[0]
        labelled = llama(prompt, labels=prompt, return_dict=False)
        assert_close("last", last, want[:, -2:], 1e-5, 1e-5)
        assert_close("some", some, want[:, [3, 29]], 1e-5, 1e-5)
        assert_close("tuple", plain, want, 1e-5, 1e-5)
        assert_close("with a loss", labelled[1], want, 1e-5, 1e-5)
        assert labelled[0].ndim == 0


@pytest.mark.usefixtures("trusting")
def test_ragged_rows_are_as_if_alone(llama: nn.Module) -> None:
    from tests.integration.tiny import padded

    texts = torch.stack([said_once(TOKENS, 1), said_once(TOKENS, 2)])
    prompts = [texts[0, 100:140], texts[1, 100:125]]
    with cmr.attach(llama, **TELLS) as memory:
        memory.read(texts, sessions=["anna", "ben"])
        with memory.session("anna", "ben"):
            both = llama(**padded(prompts, "left")).logits
        for row, name in enumerate(["anna", "ben"]):
            with memory.session(name):
                alone = logits(llama, prompts[row][None])
            assert_close(name, both[row, -alone.shape[1] :], alone[0], 1e-3, 1e-3)


def test_a_layer_without_memory_cannot_be_compared(llama: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"knn_layers: layers that are stored.*\[5\] store"):
        cmr.attach(llama, knn=True, knn_layers=[5])
    assert cmr.attach(llama, knn=True, knn_layers=[2, 3]).stats()["next_token"]["layers"] == [2, 3]


def test_the_real_model_says_the_number(smollm2: tuple[nn.Module, Any]) -> None:
    """What no layer reads: the digits come from what followed them in the text."""
    from pydoc_data.topics import topics

    model, tokenizer = smollm2
    prose = topics["class"]
    fact = " The door code of the bell tower is 48213. "
    ids = tokenizer(prose[:900] + fact + prose[900:1900], return_tensors="pt").input_ids
    asked = [{"role": "user", "content": "What is the door code of the bell tower?"}]
    prompt = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def answer() -> str:
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        return tokenizer.decode(out[0, prompt.input_ids.shape[1] :])

    with cmr.attach(model, tokenizer=tokenizer, knn=True, memory_weight=0) as memory:
        memory.read(ids)
        assert "48213" in answer()
        assert memory.recalled[0][0].gate == 0.0
        memory.pause()
        assert "48213" not in answer()


def test_further_families(tiny: Callable[[str], nn.Module]) -> None:
    for name in ("falcon", "gemma2"):
        model = tiny(name)
        stored = said_once(TOKENS, 1)[None]
        with cmr.attach(model, **TELLS) as memory:
            plain = logits(model, stored[:, 200:230])
            memory.read(stored)
            assert not torch.equal(logits(model, stored[:, 200:230]), plain)
            assert memory.stats()["next_token"]["fitted"] > 0
