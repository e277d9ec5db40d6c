"""Drafts, assistant models and prompts in chunks: the answer is that of greedy decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

import cmr
from tests.integration.reweave.test_oracles import stored
from tests.integration.tiny import greedy, text
from tests.integration.window.test_cache_contract import SETTINGS, remembering, told
from tests.kernels.helpers.compare import assert_close

WINDOW = SETTINGS["window"]


@pytest.fixture(params=["llama", "gemma3-sliding"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)


def answers(
    model: nn.Module, ids: torch.Tensor, tokens: int, refresh: int, **ways: Any
) -> tuple[list[int], list[int], dict[str, Any]]:
    """What `generate` adds, what anna's session holds then, and the memory's counters.

    The first releases of transformers 5 let a draft go on behind the last token that was wanted.
    """
    # By states as they are: with what that recalls the answers repeat themselves, as drafts need.
    settings = {"refresh": refresh, "calibration": "none"}
    with remembering(model, **settings) as memory, memory.session("anna"):
        passes = [0]
        decoder = model.get_decoder()

        def count(*_: Any) -> None:
            passes[0] += not memory._stepper.busy

        handle = decoder.register_forward_hook(count)
        try:
            out = greedy(model, ids, tokens, eos_token_id=199, **ways)
        finally:
            handle.remove()
        return (
            out[0, :tokens].tolist(),
            told(memory, "anna"),
            {**memory.stats(), "passes": passes[0]},
        )


def repeating(tokens: int) -> torch.Tensor:
    """A prompt in which drafts are found."""
    return text(1, 9, seed=5).repeat(1, tokens)[:, :tokens]


@pytest.mark.parametrize("refresh", [6, 1000])
@pytest.mark.parametrize("prompt", [20, WINDOW + 2, 150])
def test_prompt_lookup(prompt: int, refresh: int, model: nn.Module) -> None:
    """Within the window, at its edge and longer; the answer overflows it twice."""
    ids = repeating(prompt)
    want = answers(model, ids, 100, refresh)
    have = answers(model, ids, 100, refresh, prompt_lookup_num_tokens=5)
    assert have[:2] == want[:2]
    assert have[2]["searches"] == want[2]["searches"] > 0
    assert have[2]["passes"] < want[2]["passes"], "no draft was ever accepted"


@pytest.mark.parametrize("who", ["another", "itself", "attached"])
def test_an_assistant(who: str, llama: nn.Module) -> None:
    """One that guesses well, the model itself, and one that has a memory of its own."""
    ids, refresh = text(1, 80, seed=3), 6
    want = answers(llama, ids, 60, refresh)
    assistant = llama if who == "itself" else copy.deepcopy(llama)
    assistant.generation_config.num_assistant_tokens = 4
    try:
        if who == "attached":
            with cmr.attach(assistant, **SETTINGS):
                have = answers(llama, ids, 60, refresh, assistant_model=assistant)
        else:
            have = answers(llama, ids, 60, refresh, assistant_model=assistant)
    finally:
        assistant.generation_config.num_assistant_tokens = None
    assert have[:2] == want[:2]
    assert have[2]["searches"] == want[2]["searches"] > 0
    assert have[2]["passes"] < want[2]["passes"]


def test_drafts_are_as_before_after_detach(llama: nn.Module) -> None:
    assert "_get_candidate_generator" not in vars(llama)
    with cmr.attach(llama, **SETTINGS):
        assert "_get_candidate_generator" in vars(llama)
    assert "_get_candidate_generator" not in vars(llama)


@pytest.mark.parametrize("how", ["argument", "config", "positional", "default"])
def test_a_prompt_in_chunks(how: str, llama: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """Said in any of the places where it can be said; nothing of the caller's is changed."""
    ids, chunk = text(1, 200, seed=3), 7
    with remembering(llama, refresh=6) as memory, memory.session("anna"):
        want = greedy(llama, ids, 20)
        kept, searches = stored(memory, "anna"), memory.stats()["searches"]
    config = GenerationConfig(prefill_chunk_size=chunk, max_new_tokens=20, do_sample=False)
    longest: list[int] = []
    with remembering(llama, refresh=6) as memory, memory.session("anna"):

        def look(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if not memory._stepper.busy:
                longest.append(kwargs["input_ids"].shape[1])

        handle = llama.get_decoder().register_forward_hook(look, with_kwargs=True)
        before = llama.generation_config
        try:
            assert before.prefill_chunk_size is None
            if how == "argument":
                out = greedy(llama, ids, 20, prefill_chunk_size=chunk)
            elif how == "default":
                llama.generation_config = copy.deepcopy(before)
                llama.generation_config.prefill_chunk_size = chunk
                out = greedy(llama, ids, 20)
                assert llama.generation_config.prefill_chunk_size == chunk
            elif how == "config":
                out = llama.generate(ids, generation_config=config)[:, 200:]
            else:
                out = llama.generate(ids, config)[:, 200:]
        finally:
            handle.remove()
            llama.generation_config = before
        assert torch.equal(out, want)
        for name, tensor in stored(memory, "anna").items():
            assert_close(name, tensor, kept[name], atol=2e-4, rtol=1e-4)
        assert memory.stats()["searches"] == searches
    assert config.prefill_chunk_size == chunk
    assert longest.count(WINDOW) == 1 and sorted(set(longest))[-2] == chunk
    assert "deprecated" not in caplog.text


@pytest.mark.parametrize("size", [20, WINDOW])
def test_a_short_prompt_in_chunks_is_one_question(size: int, llama: nn.Module) -> None:
    ids = text(1, size, seed=3)
    want = answers(llama, ids, 12, 6)
    assert answers(llama, ids, 12, 6, prefill_chunk_size=5) == want


def test_chunks_stay_where_the_cache_is_not_ours(llama: nn.Module) -> None:
    with remembering(llama), pytest.MonkeyPatch.context() as patch:
        seen: list[Any] = []

        def prefill(ids: Any, config: GenerationConfig, *_: Any, **__: Any) -> None:
            seen.append(config.prefill_chunk_size)
            raise NotImplementedError

        patch.setattr(llama, "_prefill", prefill)
        for given in ({"cache_implementation": "static"}, {"use_cache": False}, {}):
            with pytest.raises(NotImplementedError):
                greedy(llama, text(1, 40), 2, prefill_chunk_size=8, **given)
    assert seen == [8, 8, None]
