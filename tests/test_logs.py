"""The log: one line an event, whose session it is, no secrets, and nobody who waits for it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import Config, LogConfig, SessionConfig, load_config
from duplex.errors import ConfigError
from duplex.hub import SessionHub
from duplex.log_events import line_of, log_event
from duplex.logs import AsLog, LineWriter, TextLines, current_session, enter_session, logging_as, within_this_session
from duplex.metrics import Metrics
from duplex.session import Session
from duplex.telemetry_line import observed
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, run_virtual, tone
from duplex.transport.locks.log_filter import without_secrets

log = logging.getLogger("duplex.test")
KEY = "dpx_" + "k3y" * 12


@pytest.fixture
def lines() -> Any:
    """Runs a function with the log going to a string; returns its lines."""

    def logged(config: LogConfig, work: Any) -> list[str]:
        out = io.StringIO()
        with logging_as(config, clean=without_secrets, stream=out):
            work()
        return out.getvalue().splitlines()

    return logged


def fail() -> None:
    try:
        raise ValueError(f"the key was Bearer {KEY}\nand more")
    except ValueError:
        log.exception("it failed with %s", KEY, extra={"turn": 3, "token": KEY})


def test_json_is_one_object_a_line_whatever_happened(lines: Any) -> None:
    def work() -> None:
        log.info('two\nlines and a "quote"')
        fail()

    first, second = (json.loads(line) for line in lines(LogConfig(format="json"), work))
    assert first["message"] == 'two\nlines and a "quote"'
    assert (first["level"], first["logger"]) == ("info", "duplex.test")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert "session" not in first
    assert second["error"]["type"] == "ValueError"
    assert "Traceback" in second["error"]["trace"]
    assert second["turn"] == 3


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_in_a_line_its_fields_or_its_traceback(lines: Any, form: str) -> None:
    from duplex.keys import PREFIX

    key = PREFIX + "A1b2C3d4" * 4

    def work() -> None:
        try:
            raise ValueError(f"Bearer {key}")
        except ValueError:
            log.exception("with %s", key, extra={"header": f"Bearer {key}"})

    said = "\n".join(lines(LogConfig(format=form), work))  # type: ignore[arg-type]
    assert "A1b2C3d4" not in said
    assert said.count("…") >= 3
    if form == "json":
        json.loads(said)


def test_nobody_forges_a_line_of_the_text(lines: Any) -> None:
    forged = "x\n2026-01-01 00:00:00,000 ERROR   duplex  I am forged\x1b[2J\x85"
    (line,) = lines(LogConfig(), lambda: log.info("%s", forged, extra={"name_given": "a\nb"}))
    assert "\\n2026" in line
    assert "\x1b" not in line
    assert "\x85" not in line
    assert line.endswith("name_given=a\\nb")


def test_a_traceback_of_the_text_is_indented_under_its_line(lines: Any) -> None:
    first, *rest = lines(LogConfig(), fail)
    assert "ERROR   duplex.test  it failed with" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_the_level_holds(lines: Any) -> None:
    def work() -> None:
        log.info("quiet")
        log.warning("heard")

    assert [line.split("  ")[-1] for line in lines(LogConfig(level="warning"), work)] == ["heard"]
    with pytest.raises(ConfigError, match=r"log\.level"):
        load_config(environ={}, assignments=["log.level=loud"])


def test_a_line_with_wrong_arguments_is_a_line_all_the_same(lines: Any) -> None:
    (line,) = lines(LogConfig(), lambda: log.info("%d of %d", 1))
    assert "%d of %d (1,)" in line


def test_pythons_warnings_are_lines(lines: Any) -> None:
    import warnings

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old thing", stacklevel=1)

    assert "old thing" in "\n".join(lines(LogConfig(), work))


class Stalled(io.StringIO):
    """A pipe that nobody reads until ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.stuck = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.stuck.set()
        self.go.wait(30)
        return super().write(text)


def test_a_reader_that_stalls_stops_nobody_and_learns_what_it_missed() -> None:
    stream = Stalled()
    writer = LineWriter(stream, max_lines=4)
    writer.setFormatter(TextLines())
    record = logging.LogRecord
    writer.handle(record("duplex.test", logging.INFO, "", 0, "line 0", None, None))
    assert stream.stuck.wait(10)
    for n in range(1, 8):  # one is stuck, four wait, three are lost; none of these calls waits
        writer.handle(record("duplex.test", logging.INFO, "", 0, f"line {n}", None, None))
    assert writer.dropped == 3
    stream.go.set()
    drained = threading.Event()
    while not writer._queue.empty():
        drained.wait(0.001)
    writer.handle(record("duplex.test", logging.INFO, "", 0, "line 8", None, None))
    writer.close()
    said = [line.split("  ")[-1] for line in stream.getvalue().splitlines()]
    assert said == [
        *(f"line {n}" for n in range(5)),
        "3 lines of this log were lost: nobody took them in time",
        "line 8",
    ]


def test_a_stream_that_is_closed_is_no_fault() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, max_lines=4)
    writer.setFormatter(TextLines())
    stream.close()
    writer.handle(logging.LogRecord("duplex.test", logging.INFO, "", 0, "x", None, None))
    writer.close()
    assert not writer._thread.is_alive()


# --- whose session it is --------------------------------------------------------------------------------


async def test_a_session_is_its_tasks_and_nobody_elses() -> None:
    seen: dict[str, str | None] = {}

    async def one(name: str) -> None:
        enter_session(name)
        await asyncio.sleep(0)
        seen[name] = current_session()
        asyncio.get_running_loop().call_soon(lambda: seen.setdefault(f"{name} later", current_session()))
        back = within_this_session(lambda: seen.setdefault(f"{name} thread", current_session()))
        await asyncio.get_running_loop().run_in_executor(None, back)

    await asyncio.gather(one("sess_a"), one("sess_b"))
    assert {name: got for name, got in seen.items() if got != name.split()[0]} == {}
    assert len(seen) == 6
    assert current_session() is None


class Chatty(ScriptedAgent):
    """Logs in a step, and in a collection that a worker's thread woke the session for."""

    def open(self, settings: AgentSettings, clock: Any, wake: Any) -> Any:
        session = super().open(settings, clock, wake)
        collect, woken = session.collect, threading.Event()

        def logged() -> Any:
            log.info("collected in a call woken by a thread" if woken.is_set() else "collected")
            woken.clear()
            return collect()

        session.collect = logged  # type: ignore[method-assign]

        def work() -> None:
            woken.set()
            wake()

        self.threads = [threading.Thread(target=work)]
        return session


class Telling(LoopbackLine):
    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    def emit(self, event: ev.Event) -> None:
        super().emit(event)
        self.begun.set()


async def test_every_line_of_a_call_names_its_session_also_when_a_thread_woke_it() -> None:
    from duplex.clock import MonotonicClock

    out = io.StringIO()
    agent = Chatty()
    with logging_as(LogConfig(format="json"), stream=out):
        hub = SessionHub(
            agent,
            MonotonicClock(),
            SessionConfig(),
            max_sessions=2,
            metrics=Metrics(),
            make_session=observed(Session, log_event),
        )
        async with hub:

            async def door() -> Session:
                session = hub.open(line := Telling(), AgentSettings())
                log.info("the door goes on")
                await line.begun.wait()
                for thread in agent.threads:
                    thread.start()
                    await asyncio.to_thread(thread.join)
                return session

            first, second = await asyncio.create_task(door()), await asyncio.create_task(door())
            log.info("the hub's own")
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    by_session = {
        name: {line["message"] for line in said if line.get("session") == name} for name in (first.id, second.id, None)
    }
    for session in (first, second):
        assert {
            "session began",
            "the door goes on",
            "collected",
            "collected in a call woken by a thread",
        } <= by_session[session.id]
    assert by_session[None] == {"the hub's own"}


def test_an_answered_turn_is_a_line_with_its_latencies_and_without_its_words() -> None:
    out = io.StringIO()

    async def call() -> None:
        line = LoopbackLine()
        hub = SessionHub(
            ScriptedAgent([ScriptedReply("A secret of the caller.", duration_s=0.4)]),
            VirtualClock(),
            SessionConfig(),
            max_sessions=1,
            make_session=observed(Session, log_event),
        )
        async with hub:
            hub.open(line, AgentSettings())
            line.say(tone(1.0))
            await asyncio.sleep(4)

    with logging_as(LogConfig(format="json"), stream=out):
        run_virtual(call())
    said = [json.loads(text) for text in out.getvalue().splitlines()]
    (turn,) = [line for line in said if line["message"] == "turn answered"]
    assert turn["session"].startswith("sess_")
    assert turn["voice_to_voice_ms"] >= turn["end_of_turn_ms"] > 0
    assert "secret" not in out.getvalue()


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (ev.ReplyFinished(ev.At(0, 0.0), "resp_1", "item_1", "failed", "", 0.0, "no room"), "WARNING"),
        (ev.ReplyFinished(ev.At(0, 0.0), "resp_1", "item_1", "completed", "Hello.", 0.0), None),
        (ev.ErrorRaised(ev.At(0, 0.0), "invalid_event", "No.", "item.id"), "WARNING"),
        (ev.ReplyTruncated(ev.At(0, 0.0), "resp_1", "item_1", "private words", 120.0, "ack"), "INFO"),
        (ev.UserTranscriptFinal(ev.At(0, 0.0), "item_1", "private words"), None),
        (ev.ReplyTextAdded(ev.At(0, 0.0), "resp_1", "item_1", "private words"), None),
    ],
)
def test_what_of_a_call_is_logged(event: ev.Event, level: str | None) -> None:
    line = line_of(event)
    assert (None if line is None else logging.getLevelName(line[0])) == level
    assert "private" not in repr(line)


async def test_an_observer_that_fails_costs_the_call_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from duplex.telemetry_line import ObservedLine

    line = LoopbackLine()

    def broken(session_id: str, at_unix_s: float, event: ev.Event) -> None:
        raise ZeroDivisionError

    told = ObservedLine(line, "sess_x", VirtualClock(asyncio.get_running_loop()), lambda: 0.0, [broken])
    told.emit(ev.SessionClosed(ev.At(0, 0.0), "over"))
    assert [type(event).__name__ for event in line.events] == ["SessionClosed"]
    assert "could not be told" in caplog.text


# --- the server ---------------------------------------------------------------------------------------


def test_a_server_with_json_logs_writes_nothing_else(tmp_path: Path) -> None:
    """Started and stopped the way a container does it; both streams, every line."""
    code = "import sys; from duplex.cli import serve_main; sys.exit(serve_main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, "--port", "0", "--agent", "echo", "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for text in process.stdout:
        said.append(json.loads(text))
        if said[-1]["message"].startswith("Ready"):
            process.terminate()
    assert process.wait(30) == 0
    assert {line["logger"].split(".")[0] for line in said} == {"duplex"}
    assert any("Stopping" in line["message"] for line in said)


def test_why_a_server_did_not_start_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    from duplex.cli import serve_main

    assert serve_main(["--port", "0", "--agent", "parrot", "--set", "log.format=json"]) == 1
    captured = capsys.readouterr()
    *_, last = (json.loads(line) for line in captured.err.splitlines())
    assert last["level"] == "error"
    assert "parrot" in last["message"]
    assert captured.out == ""


def test_what_is_printed_becomes_lines_each_whole(lines: Any) -> None:
    def work() -> None:
        out = AsLog(log)
        out.write("one, in ")
        out.write("parts\ntwo\n\n")

    assert [json.loads(line)["message"] for line in lines(LogConfig(format="json"), work)] == ["one, in parts", "two"]


def test_the_defaults_are_for_people() -> None:
    assert (Config().log.format, Config().log.level) == ("text", "info")
