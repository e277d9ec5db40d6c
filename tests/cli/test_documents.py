"""What a document may be, and what is said where it is none."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cmr.cli.app import app
from cmr.cli.common import PIECE, encoded
from cmr.cli.errors import UsageError
from cmr.cli.input.documents import read_document
from tests.cli.conftest import Tokenizer
from tests.cli.test_ask import ask, failed

TEXT = "Ada keeps lavender — in the north tower.\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be-mark", "utf-32-be-mark"]
)
def test_marks_of_encodings_are_obeyed_and_no_part_of_the_text(tmp_path, encoding):
    raw = TEXT.encode(encoding.removesuffix("-mark"))
    if encoding.endswith("-mark"):
        raw = "\ufeff".encode(encoding.removesuffix("-mark")) + raw
    (tmp_path / "a.txt").write_bytes(raw)
    assert read_document(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (TEXT.encode("utf-16-le").replace(b"\x14 ", b"- "), "iconv -f UTF-16LE"),
        (b"\x7fELF\0\0\0\1", "is no text"),
        ("für".encode("latin-1"), "iconv -f WINDOWS-1252"),
        (b"\xff\xfea\0b", "begins as UTF-16"),
        (b"PK\x03\x04 and more", "ZIP archive, as .docx"),
        (b"\x1f\x8b and more", "gunzip"),
        (b"GGUF\x03\0\0\0", "--model"),
    ],
)
def test_what_is_no_text_is_one_line_with_a_remedy(runner, fake, tmp_path, raw, said):
    (tmp_path / "a.txt").write_bytes(raw)
    line = failed(ask(runner, "--document", tmp_path / "a.txt", "--question", "Q"))
    assert said in line and f"--document {tmp_path / 'a.txt'}: " in line
    assert fake.memory is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of Unix")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    path.chmod(0)
    if os.geteuid() == 0:
        # Root may read everything: what the system would say to others.
        def refused(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(UsageError, match=r"--text .*you may not read it; `chmod"):
        read_document(path, "--text")


def test_a_text_without_end_is_encoded_in_pieces_that_lose_nothing():
    sizes = []

    class Noting(Tokenizer):
        def __call__(self, text, return_tensors=None, add_special_tokens=True, **_):
            sizes.append((len(text), add_special_tokens))
            return super().__call__(text, return_tensors)

    text = "a" * (2 * PIECE + 5)
    assert Tokenizer().decode(encoded(Noting(), text)[0]) == text
    assert sizes == [(PIECE, True), (PIECE, False), (5, False)]
    sizes.clear()
    words = "seven b" * (PIECE // 7 + 2)
    assert Tokenizer().decode(encoded(Noting(), words)[0]) == words
    assert len(sizes) == 2 and words[sizes[0][0]] == " "


def test_what_does_not_fit_is_told_before_it_is_read(runner, fake, tmp_path):
    (tmp_path / "long.txt").write_text("Once upon a time. " * 400)
    result = ask(runner, "--document", tmp_path / "long.txt", "--question", "Q")
    said = " ".join(result.stdout.split())
    assert "long.txt has 7,200 tokens, the memory room for 4,096" in said
    assert "--budget" in said


def test_a_pipe_is_a_document(runner, fake):
    words = ["ask", "--document", "-", "--question", "Who?"]
    result = runner.invoke(app, words, input="\ufeffOnce upon a time.")
    assert result.exit_code == 0, result.output
    assert "read standard input: 17 tokens" in result.stdout


def test_a_pipe_is_a_question_where_none_is_given(runner, fake, document):
    result = runner.invoke(
        app, ["ask", "--document", str(document)], input="\nWho is it,\nand why?\n"
    )
    assert result.exit_code == 0, result.output
    asked = fake.tokenizer.decode(fake.model.calls[0][0][0])
    assert asked == "Question: Who is it,\nand why?\nAnswer:"


@pytest.mark.parametrize(
    "words",
    [["ask", "--document", "-"], ["chat", "--document", "-"], ["ask", "--document", "BOOK"]],
)
def test_a_pipe_that_would_have_to_be_two_things_is_one_line(runner, fake, document, words):
    words = [str(document) if word == "BOOK" else word for word in words]
    result = runner.invoke(app, words, input="text" if "-" in words else "")
    line = failed(result)
    assert "give --question" in line or "give a file" in line
    assert fake.memory is None


def test_who_types_a_document_is_told_how_it_ends(monkeypatch, capsys):
    class Terminal(SimpleNamespace):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(buffer=io.BytesIO(b"Typed.")))
    assert read_document(Path("-")) == "Typed."
    assert "Ctrl-D" in capsys.readouterr().err


def test_where_to_save_is_checked_before_a_document_is_read(runner, fake, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty.txt").touch()
    words = ["--document", tmp_path / "empty.txt", "--question", "Q", "--save", tmp_path / "file"]
    assert "--save" in failed(ask(runner, *words))


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_file_that_is_not_there_is_told_before_anything_is_loaded(command, tmp_path):
    code = f"""
import sys
sys.argv = ["cmr", {command!r}, "--document", "no.txt"]
from cmr.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert f"no.txt: no such file in {tmp_path}" in done.stderr


# -- PDF -----------------------------------------------------------------------------------------


def pdf(text: str, password: str = "") -> bytes:
    """A page with a text in one of the fonts that every reader has."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject(
        {
            NameObject("/F1"): DictionaryObject(
                {NameObject(k): NameObject(v) for k, v in font.items()}
            )
        }
    )
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    drawn = DecodedStreamObject()
    drawn.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
    page[NameObject("/Contents")] = writer._add_object(drawn)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    raw = io.BytesIO()
    writer.write(raw)
    return raw.getvalue()


def test_the_text_of_a_pdf_is_read(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("Ada keeps lavender."))
    assert read_document(tmp_path / "a.pdf").strip() == "Ada keeps lavender."


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (lambda: pdf(""), "no text in 1 page"),
        (lambda: pdf("secret", "password"), "locked by a password"),
        (lambda: b"%PDF-1.7\nnothing", "cannot be read"),
    ],
)
def test_a_pdf_without_text_to_be_had_is_one_line(tmp_path, raw, said):
    (tmp_path / "a.pdf").write_bytes(raw())
    with pytest.raises(UsageError, match=said) as error:
        read_document(tmp_path / "a.pdf")
    assert "\n" not in str(error.value)


def test_without_pypdf_it_is_said_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n")
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UsageError, match=r"pip install 'cmr\[pdf\]'"):
        read_document(tmp_path / "a.pdf")
