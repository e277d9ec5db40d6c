"""What has to hold of each kind of forward, on any stream and on any of several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cost.addresses import playing
from benchmarks.shared import decoding
from benchmarks.shared.device import device as device_of
from cmr.kernels import dispatch
from tests.gpu.checks import check_against_the_specification
from tests.gpu.inputs import Call, NotHere
from tests.gpu.searches import SEARCHES
from tests.gpu.steps import Seen, in_place
from tests.gpu.writes import WRITES

WINDOW, REFRESH = 64, 16
STEPS = 34
"""With a window that is full, a search every 16th and blocks that leave every 32nd."""
APART = 1e-3
"""Of the largest logit in float32: what kernels and specification may differ by."""
WAITS = {"prompt": 1, "step": 0, "search": 0, "leaving": 1}
"""Waits of the host for the device, at most, as the emulated device counts them."""
STORED, PROMPT = 320, WINDOW


@dataclass(frozen=True)
class Forward:
    """One forward of a text that goes on.

    Attributes:
        kind: `prompt`, `step`, `search` or `leaving`; `both` of the latter two.
        logits: [1, vocabulary], of its last token.
        waits: of the host for the device; None where nobody counts them.
    """

    kind: str
    logits: torch.Tensor
    waits: int | None


def kind(seen: Seen) -> str:
    """What a step did beside reading memory."""
    searched, left = "block_maxima" in seen.calls, "ring_link" in seen.calls
    return "both" if searched and left else "search" if searched else "leaving" if left else "step"


def forwards(model: Any, memory: Any, count: bool = False) -> Iterator[Forward]:
    """A prompt and steps behind it, always with the same tokens.

    Args:
        model: attached.
        memory: its memory, with text in it.
        count: look for waits.
    """
    device = device_of(model.device.type)
    cache: Any = None
    fed = decoding.some_text(PROMPT + STEPS, seed=1).to(model.device)[None]
    for begin, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
        out: Any = None

        def forward(begin: int = begin, end: int = end) -> None:
            nonlocal out, cache
            out = model(fed[:, begin:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values

        with Seen() as seen:
            waits = device.waits(forward) if count else None
            if not count:
                forward()
        assert memory.recalled[0], "nothing was read"
        yield Forward("prompt" if begin == 0 else kind(seen), out.logits[:, -1], waits)


@contextmanager
def remembering(
    device: str, dtype: torch.dtype = torch.float32, **more: Any
) -> Iterator[tuple[Any, Any]]:
    """A tiny model on a device, and its memory with text in it."""
    model = decoding.tiny_model(device, dtype, layers=2)
    settings: dict[str, Any] = {"window": WINDOW, "refresh": REFRESH, **more}
    with (
        in_place(device),
        torch.no_grad(),
        decoding.remembering(model, decoding.some_text(STORED), **settings) as memory,
    ):
        yield model, memory


def as_specified(device: str) -> None:
    """A prompt and steps, searches and leaving blocks among them, give the specification's logits.

    In float32, where kernels and specification agree to many digits; each with the same tokens.
    """
    with remembering(device) as (model, memory):
        have = list(forwards(model, memory))
    with dispatch.using("reference"), remembering(device) as (model, memory):
        want = list(forwards(model, memory))
    _alike(have, want)


def as_replayed(device: str) -> None:
    """`graphs=True`: steps that were recorded give the logits of those that run, in one graph.

    On a CPU the recorded function runs each time.
    """
    with remembering(device) as (model, memory):
        want = list(forwards(model, memory))
    played = playing() if device == "cpu" else nullcontext()
    with played, remembering(device, graphs=True) as (model, memory):
        have = list(forwards(model, memory))
        counted = memory.stats()["graphs"]
    _alike(have, want)
    assert (counted["captured"], counted["replayed"]) == (1, STEPS - 1), counted


def _alike(have: list[Forward], want: list[Forward]) -> None:
    """The same kinds of forwards, all of them among them, with the same logits."""
    assert [one.kind for one in have] == [one.kind for one in want]
    assert {"prompt", "step", "search", "leaving"} <= {one.kind for one in have}
    for number, (a, b) in enumerate(zip(have, want, strict=True)):
        apart = (a.logits - b.logits).abs().max() / b.logits.abs().max()
        assert apart <= APART, f"forward {number}, a {a.kind}: {float(apart):.2g} of the largest"


def waits_of_each_kind(device: str) -> None:
    """The host waits no more often than was counted without a GPU, whatever a forward does."""
    with remembering(device, torch.bfloat16) as (model, memory):
        memory.pause()
        alone = _waits(model)
        memory.resume()
        list(forwards(model, memory))  # what is made once is made
        for number, one in enumerate(forwards(model, memory, count=True)):
            most = WAITS.get(one.kind, sum(WAITS.values()))
            if one.waits is not None and alone is not None:
                assert one.waits - alone <= most, (
                    f"forward {number}, a {one.kind}: {one.waits} waits, {alone} of them the "
                    f"model's own, {most} more expected at most"
                )


def _waits(model: Any) -> int | None:
    run = decoding.begin(model, decoding.some_text(PROMPT, seed=2))
    run.steps(2)
    return device_of(model.device.type).waits(run.step)


def on_another_stream(device: str) -> None:
    """All of it on a stream of its own gives the same, bit for bit."""
    on = _streams(device, 1)[0]
    with remembering(device) as (model, memory):
        want = [one.logits.clone() for one in forwards(model, memory)]
    with on(), remembering(device) as (model, memory):
        have = [one.logits.clone() for one in forwards(model, memory)]
    assert all(map(torch.equal, have, want))


def streams_in_turns(device: str) -> None:
    """Two texts that go on in turns, each on its own stream, are what each is alone."""
    prompts = [decoding.some_text(PROMPT, seed=seed) for seed in (1, 2)]
    settings: dict[str, Any] = {"window": WINDOW, "refresh": REFRESH}
    model = decoding.tiny_model(device, torch.float32, layers=2)

    def found(streams: list[Callable[[], AbstractContextManager[object]]]) -> list[torch.Tensor]:
        with in_place(device), torch.no_grad(), decoding.remembering(
            model, decoding.some_text(STORED), sessions=["a"], **settings
        ) as memory:  # fmt: skip
            memory.read(decoding.some_text(STORED, seed=3), sessions=["b"])
            runs = []
            for name, prompt, on in zip("ab", prompts, streams, strict=True):
                with on(), memory.session(name):
                    runs.append(decoding.begin(model, prompt))
            for _ in range(STEPS):
                for name, run, on in zip("ab", runs, streams, strict=True):
                    with on(), memory.session(name):
                        run.step()
            device_of(device).synchronise()
            return [run.logits for run in runs]

    assert all(map(torch.equal, found(_streams(device, 2)), found([nullcontext, nullcontext])))


def _streams(device: str, count: int) -> list[Callable[[], AbstractContextManager[object]]]:
    """Streams to run on, each behind all that was asked for on the others; none on a CPU."""
    if device != "cuda":
        return [nullcontext] * count
    made = [torch.cuda.Stream() for _ in range(count)]

    def within(stream: Any) -> Callable[[], AbstractContextManager[object]]:
        @contextmanager
        def inside() -> Iterator[None]:
            before = torch.cuda.current_stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                yield
            before.wait_stream(stream)

        return inside

    return [within(stream) for stream in made]


def _second(device: str) -> str:
    """Another device of the kind; on a CPU the same one, of which there is one."""
    if device != "cuda":
        return device
    if torch.cuda.device_count() < 2:
        raise NotHere("one device alone")
    return "cuda:1"


def on_a_second_device(device: str) -> None:
    """A model that is not on the current device gives there what it gives on the first one."""
    second = _second(device)
    found = []
    for where in (device, second):
        with remembering(where) as (model, memory):
            found.append([one.logits.cpu() for one in forwards(model, memory)])
    for number, (a, b) in enumerate(zip(*found, strict=True)):
        apart = (a - b).abs().max() / b.abs().max()
        assert apart <= APART, f"forward {number}: {float(apart):.2g} of the largest logit"


def operations_on_a_second_device(device: str) -> None:
    """Searches and writes on tensors that are not on the current device are as specified."""
    second = _second(device)
    for call in (*SEARCHES, *WRITES):
        if not call.large:
            check_against_the_specification(_named(call, second), second, torch.float32)


def _named(call: Call, device: str) -> Call:
    """The same call, with the device in what is said of it."""
    return Call(**{**vars(call), "name": f"{call.name} on {device}"})


FORWARD_CHECKS: dict[str, Callable[[str], None]] = {
    "each kind of forward as specified": as_specified,
    "each kind of forward replayed": as_replayed,
    "waits of each kind of forward": waits_of_each_kind,
    "on another stream": on_another_stream,
    "streams in turns": streams_in_turns,
    "on a second device": on_a_second_device,
    "operations on a second device": operations_on_a_second_device,
}
