"""Requests as spans of OpenTelemetry: one a request, and inside it one for each of its stages.

Needs the package opentelemetry-api: `pip install cmr[otel]`. Where the spans go is up to the
tracer's provider.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable

from opentelemetry import trace

from cmr.integration.memory import Memory
from cmr.integration.requests.timing import Took

NANO = 1_000_000_000


class _Stages(threading.local):
    """What the request of this thread has done so far: seconds, how often, tokens, by stage."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0])
        self.left_out: list[str] = []


class Spans:
    """Makes spans of the requests to one memory until `close`.

    A request is a span `cmr.call`, a child of whatever span is current around it, with a child
    `cmr.<stage>` for each stage (see `Took`): as long as all of that stage together, beginning with
    the request, with the attributes `cmr.count` and `cmr.tokens`. `cmr.left_out` names what failed
    of the memory and was left out; a request that raised has the status ERROR. No text, no ids and
    no name of a session is in a span. Steps of a decoding loop of one's own are counted to the next
    request of their thread.

    Args:
        memory: attached to the model.
        tracer: of the program; None: that of the global provider, named 'cmr'.
    """

    def __init__(self, memory: Memory, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("cmr")
        self._mine = _Stages()
        self.close: Callable[[], None] = memory.watch(self._took)

    def __enter__(self) -> Spans:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _took(self, took: Took) -> None:
        mine = self._mine
        if took.stage == "left_out":
            mine.left_out.append(took.error)
        elif took.stage == "call":
            self._call(took)
        else:
            stage = mine.of[took.stage]
            for at, amount in enumerate((took.seconds, 1, took.tokens)):
                stage[at] += amount

    def _call(self, took: Took) -> None:
        mine = self._mine
        stages, left_out = dict(mine.of), mine.left_out
        mine.of.clear()
        mine.left_out = []
        end = time.time_ns()
        began = end - int(took.seconds * NANO)
        span = self._tracer.start_span("cmr.call", start_time=began)
        if left_out:
            span.set_attribute("cmr.left_out", sorted(set(left_out)))
        if took.error:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for name, (seconds, count, tokens) in stages.items():
            attributes = {"cmr.count": int(count), "cmr.tokens": int(tokens)}
            part = self._tracer.start_span(
                f"cmr.{name}", context=inside, start_time=began, attributes=attributes
            )
            part.end(began + int(seconds * NANO))
        span.end(end)
