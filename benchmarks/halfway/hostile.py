"""Saved memories that lie: is every one of them refused, or really harmless?

Every field of the manifest and of its header gets values of another type, out of its range, huge,
negative, not finite, deeply nested, or that name files of the machine; it is missing, there once
more, or twice; and manifest and data files are changed at random, bytes and structure. The
checksums are made right again, except where they are what is tried. Each folder is opened in both
ways, as a memory of its own (`cmr.load`) and into one in use (`memory.load`), and what opens is
used: looked at, read into, asked, saved, forgotten from, cleared.

`refused`: with an error of the library's. `equal`: what is stored is the good memory's, and the
model answers the same. `other`: something else that a memory may hold; all of it could be used and
the answers are finite numbers. `failures`: any other exception, more memory than `BOUND`, longer
than `SECONDS`, a file outside of the folder touched, a model that is not as it was.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.halfway.mutations import Files, Input, inputs
from benchmarks.halfway.watch import Watch, most_held
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.tiny import tiny_llama
from cmr.integration.calibration import files as calibrations

SETTINGS: dict[str, Any] = {
    "strict": True,
    "window": 24,
    "block_size": 8,
    "budget": 64,
    "working_budget": 64,
    "long_term_budget": 128,
    "threshold": 0.0,
    "refresh": 2,
    "eviction_strategy": "lru_relevance",
}
"""Three small tiers; what is read is scored, so that the scorer has learnt something."""
VOCABULARY = 64
ROOM = 64 << 20
"""What a memory may take (`max_bytes`)."""
BOUND = 4 * ROOM
"""What opening and using one may take, in bytes above what the process held before."""
SECONDS = 20.0


def tiny() -> Any:
    """A random Llama of three layers, always the same."""
    return tiny_llama(
        7,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )


def text(seed: int, tokens: int) -> torch.Tensor:
    """Token ids `[1, tokens]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, tokens), generator=generator)


class Trial:
    """A good memory in a folder, and folders that lie about it.

    Args:
        model: whose memory it is.
        place: a folder for all of it.
        settings: of the memory.
    """

    def __init__(self, model: Any, place: Path, **settings: Any) -> None:
        self.model, self._bad, self._again = model, place / "bad", place / "again"
        self._settings = {**SETTINGS, **settings}
        self._plain = model(text(9, 30)).logits
        good = place / "good"
        with cmr.attach(model, **self._settings) as memory:
            for seed, name in enumerate(("anna", "ben", "Ωmega")):
                with memory.session(name, create=True, ttl=1e6 if name == "ben" else None):
                    memory.read(text(seed, 120))
            ask(model, memory)
            memory.pin(memory.inspect("anna")[0].id)
            memory.save(good)
        self.files: Files = {path.name: path.read_bytes() for path in good.iterdir() if path.suffix}
        shutil.rmtree(good)
        own = [calibrations.SHIPPED, calibrations.folder(), calibrations.folder().parent]
        self._watch = Watch([self._bad, self._again, *own])
        self.most = self.slowest = 0.0
        self.failures: list[str] = []
        self._wanted: dict[bool, Any] = {}
        for into in (False, True):
            warm = self._opened(into)  # whatever is made once is made before anything is counted
            self._wanted[into] = self._use(warm)
            warm.detach()
        self._held = most_held()
        signal.signal(signal.SIGALRM, _too_long)

    def _opened(self, into: bool) -> cmr.Memory:
        """The bad folder, opened in one of both ways."""
        if not self._bad.exists():
            self._write(self.files)
        if not into:
            return cmr.load(self._bad, self.model, max_bytes=ROOM)
        memory = cmr.attach(self.model, **self._settings)
        try:
            memory.load(self._bad)
        except BaseException:
            memory.detach()
            raise
        return memory

    def _write(self, files: Files) -> None:
        for place in (self._bad, self._again):
            shutil.rmtree(place, ignore_errors=True)
        self._bad.mkdir()
        for name, data in files.items():
            (self._bad / name).write_bytes(data)

    def _use(self, memory: cmr.Memory) -> Any:
        """All that one does with a memory; what is stored and answered."""
        found = memory.inspect()
        found.table()
        stored = [{**block, "last_access": 0} for block in found.to_dicts()]
        infos = [(i.name, i.position, i.ttl) for i in memory._core.table.infos()]
        memory.entries()
        memory.stats()
        answer = ask(self.model, memory)
        if not bool(answer.isfinite().all()):
            raise ArithmeticError("an answer that is not finite")
        steps: list[Callable[[], Any]] = [
            lambda: memory.session("anna", create=True).read(text(7, 40)),
            lambda: ask(self.model, memory),
            memory.consolidate,
            lambda: memory.save(self._again),
            lambda: memory.forget("anna"),
            memory.clear,
        ]
        for step in steps:
            try:
                step()
            except cmr.CMRError:
                continue
        return stored, infos, answer

    def of(self, given: Input, into: bool) -> str:
        """What becomes of one input: `refused`, `equal`, `other` or `failed`."""
        self._write(given.files)
        began, memory, seen, error = time.perf_counter(), None, "other", ""
        with self._watch.on():
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                memory = self._opened(into)
                found = self._use(memory)
                if _same(found, self._wanted[into]):
                    seen = "equal"
            except cmr.CMRError:
                seen = "refused"
            except Exception as other:
                error = _told(other)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if memory is not None:
                    memory.detach()
        took, held = time.perf_counter() - began, most_held() - self._held
        self.slowest, self.most = max(self.slowest, took), max(self.most, held)
        if self._watch.touched:
            error += f" touched {self._watch.touched[:3]}"
            self._watch.touched.clear()
        if held > BOUND:
            error += f" held {held:,} bytes"
        if hasattr(self.model, "_cmr_memory"):
            error += " left a memory attached"
            self.model._cmr_memory.detach()
        if seen != "refused" and not torch.equal(self.model(text(9, 30)).logits, self._plain):
            error += " left another model"
        if error:
            way = "into a memory" if into else "cmr.load"
            self.failures.append(f"{given.kind}: {given.about} ({way}): {error.strip()}")
            return "failed"
        return seen

    def all_of(self, given: Iterable[Input], turns: bool = False) -> dict[str, Counter[str]]:
        """Kind of input to how many folders of it were what.

        `turns`: each is opened in one of both ways, in turns.
        """
        counts: dict[str, Counter[str]] = {}
        began = time.perf_counter()
        for number, one in enumerate(given, start=1):
            here = counts.setdefault(one.kind, Counter())
            here["inputs"] += 1
            for into in (bool(number % 2),) if turns else (False, True):
                here[self.of(one, into)] += 1
            if number % 1000 == 0:
                print(f"{number:,} inputs, {time.perf_counter() - began:.0f} s", flush=True)
        return counts


def ask(model: Any, memory: cmr.Memory) -> torch.Tensor:
    """The logits of a forward in a session."""
    return memory.session("anna", create=True).forward(text(0, 120)[:, 40:56]).logits.clone()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {SECONDS:g} s")


def _same(found: Any, wanted: Any) -> bool:
    return found[:2] == wanted[:2] and torch.equal(found[2], wanted[2])


def _told(error: Exception) -> str:
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {where}: {str(error)[:160]}"


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--randoms", type=whole(0), default=4_000, help="inputs changed at random")
    parser.add_argument("--share", type=float, default=1.0, help="of all fields' inputs")
    parser.add_argument("--store", choices=("kv", "states", "tokens"), default="kv")
    parser.add_seed()
    parser.add_threads(1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    about = rows.conditions(None, given.seed, **SETTINGS, store=given.store)
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        trial = Trial(tiny(), Path(place), store=given.store)
        counts = trial.all_of(inputs(trial.files, given.seed, given.randoms, given.share))
    total = sum((count for count in counts.values()), Counter[str]())
    row = {
        **about,
        **{name: total[name] for name in ("inputs", "refused", "equal", "other")},
        "failures": len(trial.failures),
        "kinds": {kind: dict(count) for kind, count in counts.items()},
        "peak_bytes": trial.most,
        "bound_bytes": BOUND,
        "slowest_seconds": round(trial.slowest, 3),
    }
    rows.append("hostile", row)
    for kind, count in {**counts, "all": total}.items():
        print(f"{kind:12} " + ", ".join(f"{name} {number:,}" for name, number in count.items()))
    for failure in trial.failures:
        print(failure)
    print(f"peak {trial.most / 2**20:.0f} MiB, slowest {trial.slowest:.2f} s")
    return 1 if trial.failures else 0


if __name__ == "__main__":
    run(main)
