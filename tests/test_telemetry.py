"""Traces of turns: what they hold, that a collector can read them, and that one that is gone costs no call anything."""

from __future__ import annotations

import asyncio
import builtins
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import Config, SessionConfig, TelemetryConfig, load_config
from duplex.errors import ConfigError, MissingDependencyError
from duplex.frames import silence
from duplex.hub import SessionHub
from duplex.serve import running
from duplex.session import Session
from duplex.telemetry import TracedTurn, TurnTraces
from duplex.telemetry_line import observed
from duplex.telemetry_otel import TurnExporter, traces_url
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, run_virtual, tone
from duplex.testing.agent import ScriptedStages
from duplex.transport.client_websocket import WebSocketCall

NOW_UNIX_S = 1_800_000_000.0


def at(s: float) -> ev.At:
    return ev.At(int(s * 24_000), s)


def traced(reply: str = "resp_1") -> ev.TurnTraced:
    spans = (("end_of_turn", 0.0, 300.0), ("thinker", -80.0, 200.0), ("first_packet", 300.0, 320.0))
    return ev.TurnTraced(at(1), "item_u", reply, (), spans, 20.0, 320.0, 300.0, True)


def finished(reply: str = "resp_1", status: str = "completed", error: str | None = None) -> ev.ReplyFinished:
    return ev.ReplyFinished(at(3), reply, "item_a", status, "Hello.", 1800.0, error, ev.Usage(40, 30, 7))


def observe(*told: tuple[float, ev.Event]) -> list[TracedTurn]:
    turns: list[TracedTurn] = []
    traces = TurnTraces(turns.append)
    traces("sess_1", 0.0, ev.SessionStarted(at(0), "sess_1", "echo", AgentSettings()))
    for at_unix_s, event in told:
        traces("sess_1", at_unix_s, event)
    return turns


# --- what a trace holds ------------------------------------------------------------------------------------


def test_a_turn_is_its_waterfall_and_its_playout_on_one_time_line() -> None:
    (turn,) = observe(
        (100.32, traced()),
        (101.0, ev.ReplyHeld(at(2), "resp_1")),
        (101.5, ev.ReplyResumed(at(2), "resp_1")),
        (102.3, finished()),
    )
    assert [(s.name, round(s.start_unix_s, 6), round(s.end_unix_s, 6)) for s in turn.children] == [
        ("end_of_turn", 100.0, 100.3),
        ("thinker", 99.92, 100.2),
        ("first_packet", 100.3, 100.32),
        ("playout", 100.32, 102.3),
    ]
    assert (round(turn.root.start_unix_s, 6), turn.root.end_unix_s) == (99.92, 102.3)
    assert turn.children[-1].notes == [("held", 101.0), ("resumed", 101.5)]
    assert turn.root.attributes == {
        "session.id": "sess_1",
        "duplex.agent": "echo",
        "duplex.item_id": "item_u",
        "duplex.response_id": "resp_1",
        "duplex.end_of_turn_ms": 300.0,
        "duplex.first_packet_ms": 20.0,
        "duplex.voice_to_voice_ms": 320.0,
        "duplex.speculative": True,
        "duplex.status": "completed",
        "duplex.audio_ms": 1800.0,
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 7,
    }
    assert "Hello" not in repr(turn), "no words"


def test_an_interrupted_a_failed_and_an_abandoned_answer_end_as_what_they_were() -> None:
    cut, failed, left = observe(
        (100.0, traced("resp_1")),
        (100.9, ev.ReplyTruncated(at(2), "resp_1", "item_a", "Hel", 480.0, "ack")),
        (101.0, finished("resp_1", "cancelled")),
        (110.0, traced("resp_2")),
        (111.0, finished("resp_2", "failed", "the thinker is gone")),
        (120.0, traced("resp_3")),
        (121.0, ev.SessionClosed(at(9), "the line closed")),
    )
    assert (cut.root.attributes["duplex.status"], cut.root.attributes["duplex.heard_ms"]) == ("cancelled", 480.0)
    assert (failed.failed, failed.root.attributes["duplex.status"]) == ("the thinker is gone", "failed")
    assert (left.root.attributes["duplex.status"], left.root.end_unix_s) == ("hung_up", 121.0)


def test_what_is_of_another_reply_is_not_of_this_one_and_nothing_is_kept() -> None:
    turns: list[TracedTurn] = []
    traces = TurnTraces(turns.append)
    traces("sess_1", 100.0, traced("resp_1"))
    traces("sess_2", 100.0, traced("resp_1"))
    traces("sess_1", 100.5, ev.ReplyHeld(at(2), "resp_0"))
    traces("sess_1", 101.0, finished("resp_0"))
    assert turns == []
    traces("sess_1", 101.0, traced("resp_2"))
    assert [turn.root.attributes["duplex.status"] for turn in turns] == ["replaced"]
    for name in ("sess_1", "sess_2", "sess_3"):
        traces(name, 102.0, ev.SessionClosed(at(9), "over"))
    assert len(turns) == 3
    assert not traces._open
    assert not traces._agents
    assert turns[0].children[-1].notes == []


# --- spans -------------------------------------------------------------------------------------------------


async def exported(exporter: SpanExporter, *turns: TracedTurn) -> TurnExporter:
    made = TurnExporter(TelemetryConfig(), exporter)
    for turn in turns:
        made._send(turn)
    await made.close()
    return made


async def test_spans_hang_together_and_begin_and_end_when_it_happened() -> None:
    memory = InMemorySpanExporter()
    turns = observe((100.32, traced()), (102.3, finished("resp_1", "failed", "the thinker is gone")))
    await exported(memory, *turns, *turns)
    spans = memory.get_finished_spans()
    roots = [span for span in spans if span.parent is None]
    assert [root.name for root in roots] == ["turn", "turn"]
    assert len({span.context.trace_id for span in spans if span.context is not None}) == 2
    root = roots[0]
    assert root.context is not None
    mine = {
        span.name: span for span in spans if span.parent is not None and span.parent.span_id == root.context.span_id
    }
    assert set(mine) == {"end_of_turn", "thinker", "first_packet", "playout"}
    assert (root.start_time, root.end_time) == (99_920_000_000, 102_300_000_000)
    assert mine["playout"].start_time == 100_320_000_000
    assert root.attributes is not None
    assert root.attributes["session.id"] == "sess_1"
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "the thinker is gone")
    assert root.resource.attributes["service.name"] == "duplex"


def test_a_call_of_two_turns_is_two_traces_with_the_stages_of_its_agent() -> None:
    memory = InMemorySpanExporter()

    async def call() -> None:
        exporter = TurnExporter(TelemetryConfig(), memory)
        line = LoopbackLine()
        agent = ScriptedAgent([ScriptedReply("One."), ScriptedReply("Two.")], stages=ScriptedStages())
        make = observed(Session, exporter.observer, unix_s=lambda: NOW_UNIX_S + asyncio.get_running_loop().time())
        hub = SessionHub(agent, VirtualClock(), SessionConfig(), max_sessions=1, make_session=make)
        async with hub:
            hub.open(line, AgentSettings())
            for _ in range(2):
                line.say(tone(1.0))
                await asyncio.sleep(5)
        line_events.extend(line.events)
        exporter._provider.shutdown()

    line_events: list[ev.Event] = []
    run_virtual(call())
    spans = memory.get_finished_spans()
    roots = [span for span in spans if span.parent is None]
    told = [event for event in line_events if isinstance(event, ev.TurnTraced)]
    assert len(roots) == len(told) == 2
    for root, event in zip(roots, told, strict=True):
        assert root.attributes is not None
        assert root.attributes["duplex.response_id"] == event.reply_id
        assert root.start_time is not None
        assert root.end_time is not None
        own = [
            span for span in spans if span.context and root.context and span.context.trace_id == root.context.trace_id
        ]
        names = {span.name for span in own}
        assert names == {"turn", "end_of_turn", "listener", "thinker", "talker", "first_packet", "playout"}
        first = next(span for span in own if span.name == "first_packet")
        assert first.end_time == pytest.approx((NOW_UNIX_S + event.at.at_s) * 1e9, abs=1e6)
        assert all(root.start_time <= (span.start_time or 0) <= (span.end_time or 0) <= root.end_time for span in own)


# --- the collector -----------------------------------------------------------------------------------------


class Collector:
    """Takes OTLP over HTTP, as protobuf, and says what it was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.headers: list[str] = []
        self.news = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        body = await reader.readexactly(length)
        self.headers.append(head)
        request = ExportTraceServiceRequest.FromString(body)
        self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        self.news.set()


async def test_a_real_servers_turn_arrives_at_a_collector() -> None:
    collector = Collector()
    async with collector as url:
        telemetry = {"otlp_endpoint": url, "otlp_headers": {"x-team": "a-token-of-theirs"}, "send_every_s": 0.05}
        config = Config.model_validate({"server": {"port": 0}, "agent": {"name": "echo"}, "telemetry": telemetry})
        assert "a-token" not in repr(config)
        async with running(config) as server, WebSocketCall.connect(server.url) as call:
            await call.play(tone(0.6))
            await call.play(silence(24_000))
            done = await call.wait_for("response.done", timeout_s=20)
        async with asyncio.timeout(10):
            await collector.news.wait()
    root = next(span for span in collector.spans if not span.parent_span_id)
    attributes = {pair.key: pair.value for pair in root.attributes}
    assert root.name == "turn"
    assert attributes["session.id"].string_value.startswith("sess_")
    assert attributes["duplex.response_id"].string_value == done.event["response"]["id"]
    assert attributes["duplex.voice_to_voice_ms"].double_value > 0
    assert {span.name for span in collector.spans} >= {"turn", "end_of_turn", "first_packet", "playout"}
    assert "POST /v1/traces " in collector.headers[0]
    assert "x-team: a-token-of-theirs" in collector.headers[0]


class Stuck(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        import threading

        self.entered, self.free = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.free.wait(30)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


async def test_a_collector_that_does_not_answer_holds_nobody_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from duplex import telemetry_otel

    monkeypatch.setattr(telemetry_otel, "_CLOSE_WITHIN_S", 0.05)
    stuck = Stuck()
    made = TurnExporter(TelemetryConfig(queue_spans=16, send_every_s=0.01), stuck)
    (turn,) = observe((100.32, traced()), (102.3, finished()))
    for _ in range(20):  # 100 spans, of which 16 may wait and some are with the collector; none of this waits
        made._send(turn)
    assert await asyncio.to_thread(stuck.entered.wait, 10)
    for _ in range(20):
        made._send(turn)
    (processor,) = made._provider._active_span_processor._span_processors
    assert len(processor._batch_processor._queue) <= 16  # type: ignore[attr-defined]
    await made.close()
    assert "not taken in time" in caplog.text
    stuck.free.set()


async def test_a_collector_that_is_not_there_costs_no_call() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        made = TurnExporter(TelemetryConfig(otlp_endpoint=url, send_every_s=0.01))
        (turn,) = observe((100.32, traced()), (102.3, finished()))
        made._send(turn)
        await made.close()


# --- configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://otlp.example/a/v1/traces", "https://otlp.example/a/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_the_usual_one(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_it_is_off_and_a_wrong_address_is_said() -> None:
    assert Config().telemetry.otlp_endpoint is None
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint"):
        load_config(environ={}, assignments=["telemetry.otlp_endpoint=localhost:4317"])


async def test_without_the_library_the_server_says_the_line_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    config = Config.model_validate(
        {"server": {"port": 0}, "agent": {"name": "echo"}, "telemetry": {"otlp_endpoint": "http://127.0.0.1:4318"}}
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'duplex-runtime\[otel\]'"):
        async with running(config):
            pass
    async with running(config.model_copy(update={"telemetry": TelemetryConfig()})) as server:
        assert server.hub.ready, "who wants no traces needs no library"
