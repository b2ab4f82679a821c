"""A recorded session runs again: the same decisions, to the sample; and others with other settings."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from recorded import TOTAL_S, Call, scripted

from duplex import cli
from duplex import events as ev
from duplex import requests as rq
from duplex.agent import Agent, AgentCommand, AgentEvent, AgentInfo, AgentSession, AgentSettings, Configure, Heard
from duplex.clock import Clock, MonotonicClock
from duplex.config import Config, RecordConfig, SessionConfig
from duplex.conversation import Role
from duplex.errors import AgentFaultError, AgentFullError, ConfigError, RecordingError
from duplex.frames import SAMPLE_RATE_HZ, Image
from duplex.hub import SessionHub
from duplex.line import PlayoutReport
from duplex.metrics import Metrics
from duplex.pcm_line import PcmLine
from duplex.records.archive import Archive, find
from duplex.records.recorder import Recorder
from duplex.records.replay import Replayed, recorded_config, replay
from duplex.registry import create_agent
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply
from duplex.turn import User
from duplex.weights import ModelStore

REQUESTS: tuple[tuple[float, rq.Request], ...] = (
    (0.3, rq.AddMessage(Role.USER, "Hello there")),
    (0.4, rq.CreateReply("Speak low.")),
    (1.6, rq.AcknowledgePlayout("resp_test_2", 300.0)),
    (1.7, rq.AcknowledgePlayout("resp_test_2", 60_000.0)),  # never sent: refused
    (2.0, rq.UpdateSettings(AgentSettings(voice="joe"))),
    (2.2, rq.CancelReply()),
    (2.4, rq.RemoveMessage("item_nobody_has")),
    (6.9, rq.TruncateMessage("item_test_3", 200.0)),
)


def told(replayed: Replayed) -> list[ev.Event]:
    return replayed.events


def test_the_recorded_outputs_give_the_same_decisions_to_the_sample(tmp_path: Path) -> None:
    call = Call()
    archive = call.record(tmp_path)
    live = call.run()  # the same call without anybody listening in
    replayed = replay(archive)
    assert replayed.mode == "recorded"
    assert replayed.same
    assert replayed.comparison.exact
    assert replayed.sound_same
    assert replayed.comparison.entries > TOTAL_S / 0.02 * 0.9
    assert len(replayed.events) == len(live.events)
    assert replayed.outcomes[0].counts == replayed.outcomes[1].counts
    assert {"commits": 2, "holds": 2, "resumes": 1, "yields": 1}.items() <= replayed.outcomes[1].counts.items()


@pytest.mark.parametrize("agent", [None, scripted], ids=["recorded", "anew"])
def test_two_replays_are_identical_byte_for_byte(tmp_path: Path, agent: Callable[[], Agent] | None) -> None:
    archive = Call(actions=REQUESTS).record(tmp_path)

    def once() -> tuple[bytes, list[ev.Event]]:
        replayed = replay(archive, agent=agent() if agent else None)
        assert replayed.same, replayed.comparison.differences[0]
        return replayed.voice.samples(replayed.voice.end_samples).tobytes(), replayed.events

    first = once()
    assert len(first[0]) > TOTAL_S * SAMPLE_RATE_HZ * 3
    assert once() == first


@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize("lead_packets", [1, 10])
def test_late_ticks_and_requests_replay_alike(tmp_path: Path, seed: int, lead_packets: int) -> None:
    archive = Call(actions=REQUESTS, seed=seed, lead_packets=lead_packets).record(tmp_path)
    for agent in (None, scripted()):
        replayed = replay(archive if agent is None else Archive(archive.directory), agent=agent)
        assert replayed.same, replayed.comparison.differences[0]
        assert replayed.comparison.exact
        assert replayed.sound_same
    assert any("refused" in line for _, line in archive.lines())


def test_an_agent_that_is_not_the_one_of_then_is_found_out(tmp_path: Path) -> None:
    archive = Call().record(tmp_path)
    replayed = replay(archive, agent=ScriptedAgent([ScriptedReply("One two three four five six.", audio_after_s=0.8)]))
    assert not replayed.same
    assert "One two three" in str(replayed.comparison.differences[0])
    assert replayed.sound_same is False


def test_another_setting_changes_decisions_and_the_first_is_named(tmp_path: Path) -> None:
    archive = Call().record(tmp_path)
    config = recorded_config(archive, ["session.commit_wait_s=0.2"])
    replayed = replay(archive, session=config.session)
    assert not replayed.same
    first = replayed.comparison.differences[0]
    # Complete after .3 s of silence, and .2 instead of .5 s of waiting for the reply, which takes longer.
    assert first.at_s == pytest.approx(1.5 + 0.3 + 0.2, abs=0.05)
    assert first.floor == "listening"
    assert first.recorded == ()
    assert "UserTurnCommitted(item_id=item_1)" in first.replayed
    then, now = (outcome.latencies_ms["end_of_turn"][0] for outcome in replayed.outcomes)
    assert now < then - 200
    # Its words were asked for earlier, and came as soon after that as then.
    assert replayed.moved == 2
    assert replayed.unanswered == 0
    words = [event for event in replayed.events if isinstance(event, ev.UserTranscriptFinal)]
    assert [event.item_id for event in words] == ["item_test_1", "item_test_5"]


def test_what_the_recording_never_asked_for_is_counted_and_the_floor_comes_back(tmp_path: Path) -> None:
    # Half a second of think limit: the reply that came after .7 s is given up, and nothing stands in its place.
    archive = Call(speech=[(0.5, 1.0)], config=SessionConfig(commit_wait_s=0.0)).record(tmp_path)
    session = recorded_config(archive, ["session.think_limit_s=0.1"]).session
    replayed = replay(archive, session=session)
    assert "reply_timeout" in str(replayed.comparison.differences[0])
    assert replayed.outcomes[1].counts["errors"] == 1
    # A speculation that is dropped and begun anew was only begun once then.
    patient = Call(speech=[(0.5, 1.0), (1.75, 0.5)]).record(tmp_path / "patient")
    again = replay(patient, session=SessionConfig(commit_wait_s=0.0))
    assert again.comparison.count > 0
    assert [e for e in again.events if isinstance(e, ev.SessionClosed)]


def test_playout_reports_and_pictures_come_back(tmp_path: Path) -> None:
    class Looking(ScriptedAgent):
        @property
        def info(self) -> AgentInfo:
            return AgentInfo("looking", packets_per_frame=4, takes_images=True)

    def on_line(line: LoopbackLine, now_s: float) -> None:
        line.image = Image(line._pts, b"\xff\xd8 picture " + str(round(now_s, 1)).encode(), 64, 48)
        line.report = PlayoutReport(max(0, line._pts - 4800), now_s, 30.0, "rtp")

    archive = Call(agent=Looking(scripted().replies), on_line=on_line).record(tmp_path)
    assert any(event.evidence == "rtp" for event in told(replay(archive)) if isinstance(event, ev.ReplyTruncated))
    seen: list[bytes] = []

    class Seeing(Looking):
        def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
            inner = super().open(settings, clock, wake)
            step = inner.step

            def looked(heard: Heard) -> None:
                if heard.image is not None:
                    seen.append(heard.image.jpeg)
                step(heard)

            inner.step = looked  # type: ignore[method-assign]
            return inner

    replayed = replay(Archive(archive.directory), agent=Seeing(scripted().replies))
    assert replayed.same
    assert replayed.comparison.exact
    assert len(seen) > 60
    assert seen[3].startswith(b"\xff\xd8 picture")


class Faulty(ScriptedAgent):
    """Fails in one of its methods after a while."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__(scripted().replies)
        self.where, self.error = where, error

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        if self.where == "open":
            raise self.error
        inner = super().open(settings, clock, wake)
        calls = 0
        method = getattr(inner, self.where)

        def failing(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 100 or (self.where == "command" and isinstance(args[0], Configure)):
                raise self.error
            return method(*args)

        setattr(inner, self.where, failing)
        return inner


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("open", AgentFullError("All places are taken.", 7.0)),
        ("step", AgentFaultError("The ear fell off.")),
        ("step", ZeroDivisionError("not ours")),
        ("collect", AgentFaultError("Nothing to collect.")),
        ("command", ConfigError("There is no voice like that.")),
    ],
)
def test_what_went_wrong_then_goes_wrong_again(tmp_path: Path, where: str, error: Exception) -> None:
    archive = Call(agent=Faulty(where, error), actions=REQUESTS).record(tmp_path)
    replayed = replay(archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.comparison.exact
    messages = [event.message for event in replayed.events if isinstance(event, ev.ErrorRaised)]
    closed = [event.reason for event in replayed.events if isinstance(event, ev.SessionClosed)]
    if where == "command":
        assert any("There is no voice" in line.get("refused", "") for _, line in archive.lines())
    elif isinstance(error, ZeroDivisionError):
        assert closed == ["an internal error ended the session"]
    else:
        assert str(error) in messages
        assert closed == [str(error)]


@pytest.mark.parametrize("redact", ["audio", "text", "all"])
def test_a_redacted_recording_still_gives_the_same_decisions(tmp_path: Path, redact: str) -> None:
    archive = Call(actions=REQUESTS).record(tmp_path, redact=redact)
    replayed = replay(archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.outcomes[0].latencies_ms == replayed.outcomes[1].latencies_ms
    assert replayed.sound_same is (True if redact == "text" else None)
    if redact != "text":
        with pytest.raises(RecordingError, match="holds no sound"):
            replay(Archive(archive.directory), agent=scripted())


def test_opus_keeps_the_decisions_but_not_the_samples(tmp_path: Path) -> None:
    archive = Call().record(tmp_path, audio="opus")
    assert (archive.directory / "heard.opus").is_file()
    replayed = replay(archive)
    assert replayed.same
    assert replayed.comparison.exact
    assert replayed.sound_same is None


class Woken(ScriptedAgent):
    """Wakes the session a little after every frame, so that what it has is collected between two ticks."""

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        inner = super().open(settings, clock, wake)
        step, collect = inner.step, inner.collect
        ready = [False]

        def later() -> None:
            ready[0] = True
            wake()

        def stepped(heard: Heard) -> None:
            step(heard)
            clock.call_at(clock.now() + 0.0071, later)

        def collected() -> Any:
            if not ready[0]:
                return []
            ready[0] = False
            return collect()

        inner.step, inner.collect = stepped, collected  # type: ignore[method-assign]
        return inner


def test_what_came_between_two_ticks_comes_there_again(tmp_path: Path) -> None:
    archive = Call(agent=Woken(scripted().replies), actions=REQUESTS).record(tmp_path)
    kinds = [line["kind"] for _, line in archive.lines()]
    assert kinds.count("wake") > 300
    replayed = replay(archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.comparison.exact
    assert replayed.sound_same


class Threaded(ScriptedAgent):
    """Thinks on a thread of its own, a random moment later; a replay waits for it."""

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return ThreadedSession(super().open(settings, clock, wake))


class ThreadedSession:
    def __init__(self, inner: AgentSession) -> None:
        self._inner, self._random = inner, random.Random()
        self._pool = ThreadPoolExecutor(1)
        self._work: list[Future[None]] = []

    def _later(self, do: Callable[[], None]) -> None:
        def work() -> None:
            time.sleep(self._random.random() * 1e-3)
            do()

        self._work.append(self._pool.submit(work))

    def step(self, heard: Heard) -> None:
        self._later(lambda: self._inner.step(heard))

    def command(self, command: AgentCommand) -> None:
        self._later(lambda: self._inner.command(command))

    def collect(self) -> Sequence[AgentEvent]:
        return self._inner.collect()

    def settle(self) -> None:
        wait(self._work)
        self._work.clear()

    def close(self) -> None:
        self._pool.shutdown()


def test_an_agent_with_threads_that_settles_gives_identical_bytes(tmp_path: Path) -> None:
    archive = Call().record(tmp_path)

    def once() -> tuple[bytes, list[ev.Event]]:
        replayed = replay(Archive(archive.directory), agent=Threaded(scripted().replies))
        return replayed.voice.samples(replayed.voice.end_samples).tobytes(), replayed.events

    first = once()
    assert any(isinstance(event, ev.ReplyTruncated) for event in first[1])
    assert once() == first


def test_the_command_line_says_what_differs_and_writes_it_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Call().record(tmp_path / "rec")
    out = tmp_path / "out"
    assert cli.main(["replay", str(tmp_path / "rec"), "--agent", "recorded", "--out", str(out)]) == 0
    assert "All decisions are the same" in capsys.readouterr().out
    stereo, rate = soundfile.read(out / "call.flac", dtype="float32")
    assert rate == SAMPLE_RATE_HZ
    assert stereo.shape == (pytest.approx(TOTAL_S * rate, abs=0.1 * rate), 2)
    for side, (start_s, end_s) in ((0, (0.7, 1.3)), (1, (2.5, 2.85))):
        part = stereo[round(start_s * rate) : round(end_s * rate)]
        assert np.abs(part[:, side]).max() > 0.1 > np.abs(part[:, 1 - side]).max()
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]
    assert {"session.created", "duplex.floor", "duplex.trace", "conversation.item.truncated"} <= {
        line["event"]["type"] for line in lines
    }
    assert (out / "timeline.png").stat().st_size > 10_000
    assert json.loads((out / "replay.json").read_text("utf-8"))["same"] is True

    again = ["replay", str(tmp_path / "rec"), "sess_t", "--agent", "recorded", "--set", "session.commit_wait_s=0.2"]
    assert cli.main([*again, "--out", str(out)]) == 1
    assert "UserTurnCommitted(item_id=item_1)" in capsys.readouterr().out
    summary = json.loads((out / "replay.json").read_text("utf-8"))
    assert summary["same"] is False
    assert summary["set"] == ["session.commit_wait_s=0.2"]
    assert "at 1.9" in summary["differences"][0] or "at 2.0" in summary["differences"][0]

    assert cli.main(["replay", str(tmp_path / "rec"), "--list"]) == 0
    assert "sess_test" in capsys.readouterr().out
    assert cli.main(["replay", str(tmp_path / "rec"), "--agent", "recorded", "--set", "session.nonsense=1"]) == 1
    assert "There is no setting" in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "nowhere")]) == 1
    assert "--record" in capsys.readouterr().err


@pytest.mark.models
async def test_a_call_with_the_real_cascade_replays_to_the_same_decisions(models: ModelStore, tmp_path: Path) -> None:
    from voices import Voice

    question = await asyncio.to_thread(Voice(models).say, "What is the capital of France?")
    config = Config(record=RecordConfig(dir=tmp_path))
    metrics = Metrics()
    recorder = Recorder(config.record, metrics, configuration=config.model_dump(mode="json"))
    agent = create_agent("cascade", {"models_dir": str(models.root), "max_reply_tokens": 24, "temperature": 0})
    events: list[ev.Event] = []
    done = asyncio.Event()

    def on_event(event: ev.Event) -> None:
        events.append(event)
        if isinstance(event, ev.ReplyFinished):
            done.set()

    async with SessionHub(
        agent, MonotonicClock(), config.session, max_sessions=1, metrics=metrics, make_session=recorder.session
    ) as hub:
        line = PcmLine(lambda samples: None, on_event)
        hub.open(line, AgentSettings())
        line.hear(question)
        async with asyncio.timeout(60):
            await done.wait()
    await asyncio.to_thread(recorder.close)

    archive = Archive(find(tmp_path))
    replayed = await asyncio.to_thread(replay, archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.comparison.exact
    assert replayed.sound_same
    assert replayed.events == events
    assert any(isinstance(event, ev.TurnTraced) for event in replayed.events)
    states = [event for event in _collected(archive) if event["is"] == "UserState"]
    assert any(event["user"] == User.TURN_COMPLETE.value for event in states)
    assert any(event["evidence"] for event in states)


def _collected(archive: Archive) -> list[Mapping[str, Any]]:
    return [event for _, line in archive.lines() for events in line.get("collected", ()) for event in events]
