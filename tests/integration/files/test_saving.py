"""Saving and loading an attached memory: all comes back, into the model that saved it only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import (
    ConfigError,
    CorruptMemoryError,
    MemoryKeyError,
    MemoryNotFoundError,
    ModelMismatchError,
    UnknownSessionError,
)
from tests.integration.tiny import FAMILIES, build, text

SETTINGS: dict[str, Any] = {
    "window": 64,
    "threshold": 0.0,
    "budget": 128,
    "working_budget": 128,
    "long_term_budget": 1024,
}


def filled(model: nn.Module, **settings: Any) -> cmr.Memory:
    """A memory of two sessions over three tiers, some of it recalled."""
    memory = cmr.attach(model, **{**SETTINGS, **settings})
    memory.read(text(2, 300), sessions=["anna", "ben"])
    ask(model, memory)
    return memory


def ask(model: nn.Module, memory: cmr.Memory, name: str = "anna") -> torch.Tensor:
    with memory.session(name):
        return model.generate(
            text(2, 300)[:1, 40:70],
            max_new_tokens=40,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("family", "store"),
    [(name, "kv") for name in FAMILIES] + [("llama", "states"), ("gpt2", "tokens")],
)
def test_what_is_loaded_is_bit_for_bit_what_was_saved(
    family: str, store: str, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = tiny(family)
    with filled(model, store=store) as memory:
        memory.save(tmp_path / "m")
        blocks = memory.inspect().to_dicts()
        before = ask(model, memory)
    with cmr.load(tmp_path / "m", model) as memory:
        assert memory.config.memory.working_budget == 128
        assert memory.inspect().to_dicts() == blocks
        after = ask(model, memory)
        assert memory.stats()["tiers"]["long_term"]["blocks"] > 0
    assert same(before, after)


def test_a_loaded_memory_goes_on_as_the_saved_one_would(llama: nn.Module, tmp_path: Path) -> None:
    """Reading on, evicting, recalling, saving only what is new."""
    outs, reports = [], []
    with filled(llama) as memory:
        memory.save(tmp_path / "m")
        for memory_ in (memory, None):
            if memory_ is None:
                memory.detach()
                memory_ = cmr.load(tmp_path / "m", llama)
            memory_.read(text(200, seed=8), sessions=["anna"])
            outs.append(ask(llama, memory_))
            if memory_ is not memory:
                reports.append(memory_.save(tmp_path / "m"))
                memory_.detach()
    assert same(*outs)
    assert reports[0].bytes_reused > 0 and reports[0].bytes_written > 0


@pytest.mark.parametrize("whole", [True, False])
def test_what_comes_next_follows_what_it_followed(
    whole: bool, llama: nn.Module, tmp_path: Path
) -> None:
    """A text whose newest block is gone leaves a gap, and a merged one ends with an older block."""

    def links(memory: cmr.Memory) -> set[tuple[Any, Any]]:
        ring = memory._core.ring
        where = {block.id: (block.session, block.start) for block in memory.inspect()}
        slots = ring.ledger.slots_of(None)
        ahead = ring.about(slots)["before"].tolist()
        own = ring.ledger.number[slots].tolist()
        return {(where[n], where.get(b)) for n, b in zip(own, ahead, strict=True)}

    wanted = None if whole else ["anna", "ben"]
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(96), sessions=["ben"])
        memory.read(text(96, seed=1), sessions=["anna"])
        memory.read(text(96, seed=2), sessions=["carl"])
        memory.forget("anna", ids=[memory.inspect("anna")[-1].id])
        memory.merge("ben", "carl")
        memory.rename("carl", "ben")
        memory.save(tmp_path / "m")
        memory.read(text(2, 40, seed=3), sessions=["anna", "ben"])
        expected = links(memory)
    if whole:
        loaded = cmr.load(tmp_path / "m", llama)
    else:
        loaded = cmr.attach(llama, **SETTINGS)
        loaded.read(text(40, seed=4), sessions=["dora"])
        loaded.load(tmp_path / "m", sessions=wanted)
        loaded.forget("dora")
    with loaded:
        loaded.read(text(2, 40, seed=3), sessions=["anna", "ben"])
        assert links(loaded) == expected


def test_what_was_learnt_of_scores_comes_back(llama: nn.Module, tmp_path: Path) -> None:
    outs = []
    for method in ("hybrid", "surprise"):
        with filled(llama, scoring_method=method) as memory:
            memory.save(tmp_path / method)
            memory.read(text(128, seed=6), sessions=["carl"])
            outs.append([b.relevance for b in memory.inspect("carl")])
        with cmr.load(tmp_path / method, llama) as memory:
            memory.read(text(128, seed=6), sessions=["carl"])
            assert [b.relevance for b in memory.inspect("carl")] == outs[-1]
    assert outs[0] != outs[1] and len(set(outs[0])) > 1


def test_a_new_process_says_the_same(llama: nn.Module, tmp_path: Path) -> None:
    with filled(llama) as memory:
        memory.save(tmp_path / "m")
        torch.save([x.clone() for x in ask(llama, memory)], tmp_path / "logits.pt")
    script = (
        "import sys, torch, cmr\n"
        "from tests.integration.tiny import build\n"
        "from tests.integration.files.test_saving import ask, same\n"
        "model = build('llama')\n"
        "with torch.no_grad(), cmr.load(sys.argv[1] + '/m', model) as memory:\n"
        "    assert same(ask(model, memory), torch.load(sys.argv[1] + '/logits.pt'))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_single_sessions_into_a_memory_in_use(llama: nn.Module, tmp_path: Path) -> None:
    with filled(llama) as memory:
        memory.save(tmp_path / "m", sessions=["ben"])
        memory.save(tmp_path / "all")
        bens = [b["token_ids"] for b in memory.inspect("ben").to_dicts()]
        want = ask(llama, memory, "ben")
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(60, seed=5), sessions=["carl"])
        assert memory.load(tmp_path / "all", sessions=["ben"]) == len(bens)
        assert memory.sessions == ["carl", "ben"]
        assert [b["token_ids"] for b in memory.inspect("ben").to_dicts()] == bens
        assert all(
            torch.allclose(a, b, atol=1e-4)
            for a, b in zip(ask(llama, memory, "ben"), want, strict=True)
        )
        with pytest.raises(ValueError, match="session named 'ben' already"):
            memory.load(tmp_path / "m")
        memory.rename("ben", "benjamin")
        memory.load(tmp_path / "m")
        assert memory.sessions == ["carl", "benjamin", "ben"]
        with pytest.raises(UnknownSessionError, match="no session 'anna' among the 1 in") as caught:
            memory.load(tmp_path / "m", sessions=["anna"])
        assert "ben" not in str(caught.value)  # the name of somebody else


def test_a_session_that_lies_low_comes_back_low(llama: nn.Module, tmp_path: Path) -> None:
    """Nothing of it is wanted in the upper tiers, which are full of others' text."""
    with filled(llama) as memory:
        ring, ben = memory._core.ring, memory._core.table.require("ben")
        for tier in ring.ledger.tiers[:2]:
            slots = ring.ledger.slots_of(ben)
            slots = slots[tier.holds(slots)]
            ring.move(slots, ring.take(2, len(slots)))
        memory.save(tmp_path / "m", sessions=["ben"])
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(300, seed=3), sessions=["carl"])
        above = [block.id for block in memory.inspect() if block.tier != "long_term"]
        assert memory.load(tmp_path / "m") == len(memory.inspect("ben"))
        assert {block.tier for block in memory.inspect("ben")} == {"long_term"}
        assert [b.id for b in memory.inspect() if b.tier != "long_term"] == above


def test_another_model_is_refused(
    llama: nn.Module, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    filled(llama).save(tmp_path / "m")
    llama._cmr_memory.detach()
    with pytest.raises(ModelMismatchError, match=r"family .* expected"):
        cmr.load(tmp_path / "m", tiny("mistral"))
    weight = llama.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight.neg_()
    try:
        with pytest.raises(ModelMismatchError, match="another model: other weights"):
            cmr.load(tmp_path / "m", llama)
    finally:
        with torch.no_grad():
            weight.neg_()
    with pytest.raises(ModelMismatchError, match="dtype bfloat16 expected"):
        cmr.load(tmp_path / "m", build("llama").to(torch.bfloat16))
    assert not hasattr(llama, "_cmr_memory")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 16}, "settings as saved expected"),
        ({"target_layers": [2, 3]}, r"layers \[1, 2, 3, 4\].*layers \[2, 3\]"),
        ({"long_term_budget": 0}, "long_term_budget: above 0 expected"),
        ({"long_term_budget": 64}, r"budget: room for \d+ blocks .* expected, for 10 it could"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_whole(
    settings: dict[str, Any], message: str, llama: nn.Module, tmp_path: Path
) -> None:
    with filled(llama) as memory:
        memory.save(tmp_path / "m")
    with pytest.raises(ConfigError, match=message):
        cmr.load(tmp_path / "m", llama, **settings)
    assert not hasattr(llama, "_cmr_memory")


def test_in_smaller_tiers_blocks_lie_lower(llama: nn.Module, tmp_path: Path) -> None:
    with filled(llama) as memory:
        memory.save(tmp_path / "m")
        texts = [b.token_ids for b in memory.inspect()]
        want = ask(llama, memory)
    with cmr.load(tmp_path / "m", llama, budget=64, working_budget=0) as memory:
        blocks = memory.inspect()
        assert [b.token_ids for b in blocks] == texts
        assert {b.tier for b in blocks} == {"recent", "long_term"}
        assert all(torch.isfinite(x).all() for x in ask(llama, memory))
        assert len(want) == 40


def test_damage_is_found_before_anything_is_taken_in(llama: nn.Module, tmp_path: Path) -> None:
    with filled(llama) as memory:
        memory.save(tmp_path / "m")
    shards = sorted((tmp_path / "m").rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    raw = bytearray(shards[-1].read_bytes())
    raw[-5] ^= 1
    shards[-1].write_bytes(raw)
    with cmr.attach(llama, **SETTINGS) as memory:
        with pytest.raises(CorruptMemoryError, match="checksum"):
            memory.load(tmp_path / "m")
        assert (memory.sessions, memory.tokens) == ([], 0)
        with pytest.raises(MemoryNotFoundError):
            memory.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("slot", 10**6),
        ("slot", 0),
        ("tier", 7),
        ("token_ids", -1),
        ("token_ids", 200),
        ("positions", -2),
        ("access_count", -1),
        ("deadline", float("nan")),
        ("time", float("inf")),
        ("before", 1),
    ],
)
def test_columns_that_no_memory_has_are_refused(
    column: str, value: float, llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checksums that fit: whoever can write files can write those as well."""
    from cmr.integration.files.content import MemoryContent

    real = MemoryContent.__init__

    def hostile(self: MemoryContent, *args: Any) -> None:
        real(self, *args)
        self.columns = {name: tensor.clone() for name, tensor in self.columns.items()}
        self.columns[column][-2:] = value

    with filled(llama) as memory, monkeypatch.context() as patch:
        patch.setattr(MemoryContent, "__init__", hostile)
        memory.save(tmp_path / "m")
    with cmr.attach(llama, **SETTINGS) as memory:
        with pytest.raises(CorruptMemoryError, match=f"'{column}' holds values out of range"):
            memory.load(tmp_path / "m")
        assert (memory.sessions, memory.tokens) == ([], 0)


@pytest.mark.parametrize("wrong", ["foreign", "followed"])
def test_a_text_that_goes_on_where_it_cannot_is_refused(
    wrong: str, llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmr.integration.files.content import MemoryContent

    real = MemoryContent.__init__

    def hostile(self: MemoryContent, *args: Any) -> None:
        real(self, *args)
        mine = self.session == self.header["sessions"][0]["number"]
        numbers = self.numbers[mine if wrong == "followed" else ~mine].sort().values
        self.header["sessions"][0]["last"] = int(numbers[-2])

    with filled(llama) as memory, monkeypatch.context() as patch:
        patch.setattr(MemoryContent, "__init__", hostile)
        memory.save(tmp_path / "m")
    with cmr.attach(llama, **SETTINGS) as memory:
        with pytest.raises(CorruptMemoryError, match="'last' holds values out of range"):
            memory.load(tmp_path / "m")
        assert (memory.sessions, memory.tokens) == ([], 0)


def test_a_key_encrypts_it(llama: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with filled(llama) as memory:
        memory.save(tmp_path / "m", key=bytes(range(32)))
        before = ask(llama, memory)
    for key in (None, bytes(32)):
        with pytest.raises(MemoryKeyError):
            cmr.load(tmp_path / "m", llama, key=key)
    with cmr.load(tmp_path / "m", llama, key=bytes(range(32))) as memory:
        assert same(before, ask(llama, memory))
    names = [path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert not any(b"anna" in raw for raw in names)


def test_another_tokenizer_is_refused(llama: nn.Module, tmp_path: Path) -> None:
    class Tokenizer:
        def __init__(self, words: list[str]) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: i for i, word in enumerate(self.words)}

    with cmr.attach(llama, **SETTINGS, tokenizer=Tokenizer(["a", "b"])) as memory:
        memory.read(text(50))
        memory.save(tmp_path / "m")
    with pytest.raises(ModelMismatchError, match="another tokenizer"):
        cmr.load(tmp_path / "m", llama, tokenizer=Tokenizer(["b", "a"]))
    cmr.load(tmp_path / "m", llama, tokenizer=Tokenizer(["a", "b"])).detach()
    cmr.load(tmp_path / "m", llama).detach()


def test_a_vocabulary_is_looked_at_again_when_something_was_added(
    llama: nn.Module, tmp_path: Path
) -> None:
    class Tokenizer:
        looks, added = 0, dict[str, int]()

        def get_added_vocab(self) -> dict[str, int]:
            return dict(self.added)

        def get_vocab(self) -> dict[str, int]:
            self.looks += 1
            return {"a": 0, **self.added}

    tokenizer = Tokenizer()
    with cmr.attach(llama, **SETTINGS, tokenizer=tokenizer) as memory:
        for _ in range(3):
            memory.read(text(50))
            memory.save(tmp_path / "m")
        assert tokenizer.looks == 1
        tokenizer.added["b"] = 1
        with pytest.raises(ModelMismatchError, match="another tokenizer"):
            cmr.load(tmp_path / "m", llama, tokenizer=tokenizer)
