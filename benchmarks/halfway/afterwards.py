"""What a memory and its model still do after something broke: who comes next, and is it right?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.halfway.oracle import NAMES, View, canary, unaccounted, view
from cmr.integration.requests.scope import OPEN, opened_last
from cmr.memory.store import Saved

PROBE = canary("eve", 20, seed=99)[None]
SECONDS = 30.0
"""How long another thread waits for the memory."""


def dressed(model: Any) -> dict[str, Any]:
    """What stands on a model and its modules beside their weights: attributes, hooks, settings."""
    found: dict[str, Any] = {
        "config": model.config.to_dict(),
        "attention": str(model.config._attn_implementation),
    }
    for name, module in model.named_modules():
        own = {n: v for n, v in vars(module).items() if not n.startswith("_") or n[1:4] == "cmr"}
        hooks = [len(v) for n, v in sorted(vars(module).items()) if n.endswith("_hooks")]
        found[name] = sorted(own), hooks
    return found


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own; TimeoutError where it does not come back."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not found:
        raise TimeoutError("another thread waits for the memory for ever")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def said(error: BaseException) -> str:
    """An exception in a few words."""
    return f"{type(error).__name__}: {str(error)[:90]}"


class Answers:
    """Requests one after the other; what each gives, as text where it raises.

    Attributes:
        given: by request what it gave: to be compared with what another memory gives.
        wrong: what is wrong whatever another memory gives.
    """

    def __init__(self, model: Any, plain: torch.Tensor, bare: dict[str, Any]) -> None:
        self._model, self._plain, self._bare = model, plain, bare
        self.given: dict[str, Any] = {}
        self.wrong: list[str] = []
        self._kept = View((), ())

    def _ask(self, name: str, call: Callable[[], Any]) -> None:
        try:
            self.given[name] = call()
        except Exception as error:
            self.given[name] = said(error)

    def _require(self, what: str, so: Any) -> None:
        if not so:
            self.wrong.append(what)

    def of(self, memory: cmr.Memory, folder: Path, whole: bool) -> Answers:
        """Asks, and detaches; `whole`: also for what takes long, up to a load from `folder`."""
        self._ask("another thread", lambda: in_a_thread(lambda: memory.sessions))
        self._require("the lock is held", not memory._core.lock.mine)
        self._require("a forward is under way", not memory._stepper.under_way)
        self._require("a name is left over", opened_last() is None and not OPEN)
        self._ask("paused", lambda: self._paused(memory))
        if whole:
            self._work(memory, folder)
        self._ask("detach", memory.detach)
        self.wrong += bare(self._model, self._plain, self._bare)
        if whole:
            self._ask("load", lambda: self._loaded(folder))
        return self

    def _work(self, memory: cmr.Memory, folder: Path) -> None:
        self._ask("generate", lambda: self._generate(memory))
        self._ask("read", lambda: memory.read(PROBE[:, :16], sessions=["eve"]).blocks)
        self._ask("save", lambda: (memory.save(folder).blocks, unnamed(folder)))
        self._ask("accounts", lambda: unaccounted(memory))
        self._kept = view(memory)
        self._ask("forget", lambda: memory.forget("eve", files=False).blocks)

    def _paused(self, memory: cmr.Memory) -> str:
        memory.pause()
        logits = self._model(PROBE, use_cache=False).logits
        memory.resume()
        return "plain" if torch.equal(logits, self._plain) else "not the plain model's"

    def _generate(self, memory: cmr.Memory) -> list[int]:
        name = next(n for n in (*NAMES, "") if n in memory.sessions or not n)
        handle, prompt = memory.session(name or "anna", create=True), canary("anna", 10, seed=98)
        out = handle.generate(prompt[None], max_new_tokens=2, do_sample=False)
        self._require_own(name, view(memory), handle.recalled[0])
        return [int(token) for token in out[0, 10:]]

    def _require_own(self, name: str, held: View, recalled: Any) -> None:
        """What was recalled is stored for the session; by that it may be another's that it took."""
        own = {token for block in held.blocks if block[0] == name for token in block[3]}
        read = {token for passage in recalled for token in passage.token_ids}
        self._require("recalled of somebody else", read <= own)

    def _loaded(self, folder: Path) -> str:
        with cmr.load(folder, self._model) as memory:
            now = view(memory)
        # What is ephemeral is not saved.
        kept, gone = self._kept, {session[0] for session in self._kept.sessions if session[2]}
        kept = kept._replace(sessions=tuple(s for s in kept.sessions if s[0] not in gone))
        return "as saved" if now == kept else f"unlike what was saved: {now.apart(kept)}"


def bare(model: Any, plain: torch.Tensor, before: dict[str, Any]) -> list[str]:
    """What is wrong with a model that should have no memory."""
    wrong = []
    now = dressed(model)
    for name, what in before.items():
        if now.get(name) != what:
            wrong.append(f"left on {name or 'the model'}: {str(now.get(name))[:60]}")
            break
    try:
        same = torch.equal(model(PROBE, use_cache=False).logits, plain)
    except Exception as error:
        return [*wrong, f"without a memory: {said(error)}"]
    if not same:
        wrong.append("without a memory the model is not as it was")

    return wrong


def unnamed(folder: Path) -> list[str]:
    """Files of a saved memory that its manifest does not name."""
    names = set(Saved.open(folder)._manifest.files) | {"manifest.json", ".lock"}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(there - names)
