"""kvpress in an environment of its own: a process that is asked over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from cmr._folders import cache_root
from cmr.errors import EvaluationError
from cmr.evaluation.peers.weights import weights_digest

PRESSES = {
    "snapkv": "SnapKVPress",
    "expected-attention": "ExpectedAttentionPress",
    "knorm": "KnormPress",
    "streaming-llm": "StreamingLLMPress",
}
"""Systems that are presses of kvpress, and what kvpress calls them."""
PYTHON = "CMR_KVPRESS_PYTHON"
"""The environment variable that names the interpreter of an environment with kvpress."""
_WORKER = Path(__file__).with_name("press_worker.py")


def python() -> Path:
    """The interpreter that runs kvpress: `$CMR_KVPRESS_PYTHON`, else of `kvpress` in the cache.

    Raises:
        EvaluationError: there is none, or it has no kvpress; the message says how to get one.
    """
    told = os.environ.get(PYTHON)
    place = Path(told).expanduser() if told else cache_root() / "kvpress" / "bin" / "python"
    how = (
        "kvpress wants other versions of packages than cmr. Make it an environment of its own: "
        f"`python3 -m venv {cache_root() / 'kvpress'} && "
        f"{cache_root() / 'kvpress' / 'bin' / 'pip'} install kvpress==0.5.5 torch==2.13.0`; "
        f"elsewhere, name its interpreter in ${PYTHON}"
    )
    if not place.is_file():
        raise EvaluationError(f"systems: no interpreter with kvpress at {place}. {how}")
    # Not by importing it: that takes ten seconds.
    looked = "import importlib.util as u, sys; sys.exit(u.find_spec('kvpress') is None)"
    if subprocess.run([place, "-c", looked], check=False, capture_output=True).returncode:
        raise EvaluationError(f"systems: {place} has no package kvpress. {how}")
    return place


class Presses:
    """The same model in another process, where kvpress is.

    Args:
        model: whose weights lie in the folder that `model.config.name_or_path` says.

    Attributes:
        versions: of kvpress, transformers and PyTorch there.

    Raises:
        EvaluationError: there is no such environment, or its model has other weights.
    """

    def __init__(self, model: Any) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [python(), _WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip
        try:
            self.versions = self._ask(
                folder=str(model.config.name_or_path),
                dtype=str(model.dtype).removeprefix("torch."),
                device=str(model.device),
                threads=torch.get_num_threads(),
            )
            if self.versions.pop("weights") != weights_digest(model):
                raise EvaluationError(
                    f"kvpress: the model at {model.config.name_or_path} has other weights than the "
                    "one that is evaluated; save that one into a folder and load it from there"
                )
        except BaseException:
            self.close()
            raise

    def prefill(
        self, ids: list[int], presses: dict[str, tuple[str, float]]
    ) -> dict[str, dict[str, Any]]:
        """Reads a text once for several presses.

        Args:
            ids: the prompt's tokens up to the question.
            presses: of `PRESSES`, each with the tokens of which it keeps keys and values, or below
                1 their share; by a name, in place of what was held by that name before.

        Returns:
            By name `seconds` (of reading and of that press alone); `kept_tokens` of a layer, at
            most; `kept_bytes` of all layers.
        """
        shares = {
            name: (PRESSES[press], kept if kept < 1 else min(1.0, kept / len(ids)))
            for name, (press, kept) in presses.items()
        }
        return self._ask(ids=ids, presses=shares)

    def answer(self, name: str, ids: list[int], new_tokens: int) -> dict[str, Any]:
        """The greedy reply behind a text: `text`, `first_seconds` (its first token), `seconds`."""
        return self._ask(name=name, ids=ids, new_tokens=new_tokens)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise EvaluationError(f"kvpress: its process ended: {' '.join(said) or 'no word'}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise EvaluationError(f"kvpress: {found['error']}")
        return found
