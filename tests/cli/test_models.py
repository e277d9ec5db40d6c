"""`--model`: GGUF files, and errors that say all that there is to say."""

from __future__ import annotations

import sys
import time
import urllib.error

import pytest

from cmr.cli.common import load_model, load_vocabulary, whole
from cmr.cli.errors import UsageError
from cmr.cli.input.gguf import folder_of
from cmr.cli.input.hub import only_here
from cmr.demo import conversion, smollm2
from cmr.errors import CMRError
from tests.cli.test_ask import ask, failed


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CMR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_other_names_are_left_as_they_are(tmp_path):
    for name in ("gpt2", "some/name", str(tmp_path)):
        assert folder_of(name) == name


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "a/b/c", "~none"])
def test_a_path_that_leads_nowhere_asks_no_hub(name):
    with pytest.raises(UsageError, match="no such folder"):
        load_model(name)


@pytest.fixture
def unreached(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    only_here.cache_clear()
    yield
    only_here.cache_clear()


def test_a_name_of_a_hub_that_cannot_be_reached_is_told_at_once(unreached):
    began = time.monotonic()
    for load in (load_model, load_vocabulary):
        with pytest.raises(UsageError, match=r"--model anna/tyni: .*:9 cannot be reached .*folder"):
            load("anna/tyni")
    assert time.monotonic() - began < 5


def test_a_model_that_is_here_is_taken_without_its_hub(unreached, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path))
    assert only_here("anna/tiny")


def test_a_hub_that_answers_is_asked(unreached, monkeypatch):
    def answers(*_, **__):
        raise urllib.error.HTTPError("", 404, "Not Found", {}, None)

    monkeypatch.setattr("urllib.request.urlopen", answers)
    assert not only_here("anna/tyni")


def test_a_file_of_weights_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="give its folder"):
        load_vocabulary(str(tmp_path / "model.safetensors"))


def test_the_small_models_file_is_the_small_model():
    """Which is mended where it is converted: numbers would be split otherwise."""
    file = str(smollm2.find_gguf())
    assert folder_of(file) == str(smollm2.converted())
    ids = load_vocabulary(file).encode("platform 17").ids
    assert ids == load_vocabulary(None).encode("platform 17").ids


def test_another_file_is_converted_once_for_each_content(cache, tmp_path, tiny_model, monkeypatch):
    import transformers

    asked = []

    def read(file, name):
        asked.append(name)
        return (
            transformers.AutoModelForCausalLM.from_pretrained(tiny_model),
            transformers.AutoTokenizer.from_pretrained(tiny_model),
        )

    monkeypatch.setattr(conversion, "read_gguf", read)
    file = tmp_path / "some.GGUF"
    file.write_bytes(b"GGUF")
    model, tokenizer = load_model(str(file))
    assert model.dtype == conversion.quick_dtype() and tokenizer.decode([1]) != ""
    assert folder_of(str(file)).startswith(str(cache / "some-"))
    assert asked == ["some"]
    file.write_bytes(b"GGUF, another")
    folder_of(str(file))
    assert asked == ["some", "some"]


def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(
    runner, fake, cache, tmp_path, document
):
    words = ["--document", document, "--question", "Q", "--model"]
    assert "no such file" in failed(ask(runner, *words, tmp_path / "no.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"no model")
    line = failed(ask(runner, *words, tmp_path / "b.gguf"))
    assert "b.gguf: cannot be converted: " in line and "give the folder" in line
    assert [*cache.iterdir()] == []


def test_without_the_package_it_is_said_what_to_install(cache, tmp_path, monkeypatch):
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CMRError, match=r"b\.gguf needs the package gguf: .*cmr\[demo\]"):
        folder_of(str(tmp_path / "b.gguf"))


def test_an_error_is_whole_on_one_line(monkeypatch, tmp_path):
    def refused(*_, **__):
        raise OSError("cannot connect.\nLook at\n  your cable.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refused)
    with pytest.raises(UsageError) as error:
        load_model(str(tmp_path))
    assert str(error.value).endswith("cannot be loaded: cannot connect. Look at your cable.")
    assert whole(KeyError()) == "KeyError"
