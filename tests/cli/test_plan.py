"""`cmr plan`: its bytes are those of a memory that is attached, and its budgets keep to a limit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cmr as library
from tests.cli.saved import build

BLOCK = 32
SIZES = "layers=6,hidden=64,heads=4,kv_heads=2,head_dim=32,dtype=bfloat16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=6)


@pytest.fixture
def planned(cmr: Any) -> Any:
    def plan(*words: object) -> dict[str, Any]:
        found = cmr("plan", "--json", *words)
        assert found.code == 0, found.err
        return json.loads(found.out)

    return plan


def holds(found: dict[str, Any], memory: Any) -> None:
    """Every tier of a plan is that of the memory, to the byte."""
    tiers = memory.stats()["tiers"]
    had = {name: (tier["capacity_blocks"], tier["bytes"]) for name, tier in tiers.items()}
    assert {n: (tier["blocks"], tier["bytes"]) for n, tier in found["tiers"].items()} == had
    assert sum(tier["bytes"] for tier in found["tiers"].values()) == memory.nbytes
    for tier in found["tiers"].values():
        assert tier["bytes"] == tier["states"] + tier["index"] + tier["columns"]


@pytest.mark.parametrize(
    "budgets",
    [
        {"budget": 64 * BLOCK},
        {"budget": 7 * BLOCK, "working_budget": 9 * BLOCK, "long_term_budget": 11 * BLOCK},
        {"budget": "1MB", "long_term_budget": "300KB"},
    ],
)
def test_bytes_are_those_of_an_attached_memory(
    planned: Any, folder: Path, budgets: dict[str, Any]
) -> None:
    words = [w for name, v in budgets.items() for w in (f"--{name.replace('_', '-')}", v)]
    found = planned("--model", folder, "--sessions", 2, "--tokens", 100, *words)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with library.attach(model, **budgets) as memory:
        holds(found, memory)
    with library.attach(model, **found["settings"]) as memory:
        holds(found, memory)


def test_sizes_stand_for_a_model_that_is_not_there(planned: Any) -> None:
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, intermediate_size=8,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = planned("--model", SIZES, "--sessions", 10, "--tokens", 1000)
    assert found["fits"] and found["needed_tokens"] == 10 * math.ceil(1000 / BLOCK) * BLOCK
    assert found["settings"] == {"budget": found["needed_tokens"]}
    with library.attach(model, **found["settings"]) as memory:
        holds(found, memory)


def test_the_small_model_is_planned_as_it_is_calibrated(
    planned: Any, smollm2: tuple[Any, Any]
) -> None:
    found = planned("--model", "None", "--sessions", 3, "--tokens", 500)
    assert found["model"] == "SmolLM2-135M-Instruct"
    with library.attach(smollm2[0], **found["settings"]) as memory:
        assert memory.stats()["calibrated"]
        holds(found, memory)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.12])
def test_budgets_keep_to_what_the_device_has(planned: Any, share: float) -> None:
    """All in the first tier; the second; or, where not even its index fits, the last one."""
    words = ("--model", SIZES, "--sessions", 100, "--tokens", 1000)
    whole = planned(*words)["places"]["beside the model"]
    most = int(whole * share)
    found = planned(*words, "--device-memory", f"{most}B")
    # No block more would fit, and all that is wanted is there.
    each = found["tiers"]["recent"]["bytes"] // found["tiers"]["recent"]["blocks"]
    assert most - each <= found["places"]["beside the model"] <= most
    assert found["fits"] and found["room_tokens"] == found["needed_tokens"]
    second = {1.0: set(), 0.6: {"working"}, 0.12: {"long_term"}}[share]
    assert set(found["tiers"]) == {"recent"} | second
    assert {f"{tier}_budget" for tier in second} | {"budget"} == set(found["settings"])


def test_too_little_room_is_said(cmr: Any, planned: Any) -> None:
    words = ("--model", SIZES, "--sessions", 100, "--tokens", 1000, "--budget", 3200)
    assert not planned(*words)["fits"]
    shown = cmr("plan", *words)
    assert "room for 3,200 of 102,400 tokens: the oldest are evicted" in shown.out
    assert "cmr serve --model FOLDER --budget 3200\n" in shown.out


def test_a_plan_that_cannot_be_made_is_refused(cmr: Any, tmp_path: Path) -> None:
    most = ("--sessions", 10, "--tokens", 1000)
    for words, told in (
        (("--model", tmp_path / "none"), "layers=32,hidden=4096"),
        (("--model", "layers=4"), "hidden=N expected"),
        (("--model", "layers=4,hidden=64,heads=3"), "heads that divide hidden"),
        (("--model", f"{SIZES},wings=2"), "got wings='2'"),
        (("--model", SIZES.replace("bfloat16", "int1")), "got 'int1'"),
        (("--model", SIZES.replace("layers=6", "layers=1001")), "got layers='1001'"),
        (("--model", SIZES, "--device-memory", "much"), "--device-memory"),
        (("--model", SIZES, "--device-memory", "1KB"), "at least"),
        (("--model", SIZES, "--device-memory", "1GB", "--budget", 64), "--budget"),
        (("--model", SIZES, "--budget", "many"), "--budget"),
    ):
        found = cmr("plan", *most, *words)
        assert found.code == 2 and told in found.err and found.out == "", (words, found)
