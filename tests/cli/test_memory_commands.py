"""``cmr memory``: saved memories looked at, forgotten from and exported without their model."""

from __future__ import annotations

import json
import shutil
import stat
import sys

import pytest

from cmr.cli.forget import duration
from cmr.errors import CMRError
from cmr.memory.store import Saved
from tests.cli.saved import CITY, OTHER
from tests.cli.test_saved_memory import failed, said


@pytest.fixture(scope="module")
def filled(tmp_path_factory, run_cmr):
    """A memory of two sessions; only ada's holds the secret."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "ada.txt").write_text(OTHER * 3 + CITY + OTHER * 3)
    (folder / "bo.txt").write_text(OTHER * 2)
    mem = folder / "mem"
    said(run_cmr("ask", "--document", folder / "ada.txt", "--session", "ada", "--save", mem))
    said(
        run_cmr(
            "ask", "--document", folder / "bo.txt", "--session", "bo", "--load", mem, "--save", mem
        )
    )
    return mem


@pytest.fixture
def mem(filled, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(filled, tmp_path / "mem")


def rows(result) -> list[dict]:
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


def everything(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file())


# -- inspect -------------------------------------------------------------------------------------


def test_inspect_shows_text_and_sums_up_without_the_weights(cmr, filled, monkeypatch):
    import transformers

    def never(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    shown = said(cmr("memory", "inspect", filled, "--limit", 0))
    assert "Rain fell on the harbour" in shown and "lavender" in shown
    saved = Saved.open(filled)
    assert f"{len(saved)} blocks, " in shown and "2 sessions" in shown
    assert f"recent {len(saved)}" in shown and "not encrypted" in shown
    assert f"format {saved.format_version}" in shown and "model tiny" in shown


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_inspect_fits_the_terminal_and_leaves_the_text_room(cmr, filled, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = cmr("memory", "inspect", filled, "--limit", 4)
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("harbour" in line for line in lines) >= 1
    assert len(lines) < 25
    assert "4 of " in result.out and "--limit" in result.out


def test_inspect_finds_by_text_session_and_place(cmr, filled):
    found = rows(cmr("memory", "inspect", filled, "--json", "--contains", "LAVENDER"))
    assert found and all("lavender" in row["text"] for row in found)
    assert {row["session"] for row in found} == {"ada"}
    newest = rows(cmr("memory", "inspect", filled, "--json", "--order", "newest", "--limit", 2))
    assert [row["session"] for row in newest] == ["bo", "bo"]
    assert newest[0]["id"] > newest[1]["id"]
    bos = rows(cmr("memory", "inspect", filled, "--json", "--session", "bo", "--limit", 0))
    assert "".join(row["text"] for row in bos) == OTHER * 2


def test_inspect_without_a_match_says_so(cmr, filled):
    result = cmr("memory", "inspect", filled, "--contains", "xylophone")
    assert "nothing stored matches" in said(result)
    assert rows(cmr("memory", "inspect", filled, "--json", "--tier", "working")) == []


def test_inspect_shows_token_ids_where_the_tokenizer_is_another(cmr, filled, other_model):
    for model in (None, other_model):
        shown = said(cmr("memory", "inspect", filled, "--model", model))
        assert "token ids instead of text" in shown and "harbour" not in shown
        wanted = cmr("memory", "inspect", filled, "--model", model, "--contains", "a")
        assert "no text without a tokenizer" in failed(wanted)


@pytest.mark.parametrize(
    ("option", "value"), [("--session", "eve"), ("--tier", "attic"), ("--order", "shoe size")]
)
def test_what_there_is_not_is_one_line(cmr, filled, option, value):
    line = failed(cmr("memory", "inspect", filled, option, value))
    assert option in line and value in line


@pytest.mark.parametrize("command", ["inspect", "forget", "export"])
def test_a_damaged_memory_is_one_line(cmr, mem, tmp_path, command):
    options = {"forget": ["--text", "a", "--yes"], "export": ["--out", tmp_path / "x.jsonl"]}
    columns = next(mem.glob("columns-*"))
    columns.write_bytes(columns.read_bytes()[:-7])
    assert columns.name in failed(cmr("memory", command, mem, *options.get(command, [])))
    shutil.rmtree(mem)
    assert "no saved memory" in failed(cmr("memory", command, mem, *options.get(command, [])))


# -- forget --------------------------------------------------------------------------------------


def test_forget_asks_and_no_changes_nothing(cmr, mem):
    before = everything(mem)
    for answer in ("n\n", ""):
        result = cmr("memory", "forget", mem, "--text", "lavender", stdin=answer)
        assert result.code == 1 and "nothing was changed" in result.out
        assert "lavender" in result.out
    assert everything(mem) == before


def test_forgotten_text_is_gone_from_every_file(cmr, mem):
    total = len(Saved.open(mem))
    # Two blocks hold it together; the case and the line break are not as they were stored.
    result = cmr("memory", "forget", mem, "--text", "ADA is\n  lavender in", stdin="y\n")
    assert "opened again and checked" in said(result)
    saved = Saved.open(mem)
    gone = total - len(saved)
    assert gone == 2 and "forgot 2 blocks, 64 tokens" in result.out
    assert "lavender" not in text_of(cmr, mem) and "north" not in text_of(cmr, mem)
    assert "nothing stored matches" in said(
        cmr("memory", "forget", mem, "--text", "Ada is lavender", "--yes")
    )
    assert len(Saved.open(mem)) == total - gone


def test_what_was_dropped_since_is_in_no_file(cmr, tmp_path):
    mem, book = tmp_path / "mem", tmp_path / "book.txt"
    book.write_text(CITY + OTHER * 4)
    said(cmr("ask", "--document", book, "--save", mem, "--budget", 320))
    dropped = [row["id"] for row in rows(cmr("memory", "inspect", mem, "--json", "--limit", 0))]
    book.write_text(OTHER)
    said(cmr("ask", "--document", book, "--load", mem, "--save", mem))
    assert "The secret of Ada" not in text_of(cmr, mem)
    manifest = json.loads((mem / "manifest.json").read_text())
    numbers = [number for shard in manifest["shards"] for number in shard["numbers"]]
    assert min(numbers) > min(dropped) and len(numbers) == len(Saved.open(mem))
    assert {path.name for path in mem.iterdir()} == {
        "manifest.json",
        ".lock",
        manifest["columns"]["file"],
        *(shard["file"] for shard in manifest["shards"]),
    }


def text_of(cmr, mem) -> str:
    found = rows(cmr("memory", "inspect", mem, "--json", "--limit", 0))
    return "".join(row["text"] for row in found)


def test_a_session_alone_ends(cmr, mem):
    result = cmr("memory", "forget", mem, "--session", "ada", "--yes")
    assert "session 'ada' ended" in said(result)
    saved = Saved.open(mem)
    assert [entry["name"] for entry in saved.header["sessions"]] == ["bo"]
    assert "lavender" not in text_of(cmr, mem) and "harbour" in text_of(cmr, mem)
    assert "'bo'" in failed(cmr("memory", "forget", mem, "--session", "ada", "--yes"))


def test_ids_and_other_terms_narrow_each_other(cmr, mem):
    found = rows(cmr("memory", "inspect", mem, "--json", "--limit", 0))
    ada, bo = (next(r["id"] for r in found if r["session"] == name) for name in ("ada", "bo"))
    line = failed(cmr("memory", "forget", mem, "--session", "ada", "--id", bo, "--yes"))
    assert f"--id {bo}" in line
    said(cmr("memory", "forget", mem, "--id", ada, "--id", bo, "--yes"))
    left = {row["id"] for row in rows(cmr("memory", "inspect", mem, "--json", "--limit", 0))}
    assert left == {row["id"] for row in found} - {ada, bo}


def test_age_decides(cmr, mem):
    total = len(Saved.open(mem))
    assert "nothing stored matches" in said(cmr("memory", "forget", mem, "--older-than", "1h"))
    assert len(Saved.open(mem)) == total
    said(cmr("memory", "forget", mem, "--older-than", "0s", "--yes"))
    assert len(Saved.open(mem)) == 0
    assert "nothing is stored" in said(cmr("memory", "inspect", mem))


def test_what_is_to_be_forgotten_must_be_said(cmr, mem):
    for options in ([], ["--text", " "], ["--older-than", "soon"], ["--session", "eve"]):
        failed(cmr("memory", "forget", mem, *options, "--yes"))


def test_a_text_is_not_looked_for_without_its_tokenizer(cmr, mem):
    total = len(Saved.open(mem))
    result = cmr("memory", "forget", mem, "--text", "a", "--yes", "--model", None)
    assert "--text" in failed(result)
    assert len(Saved.open(mem)) == total


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("1.5 D", 129_600)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "-3d", "1y", "1d2h"])
def test_what_is_no_duration(text):
    with pytest.raises(CMRError, match="--older-than"):
        duration(text)


# -- export --------------------------------------------------------------------------------------


def test_json_lines_hold_all_that_is_known(cmr, filled, tmp_path):
    out = tmp_path / "all.jsonl"
    said(cmr("memory", "export", filled, "--out", out))
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == rows(cmr("memory", "inspect", filled, "--json", "--limit", 0))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_text_comes_in_order_with_gaps_marked(cmr, mem, tmp_path):
    out = tmp_path / "ada.txt"
    said(cmr("memory", "export", mem, "--out", out, "--session", "ada"))
    assert out.read_text() == f"===== session ada =====\n{OTHER * 3}{CITY}{OTHER * 3}\n"
    said(cmr("memory", "forget", mem, "--text", "lavender", "--yes"))
    said(cmr("memory", "export", mem, "--out", out, "--session", "ada", "--force"))
    written = out.read_text()
    assert "lavender" not in written and "tokens not stored ...]" in written
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["ada.txt"]


def test_a_file_is_not_replaced_unasked(cmr, filled, tmp_path):
    out = tmp_path / "mine.txt"
    out.write_text("mine")
    assert "--force" in failed(cmr("memory", "export", filled, "--out", out))
    assert out.read_text() == "mine"


def test_where_it_cannot_be_written_is_one_line(cmr, filled, tmp_path):
    for name in ("x.csv", "none/x.txt"):
        assert name in failed(cmr("memory", "export", filled, "--out", tmp_path / name))
    line = failed(cmr("memory", "export", filled, "--out", tmp_path / "x.txt", "--session", "eve"))
    assert "'ada', 'bo'" in line
    line = failed(cmr("memory", "export", filled, "--out", tmp_path / "x.txt", "--model", None))
    assert "no text" in line
    assert not list(tmp_path.iterdir())


def test_a_plain_encoding_is_no_trouble(cmr, filled):
    assert "harbour" in said(cmr("memory", "inspect", filled, encoding="ascii"))
    assert sys.stdout is not None
