"""A left-padded row is what it is alone, however long its text gets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from tests.integration.reweave.test_oracles import stored
from tests.integration.tiny import padded, text
from tests.integration.window.test_cache_contract import BLOCK, NAMES, SETTINGS, SINKS, WINDOW
from tests.kernels.helpers.compare import assert_close

TOLERANCE = {"atol": 5e-4, "rtol": 5e-4}
LENGTHS = (61, 12, 40)


@pytest.fixture(params=["llama", "gpt2", "gemma3-sliding", "mistral-sliding"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)


def run(
    model: nn.Module,
    texts: list[torch.Tensor],
    names: tuple[str, ...],
    tokens: int,
    **settings: Any,
) -> list[dict[str, Any]]:
    """What each row says, thinks, stores and reads while `generate` adds tokens."""
    batch = padded(texts, "left")
    del batch["position_ids"]
    read: list[list[list[tuple[int, ...]]]] = []
    scores: list[list[list[float]]] = []
    with cmr.attach(model, **{**SETTINGS, **settings}) as memory:
        memory.read(text(3, 120, seed=1), sessions=NAMES)

        def look(*_: Any) -> None:
            if not memory._stepper.busy:
                read.append([[p.token_ids for p in row] for row in memory.recalled])
                scores.append([[p.score for p in row] for row in memory.recalled])

        handle = model.register_forward_hook(look)
        try:
            with memory.session(*names):
                out = model.generate(
                    **batch, max_new_tokens=tokens, do_sample=False, output_logits=True,
                    return_dict_in_generate=True,
                )  # fmt: skip
        finally:
            handle.remove()
        widest = max(layer.keys.shape[2] for layer in out.past_key_values.layers)
        assert widest <= SINKS + WINDOW
        return [
            {
                "answer": out.sequences[row, -tokens:].tolist(),
                "logits": torch.stack(out.logits)[:, row],
                "stored": stored(memory, name),
                "read": [step[row] for step in read],
                "scores": [score for step in scores for score in step[row]],
            }
            for row, name in enumerate(names)
        ]


def same(have: dict[str, Any], want: dict[str, Any], what: str) -> None:
    assert have["answer"] == want["answer"], what
    assert_close(f"logits of {what}", have["logits"], want["logits"], **TOLERANCE)
    assert have["read"] == want["read"] and any(want["read"])
    assert have["scores"] == pytest.approx(want["scores"], abs=1e-3)
    assert have["stored"].keys() == want["stored"].keys()
    for name, tensor in want["stored"].items():
        assert have["stored"][name].shape == tensor.shape, f"{name} of {what}"
        assert_close(f"{name} of {what}", have["stored"][name], tensor, **TOLERANCE)


@pytest.mark.parametrize(
    "lengths", [LENGTHS, (320, 30, 217)], ids=["within the window", "longer prompts"]
)
def test_a_padded_row_is_what_it_is_alone(lengths: tuple[int, ...], model: nn.Module) -> None:
    """Tokens, logits, recalled passages at every step, and all that is stored."""
    texts = [text(n, seed=n) for n in lengths]
    together = run(model, texts, NAMES, 90)
    for row, name in enumerate(NAMES):
        (alone,) = run(model, [texts[row]], (name,), 90)
        assert len(alone["stored"]["token_ids"]) > 120
        same(together[row], alone, f"row {row}")


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "layout"},
        {"query_tokens": 80, "refresh": 30},
        {"store": "states"},
        {"block_size": 7},
    ],
    ids=str,
)
def test_other_settings(settings: dict[str, Any], llama: nn.Module) -> None:
    texts = [text(n, seed=n) for n in LENGTHS]
    together = run(llama, texts, NAMES, 90, **settings)
    for row, name in enumerate(NAMES):
        (alone,) = run(llama, [texts[row]], (name,), 90, **settings)
        same(together[row], alone, f"row {row}")


def test_beams_and_repeated_rows_keep_their_own_windows(llama: nn.Module) -> None:
    texts = [text(n, seed=n) for n in (61, 12)]
    batch = padded(texts, "left")
    del batch["position_ids"]
    with cmr.attach(llama, **SETTINGS) as memory:
        out = llama.generate(**batch, max_new_tokens=80, num_beams=2, do_sample=False)
        have = [stored(memory, name)["token_ids"].tolist() for name in "01"]
    for row, ids in enumerate(texts):
        with cmr.attach(llama, **SETTINGS) as memory:
            alone = llama.generate(ids[None], max_new_tokens=80, num_beams=2, do_sample=False)
            assert stored(memory, "0")["token_ids"].tolist() == have[row]
            assert out[row, -80:].tolist() == alone[0, -80:].tolist()


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_left_at_the_end_is_absorbed_row_by_row(whole: bool, llama: nn.Module) -> None:
    texts = [text(n, seed=n) for n in (61, 12, 70)]

    def absorbed(texts: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        batch = padded(texts, "left")
        del batch["position_ids"]
        with cmr.attach(llama, **SETTINGS) as memory, ExitStack() as stack:
            caches = stack.enter_context(memory._stepper.following()) if whole else []
            out = llama.generate(
                **batch, max_new_tokens=30, do_sample=False, return_dict_in_generate=True
            )
            assert len(caches) == whole
            memory.absorb(out.past_key_values)
            return [stored(memory, str(row)) for row in range(len(texts))]

    for row, have in enumerate(absorbed(texts)):
        (want,) = absorbed([texts[row]])
        assert have["positions"].tolist() == want["positions"].tolist()
        for name, tensor in want.items():
            assert_close(f"{name} of row {row}", have[name], tensor, **TOLERANCE)


def test_a_chat_goes_on_row_by_row(llama: nn.Module) -> None:
    """Turns of the same length behind prompts of different ones, past the window."""
    texts, turn = [text(n, seed=n) for n in LENGTHS], text(3, 30, seed=9)

    def talk(rows: list[int]) -> tuple[torch.Tensor, list[list[int]]]:
        batch = padded([texts[row] for row in rows], "left")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        cache, logits = None, []
        with cmr.attach(llama, **SETTINGS) as memory:
            with memory.session(*(NAMES[row] for row in rows), create=True):
                for _ in range(4):
                    out = llama(ids, attention_mask=mask, past_key_values=cache)
                    cache, ids = out.past_key_values, turn[rows]
                    logits.append(out.logits[:, -1])
                    mask = torch.nn.functional.pad(mask, (0, 30), value=1)
            return torch.stack(logits, 1), [
                stored(memory, NAMES[row])["token_ids"].tolist() for row in rows
            ]

    logits, kept = talk([0, 1, 2])
    for row in range(3):
        alone, mine = talk([row])
        assert kept[row] == mine[0] and mine[0]
        assert_close(f"row {row}", logits[row], alone[0], **TOLERANCE)


def test_rows_without_padding_take_no_other_way(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS):
        cache = llama(text(2, 90), use_cache=True).past_key_values
        assert cache.layers[0].owner.padded is None
        mask = torch.ones(2, 91).long()
        assert cache.layers[0].visible(mask, 1) is mask
        assert cache.layers[0].left % BLOCK == 0
