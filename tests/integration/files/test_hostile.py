"""Saved memories that lie: a typed error and nothing changed, or a memory that is really one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from benchmarks.halfway import hostile as fuzz
from benchmarks.halfway.mutations import inputs
from cmr.errors import ConfigError, CorruptMemoryError, SessionNameError, StoreError
from cmr.integration.files import room
from tests.integration.tiny import text
from tests.memory.store import hostile
from tests.memory.store.hostile import Harm, drop, manifest, put

SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0, "budget": 256, "long_term_budget": 512}
HUGE = 10**30


@pytest.fixture
def folder(llama: nn.Module, tmp_path: Path) -> Path:
    with cmr.attach(llama, eviction_strategy="lru_relevance", **SETTINGS) as memory:
        memory.read(text(2, 360), sessions=["anna", "ben"])
        memory.save(tmp_path / "memory")
    return tmp_path / "memory"


def header(*path_and_value: Any) -> Harm:
    return put("header", *path_and_value)


def config(*path_and_value: Any) -> Harm:
    return put("header", "config", *path_and_value)


def seen(**changed: Any) -> dict[str, Any]:
    """What a header says of a text that a session was sent."""
    return {"at": [0], "positions": [0], "tokens": [8], "cuts": [], **changed}


REFUSED: dict[str, tuple[Harm, str]] = {
    "clock huge": (header("clock", 2**70), "'header.clock': an integer in 0.*"),
    "clock without room": (header("clock", 2**62), "'header.clock': an integer in"),
    "clock before blocks": (header("clock", 1), "holds values out of range"),
    "limit true": (header("limit", True), "'header.limit': an integer .* got True"),
    "limit below slots": (header("limit", 1), "'slot' holds values out of range"),
    "limit above tiers": (header("limit", 10**6), "'header.limit': at most the 24 blocks"),
    "tiers bool": (header("tiers", [["recent", True]]), "'header.tiers.0': an integer"),
    "tiers negative": (header("tiers", 1, 1, -5), "'header.tiers.1': an integer"),
    "tiers huge": (header("tiers", 0, 1, 2**70), "'header.tiers.0': an integer"),
    "tiers unknown": (header("tiers", 1, 0, "x"), "one of 'recent', 'working', 'long_term'"),
    "tiers swapped": (manifest(lambda t: t["header"]["tiers"].reverse()), "'recent', then others"),
    "tiers gone": (manifest(lambda t: t["header"]["tiers"].pop()), "out of range|at most the"),
    "tier of codes": (header("tiers", 1, 0, "working"), "'tier' holds values out of range"),
    "ttl text": (header("sessions", 0, "ttl", "5"), "'header.sessions.0.ttl': a number above 0"),
    "ttl true": (header("sessions", 0, "ttl", True), "ttl': a number above 0 .* got True"),
    "ttl for ever": (header("sessions", 0, "ttl", 1e308), "ttl': a number above 0"),
    "position huge": (header("sessions", 0, "position", HUGE), "position': an integer"),
    "position text": (header("sessions", 0, "position", "7"), "position': an integer"),
    "position inside": (header("sessions", 0, "position", 3), "'positions' holds values out"),
    "number twice": (header("sessions", 1, "number", 0), "two sessions have the same number"),
    "number negative": (header("sessions", 0, "number", -1), "number': an integer"),
    "number huge": (header("sessions", 0, "number", HUGE), "number': an integer"),
    "number of nobody": (header("sessions", 0, "number", 77), "'session' holds values out of"),
    "name list": (header("sessions", 0, "name", ["a"]), "name': 1 to 1024 printable"),
    "name twice": (header("sessions", 1, "name", "anna"), "two sessions have the same name"),
    "name with escapes": (header("sessions", 0, "name", "\x1b[2Ja"), "printable characters"),
    "name of 10 MB": (header("sessions", 0, "name", "a" * 10**7), "printable characters"),
    "name of half a character": (header("sessions", 0, "name", "\ud800"), "printable"),
    "texts a number": (header("sessions", 0, "texts", 7), "texts': a list of at most 32"),
    "too many texts": (header("sessions", 0, "texts", [seen()] * 33), "texts': a list of at most"),
    "a text of nothing": (header("sessions", 0, "texts", [{}]), "texts.0.at' is missing"),
    "a text with more": (header("sessions", 0, "texts", [seen(ids=[5])]), "no field that is known"),
    "a text too long": (header("sessions", 0, "texts", [seen(at=[1 << 17])]), "within 131072"),
    "a text turned round": (
        header("sessions", 0, "texts", [seen(at=[8, 0], positions=[8, 0], tokens=[8, 8])]),
        "texts.0.at': runs one behind the other",
    ),
    "a text with a run less": (
        header("sessions", 0, "texts", [seen(tokens=[])]),
        "as many expected of 'at'",
    ),
    "a text of no tokens": (
        header("sessions", 0, "texts", [seen(tokens=[0])]),
        "tokens': integers in 1..131072",
    ),
    "a cut beyond all": (header("sessions", 0, "texts", [seen(cuts=[HUGE])]), "integers in 0..131"),
    "adapters a list": (header("sessions", 0, "adapters", []), "adapters': an object of at most"),
    "scorer of nothing": (header("scorer", {"x": ["F32", [10**9], [1.0]]}), "values expected"),
    "scorer of too much": (header("scorer", {"x": ["F32", [], [1e300]]}), "finite numbers of 32"),
    "scorer of another kind": (header("scorer", {"x": ["I64", [1], [1]]}), "scorer: one of read"),
    "model empty": (header("model", {}), "'header.model.family' is missing"),
    "model's name a path": (header("model_name", "../x"), "'header.model_name': a plain name"),
    "index of nothing": (header("index", "0" * 64), "None where nothing is calibrated"),
    "more than a header": (header("more", 1), "'header.more' is no field that is known"),
    "no settings": (drop("header", "config"), "'header.config' is missing"),
    "settings deep": (config("memory", {"budget": {"a": {"b": {}}}}), "a setting expected"),
    "rows filled": (
        manifest(
            lambda t: t["columns"].update(
                rows=2**50, fill={"numbers": {"dtype": "I64", "value": 0}}
            )
        ),
        "'columns': column 'numbers' is both|a row for each block",
    ),
    "a fifth column": (
        put("columns", "fill", "column.x", {"dtype": "I64", "value": 0}),
        "missing or unknown: .'x'.",
    ),
    # Files of the machine.
    "calibration": (config("retrieval", "calibration", "/etc/passwd"), "calibration: one of 'auto"),
    "calibration of the system": (config("retrieval", "calibration", "/proc/self/mem"), "one of"),
    "calibration outside": (
        config("memory_config", {"calibration": "/etc/passwd"}),
        "calibration.*both set|one of",
    ),
    "folder of the last tier": (config("memory", "long_term_folder", "/"), "no long_term_folder"),
    "the same, flat": (config("long_term_folder", "/"), "no long_term_folder expected, got '/'"),
}
WRONG_SETTINGS: dict[str, tuple[Harm, str]] = {
    "budget": (config("memory", "budget", 10**12), r"take [\d,]+ bytes cpu, at most [\d,]+ "),
    "working budget": (config("memory", "working_budget", 2**61), r"take [\d,]+ bytes cpu, at"),
    "long-term budget": (
        config("memory", "long_term_budget", 10**15),
        r"take [\d,]+ bytes .*, at most [\d,]+ ",
    ),
    "budget of bytes": (config("memory", "budget", "9" * 9 + "GB"), "bytes .* at most"),
    "budget of more bytes": (config("memory", "budget", "9" * 400 + "GB"), "budget: .* got '9999"),
    "window": (config("window", 10**9), "window: at most this model's 1024 positions"),
    "context": (config("memory", "recall_context", 10**7), "recall_context: at most this model's"),
    "strategy": (config("retrieval", "strategy", "evil"), "strategy: one of"),
    "unknown": (config("memory", "evil", 1), "unknown setting memory.evil"),
    "sessions": (config("memory", "max_sessions", 1), "max_sessions: at most 1 sessions"),
    "layers": (config("memory", "target_layers", [0]), "settings as saved expected"),
    "store": (header("store", "tokens"), "store: 'tokens' expected, as saved, got 'kv'"),
}


def lying(folder: Path, harm: Harm) -> None:
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 4
    harm(folder)


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_cannot_be_is_refused_in_both_ways(
    folder: Path, llama: nn.Module, case: str
) -> None:
    harm, message = REFUSED[case]
    lying(folder, harm)
    with pytest.raises((CorruptMemoryError, ConfigError), match=message) as caught:
        cmr.load(folder, llama)
    assert not hasattr(llama, "_cmr_memory") and len(str(caught.value)) < 1000
    if "calibration" in case or "folder" in case or case == "the same, flat":
        return  # the settings of a memory in use are its own
    with cmr.attach(llama, **SETTINGS) as memory:
        with pytest.raises(CorruptMemoryError, match=message):
            memory.load(folder)
        assert (memory.sessions, memory.tokens) == ([], 0)


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_settings_that_cannot_be_are_refused(folder: Path, llama: nn.Module, case: str) -> None:
    harm, message = WRONG_SETTINGS[case]
    lying(folder, harm)
    with pytest.raises(ConfigError, match=message) as caught:
        cmr.load(folder, llama)
    assert not hasattr(llama, "_cmr_memory") and len(str(caught.value)) < 3000


def test_what_is_good_is_taken(folder: Path, llama: nn.Module) -> None:
    for harm in (
        header("clock", 2**62 - 1),
        header("sessions", 0, "ttl", 1e12),
        header("limit", 24),
    ):
        lying(folder, harm)
    with cmr.load(folder, llama) as memory:
        memory.read(text(60), sessions=["anna"])
        assert memory.inspect("anna")[-1].id > 2**62


def test_no_file_of_the_machine_is_named(llama: nn.Module, tmp_path: Path) -> None:
    own = tmp_path / "disk"
    own.mkdir()
    with cmr.attach(llama, long_term_folder=str(own), **SETTINGS) as memory:
        memory.read(text(100))
        memory.save(tmp_path / "memory")
    assert str(own) not in (tmp_path / "memory" / "manifest.json").read_text()
    with cmr.load(tmp_path / "memory", llama) as memory:
        assert memory.config.memory.long_term_folder is None
    with cmr.load(tmp_path / "memory", llama, long_term_folder=str(own)) as memory:
        assert memory.config.memory.long_term_folder == str(own)


def test_an_older_header_is_completed_and_its_paths_forgotten(
    folder: Path, llama: nn.Module
) -> None:
    def older(table: Any) -> None:
        table["format_version"] = 2
        del table["header"]["index"], table["header"]["calibrated"]
        for session in table["header"]["sessions"]:
            del session["adapters"], session["texts"]
        table["header"]["config"]["memory"]["long_term_folder"] = "/nowhere"

    lying(folder, manifest(older))
    with cmr.load(folder, llama) as memory:
        assert memory.config.memory.long_term_folder is None
        assert memory.config.retrieval.calibration == "sampled"
        memory.forget("ben")
    assert hostile.read(folder)["format_version"] == 4
    with cmr.load(folder, llama) as memory:
        assert memory.sessions == ["anna"]

    def calibrated(table: Any) -> None:
        older(table)
        table["header"]["calibrated"] = True
        table["header"]["config"]["retrieval"]["calibration"] = "/etc/passwd"

    lying(folder, manifest(calibrated))
    with pytest.raises(ConfigError, match=r"calibration: the file that .* was saved with expected"):
        cmr.load(folder, llama)
    cmr.load(folder, llama, calibration="none").detach()


def test_what_a_memory_may_take_is_the_callers_to_say(
    folder: Path, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cmr.load(folder, llama, max_bytes="16 MiB") as memory:
        needed = memory.nbytes
    with pytest.raises(
        ConfigError, match=rf"take [\d,]+ bytes in all, at most {needed - 1:,} \(max"
    ):
        cmr.load(folder, llama, max_bytes=needed - 1)
    for wrong in (0, -1, True, 1.5, "much"):
        with pytest.raises(ConfigError, match=r"max_bytes: .* expected, got"):
            cmr.load(folder / "not looked at", llama, max_bytes=wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(room, "_host_free", lambda: 1000)
    with pytest.raises(ConfigError, match=r"bytes cpu, at most 1,000 \(what is free there\)"):
        cmr.load(folder, llama)
    cmr.load(folder, llama, max_bytes="16 MiB").detach()


def test_what_is_free_is_known_here() -> None:
    free = room._host_free()
    assert 1 << 20 < free < 1 << 50
    assert room._numbers("/proc/not there") == {}


@pytest.mark.parametrize("name", ["a\x00b", "\x1b[2J", "a\nb", "\ud800", "\u202egnp", "a" * 1025])
def test_a_name_that_could_not_be_loaded_is_refused_up_front(llama: nn.Module, name: str) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(40), sessions=["anna"])
        uses: list[Callable[[], Any]] = [
            lambda: memory.session(name, create=True),
            lambda: memory.read(text(40), sessions=[name]),
            lambda: memory.rename("anna", name),
            lambda: memory.fork("anna", name),
        ]
        for use in uses:
            with pytest.raises(SessionNameError, match="a session name of at most 1024") as caught:
                use()
            assert len(str(caught.value)) < 700
        assert memory.sessions == ["anna"]


@pytest.mark.parametrize("name", ["0", "Ωmega", "👩‍👩‍👧 家族", "a b/c\\d", "../x", "e" * 1024])
def test_a_name_that_is_taken_comes_back(llama: nn.Module, tmp_path: Path, name: str) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(40), sessions=[name])
        memory.save(tmp_path / "memory")
    with cmr.load(tmp_path / "memory", llama) as memory:
        assert memory.sessions == [name] and memory.tokens == 40


def test_what_could_not_be_loaded_is_not_saved(llama: nn.Module, tmp_path: Path) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(40))
        memory._core.ring.clock = 2**62
        with pytest.raises(StoreError, match="cannot be saved: 'clock': an integer in"):
            memory.save(tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e12])
@pytest.mark.parametrize("part", ["index", "keys.2", "values.3"])
def test_states_that_no_model_has_are_refused(
    llama: nn.Module, tmp_path: Path, part: str, value: float
) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(60))
        memory._core.ring.parts[0][part][1].fill_(value)
        memory.save(tmp_path / "memory")
    with pytest.raises(CorruptMemoryError, match=f"'{part}': finite numbers of at most"):
        cmr.load(tmp_path / "memory", llama)
    assert not hasattr(llama, "_cmr_memory")


def test_a_pinned_tier_says_so_with_an_error_of_the_librarys(llama: nn.Module) -> None:
    with cmr.attach(llama, window=64, budget=64) as memory:
        memory.read(text(64))
        memory._core.ring.ledger.pinned[:] = True
        with pytest.raises(ConfigError, match="budget: no room for new blocks in the tier"):
            memory.read(text(64, seed=2), sessions=["ben"])


# -- by the hundred --------------------------------------------------------------------------------


def test_hundreds_of_folders_that_lie(tmp_path: Path) -> None:
    """The small run of `python -m benchmarks.halfway.hostile`."""
    with torch.no_grad():
        trial = fuzz.Trial(fuzz.tiny(), tmp_path)
        # Each in one of both ways, in turns: the command tries both.
        counts = trial.all_of(inputs(trial.files, 1, randoms=140, share=0.02), turns=True)
    assert trial.failures == []
    total = {name: sum(c[name] for c in counts.values()) for name in ("inputs", "refused", "equal")}
    assert total["inputs"] > 400 and total["refused"] > 300 and total["equal"] > 10


def test_the_trial_sees_what_the_schema_keeps_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checks the same folders break what uses them."""
    from cmr.memory.store import checked, fields

    monkeypatch.setattr(checked, "HEADER", fields.anything)
    monkeypatch.setattr(checked, "_ranges", lambda saved: {})
    with torch.no_grad():
        trial = fuzz.Trial(fuzz.tiny(), tmp_path)
        given = list(inputs(trial.files, seed=1, randoms=0, share=0.03))
        wanted = [one for one in given if "header.sessions" in one.about or "clock" in one.about]
        trial.all_of(wanted[:20], turns=True)
    assert any("Error" in failure for failure in trial.failures)


def test_the_trial_sees_files_outside_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "inside").mkdir()
    watch = fuzz.Watch([tmp_path / "inside"])
    with watch.on():
        (tmp_path / "inside" / "a").write_text("x")
        assert watch.touched == []
        secret.read_text()
        shutil.rmtree(tmp_path / "inside", ignore_errors=True)
    assert any(str(secret) in touched for touched in watch.touched)


def test_a_text_that_says_it_is_where_nothing_is_stored_is_known_by_nobody(
    folder: Path, llama: nn.Module
) -> None:
    """Runs that lie upon each other in the session, and beyond all that it stores."""
    texts = [
        seen(at=[0, 100], positions=[20, 20], tokens=[60, 60], cuts=[5]),
        seen(at=[50], positions=[1 << 40], tokens=[9]),
    ]
    lying(folder, header("sessions", 0, "texts", texts))
    with cmr.load(folder, llama) as memory:
        anna = memory._core.table.require("anna")
        (known,) = memory._core.table.texts(anna).values()
        ids = [token for block in memory.inspect("anna") for token in block.token_ids]
        assert [run.ids.tolist() for run in known.runs] == [ids[20:80]] * 2
