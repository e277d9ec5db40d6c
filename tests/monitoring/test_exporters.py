"""What watches are given: Prometheus by its own parser, spans by OpenTelemetry's, lines of JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

import cmr
from cmr import CMRPerformanceMonitor
from cmr.monitoring.json_lines import write_line
from cmr.monitoring.prometheus import page
from cmr.monitoring.spans import Spans
from cmr.retrieval import Retriever
from tests.integration.tiny import READS_ALL, text

SECRET = "anna's own words"


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, window=64, **READS_ALL) as memory:
        memory.read(text(200), sessions=[SECRET])
        yield memory


def ask(memory: cmr.Memory, tokens: int = 4) -> torch.Tensor:
    session = memory.session(SECRET)
    return session.generate(text(1, 80, seed=2), max_new_tokens=tokens, do_sample=False)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError(SECRET)

    monkeypatch.setattr(Retriever, "search", fail)


def test_prometheus_reads_the_page(
    memory: cmr.Memory, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CMRPerformanceMonitor(llama) as monitor:
        ask(memory)
        with monkeypatch.context() as once:
            broken(once)
            ask(memory)
        said = page(monitor).decode()
    families = {family.name: family for family in text_string_to_metric_families(said)}
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values() for sample in family.samples
    }  # fmt: skip
    assert families["cmr_stage_seconds"].type == "histogram"
    assert values["cmr_stage_seconds_count", "call"] == values["cmr_calls_total",] == 2
    assert values["cmr_stage_seconds_count", "token"] == 6
    assert values["cmr_stage_seconds_bucket", "+Inf", "token"] == 6
    ordered = [v for (name, *labels), v in values.items()
               if name == "cmr_stage_seconds_bucket" and "prompt" in labels]  # fmt: skip
    assert ordered == sorted(ordered) and ordered[-1] > 0
    assert values["cmr_left_out_total", "LookupError", "search"] == 1
    assert values["cmr_stored_tokens",] == memory.tokens
    assert values["cmr_call_failures_total",] == values["cmr_lost_tokens_total",] == 0
    assert "anna" not in said


def test_spans_of_a_request(
    memory: cmr.Memory, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    with Spans(memory, tracer):
        with tracer.start_as_current_span("web") as web:
            ask(memory)
        first = {span.name: span for span in kept.get_finished_spans()}
        kept.clear()
        broken(monkeypatch)
        ask(memory)
        second = {span.name: span for span in kept.get_finished_spans()}
        kept.clear()
        with pytest.raises(IndexError):
            llama(torch.full((1, 8), 10**6))
        (third,) = [s for s in kept.get_finished_spans() if s.name == "cmr.call"]
    kept.clear()
    ask(memory)
    assert not kept.get_finished_spans(), "closed"
    call = first["cmr.call"]
    assert call.parent.span_id == web.get_span_context().span_id
    stages = {"cmr.prompt", "cmr.token", "cmr.search", "cmr.read", "cmr.reweave", "cmr.store"}
    assert stages <= set(first)
    for name in stages:
        span = first[name]
        assert span.parent.span_id == call.context.span_id
        assert call.start_time <= span.start_time <= span.end_time <= call.end_time
    assert first["cmr.token"].attributes == {"cmr.count": 3, "cmr.tokens": 3}
    assert first["cmr.prompt"].attributes["cmr.tokens"] == 80
    assert "cmr.left_out" not in call.attributes and call.status.status_code == StatusCode.UNSET
    assert second["cmr.call"].attributes["cmr.left_out"] == ("search: LookupError",)
    assert third.status.status_code == StatusCode.ERROR
    assert "anna" not in "".join(span.to_json() for span in [*first.values(), *second.values()])


def test_lines_of_json(memory: cmr.Memory, llama: nn.Module) -> None:
    out = io.StringIO()
    with CMRPerformanceMonitor(llama) as monitor:
        write_line(monitor, out)
        ask(memory)
        monitor.stages["call"].add(1e9)
        write_line(monitor, out)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["calls"] == 0 and second["calls"] == 1 and first["time"] <= second["time"]
    assert second["stages"]["call"]["p95"] is None and second["recall_rate"] == 1.0
    assert "anna" not in out.getvalue()
