from __future__ import annotations

import subprocess
import sys

import pytest

from cmr.cli import main
from cmr.cli.app import app
from cmr.kernels import OPERATIONS


def test_the_package_is_the_command():
    said = subprocess.run(
        [sys.executable, "-m", "cmr", "--version"], capture_output=True, text=True
    )
    assert said.returncode == 0 and said.stdout.startswith("cmr ")


def test_info_names_versions_devices_and_kernels(runner):
    import torch

    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.stdout
    for name in ("cmr", "transformers", "triton", "faiss-cpu", "bitsandbytes", "nvtx", "cpu"):
        assert name in result.stdout
    said = " ".join(result.stdout.split())
    assert "on cpu: reference (PyTorch: no Triton on device 'cpu')" in said
    assert f"{len(OPERATIONS)} operations: attention_partials, " in said


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "ask",
        "chat",
        "evaluate",
        "info",
        "memory",
        "memory inspect",
        "memory forget",
        "memory export",
    ],
)
def test_every_command_explains_itself(runner, command):
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_the_version_is_one_line(runner):
    import cmr

    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"cmr {cmr.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ask --window x", ": --window should be a valid integer; `cmr ask"),
        ("ask --wndow 64", "--window"),
        ("aks", "'ask'"),
        ("memory inspect", "PATH"),
        ("serve-key --keys f", "--tenant"),
    ],
)
def test_wrong_words_are_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and said in line and line.endswith("--help` tells more")
    assert captured.out == ""


@pytest.mark.parametrize("words", [[], ["memory"]])
def test_no_words_are_answered_with_help(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "Usage: cmr" in captured.out and captured.err == ""


def test_completion_can_be_installed(capsys, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as end:
        main(["--show-completion", "bash"])
    assert end.value.code == 0
    assert "_CMR_COMPLETE" in capsys.readouterr().out


def test_missing_packages_are_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as end:
        main(["info"])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "typer" in error and "cmr[cli]" in error


def test_the_command_line_imports_no_model_code():
    code = "import sys, cmr.cli, cmr.cli.app; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_ctrl_c_exits_with_130(runner, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("cmr.cli.info.run", interrupt)
    assert runner.invoke(app, ["info"]).exit_code == 130
