"""Two processes with a memory each on one folder: nothing foreign goes, nothing forgotten stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import cmr
from cmr.errors import CMRWarning, StoreError
from cmr.memory.store import Saved
from tests.integration.canaries import Traces, canary

ROOT = Path(__file__).parents[3]
# Loads what is there, adds to it, and saves; then reads the folder until it is told to end.
OTHER = """
import sys, torch, cmr
from cmr.memory.store import Saved
from tests.integration.canaries import canary
from tests.integration.tiny import build
torch.set_num_threads(1)
folder = sys.argv[1]
with torch.no_grad(), cmr.load(folder, build("llama")) as memory:
    memory.read(canary("carl", 96), sessions=["carl"])
    memory.rename("anna", "somebody")
    memory.save(folder)
    print("saved", flush=True)
    assert sys.stdin.readline() == "read\\n"
    held = list(Saved.open(folder).batches())
    print("reads", flush=True)
    assert sys.stdin.readline() == "save\\n"
    del held
    try:
        memory.save(folder)  # with what was forgotten meanwhile
    except cmr.errors.StoreError as error:
        print("refused", str(error), flush=True)
    memory.clear("somebody")
    memory.save(folder)
    print("saved again", flush=True)
    assert sys.stdin.readline() == "read\\n"
    held = list(Saved.open(folder).batches())
    print("reads", flush=True)
    sys.stdin.readline()
"""


def test_one_forgets_what_another_process_saves_and_reads(llama: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with cmr.attach(llama, window=64, threshold=0.0, budget=1024) as memory:
        memory.read(canary("anna", 96), sessions=["anna"])
        memory.read(canary("ben", 96), sessions=["ben"])
        memory.save(folder)
        traces = Traces(memory, "anna")
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout

        def tell(line: str) -> str:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        def names() -> list[str]:
            return [entry["name"] for entry in Saved.open(folder).header["sessions"]]

        assert process.stdout.readline().strip() == "saved"
        assert names() == ["somebody", "ben", "carl"]
        # What it has saved is not replaced without a word.
        with pytest.raises(StoreError, match="Somebody else has saved"):
            memory.save(folder)
        assert tell("read") == "reads"
        with pytest.warns(CMRWarning, match="is in use"):
            report = memory.forget("anna")
        assert list(report.outstanding) == [str(folder)] and report.blocks == 3
        assert names() == ["ben", "carl"] and traces.in_folder(folder)
        # It still has Anna's text, and may not save it: the note holds for everybody.
        assert "may be in what is saved (blocks [" in tell("save")
        assert process.stdout.readline().strip() == "saved again"
        assert names() == ["ben", "carl"]
        assert not traces.in_folder(folder, "anna") and len(Saved.open(folder)) == 6
        memory.inspect()
        assert memory.outstanding == {}
        # Killed while it reads, with something noted: whoever opens the folder next finishes.
        assert tell("read") == "reads"
        traces = Traces(memory, "ben")
        with pytest.warns(CMRWarning, match="is in use"):
            memory.forget("ben")
        assert traces.in_folder(folder)
        process.kill()
        process.communicate()
        assert names() == ["carl"] and not traces.in_folder(folder, "ben")
        assert not list(folder.glob(".forget-*"))
    with cmr.load(folder, llama) as memory:
        assert memory.sessions == ["carl"] and len(memory.inspect()) == 3
