"""Recording live sessions: the call is never the worse for it, whatever the disk does."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from recorded import NEW_YEAR, Call

from duplex.cli import _parser, config_from
from duplex.config import RecordConfig, load_config
from duplex.errors import ConfigError
from duplex.metrics import Metrics
from duplex.records import archive_writer
from duplex.records.archive import Archive, find, is_live, sessions
from duplex.records.archive_writer import SessionWriter
from duplex.records.model_facts import model_facts
from duplex.records.recorder import Recorder
from duplex.records.replay import replay
from duplex.records.retention import size_bytes
from duplex.serve import running
from duplex.testing import LoopbackLine, tone
from duplex.transport.pcm import to_pcm16


def _counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def _same_to_the_caller(one: LoopbackLine, other: LoopbackLine) -> bool:
    """As the person heard it; the clock of a recorded call has microseconds, and sound 16 bits."""
    kinds = [type(event) for event in one.events] == [type(event) for event in other.events]
    return kinds and bool(np.abs(one.audio() - other.audio()).max() <= 1 / 32768)


def test_a_recorded_call_is_the_same_call(tmp_path: Path) -> None:
    lines: list[LoopbackLine] = []

    class Keeping(Call):
        def run(self, *args: Any) -> LoopbackLine:
            lines.append(super().run(*args))
            return lines[-1]

    call = Keeping()
    call.record(tmp_path)
    call.run()
    recorded, plain = lines
    assert _same_to_the_caller(recorded, plain)
    assert _counted(call.metrics, "duplex_recordings_total", outcome="complete") == 1


class Broken:
    """Stands in for a growing sound file on a disk that fills up."""

    def __init__(self, after: int) -> None:
        self.left = after

    def write(self, write: Any) -> Any:
        def failing(sound: Any, pcm: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(sound, pcm)

        return failing


def test_a_full_disk_stops_the_recording_and_not_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(after=200)
    monkeypatch.setattr(archive_writer._SoundFile, "write", broken.write(archive_writer._SoundFile.write))
    call = Call()
    with caplog.at_level(logging.WARNING):
        archive = call.record(tmp_path)
    assert archive.manifest.state == "stopped"
    assert archive.notes == ["Recording stopped before the session did: No space left on device."]
    assert "recording of sess_test stopped: No space left on device. The call goes on." in caplog.text
    assert _counted(call.metrics, "duplex_recordings_total", outcome="stopped") == 1
    replayed = replay(archive)
    assert replayed.same
    assert 50 < replayed.comparison.entries < 250
    assert not is_live(archive.directory)


def test_a_disk_that_is_full_to_the_last_byte_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(RecordConfig(dir=tmp_path), Metrics())
    call = Call()
    saves = 0

    def save(self: SessionWriter) -> None:
        nonlocal saves
        saves += 1
        if saves > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self)

    real = SessionWriter._save_manifest
    monkeypatch.setattr(SessionWriter, "_save_manifest", save)
    call.run(recorder.session)
    recorder.close()
    archive = Archive(find(tmp_path))
    assert archive.manifest.state == "recording"
    assert archive.notes == ["The recording was cut off."]
    assert replay(archive).same


def test_a_slow_disk_stops_the_recording_and_not_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun = threading.Event(), threading.Event()
    real = SessionWriter.entry

    def slow(self: SessionWriter, entry: Any) -> int:
        begun.set()
        gate.wait(60)
        return real(self, entry)

    monkeypatch.setattr(SessionWriter, "entry", slow)
    call = Call()
    recorder = Recorder(RecordConfig(dir=tmp_path, queue_entries=64), call.metrics)
    put = recorder._put

    def put_and_wait(recording: Any, entry: Any) -> None:
        """The virtual call is over before a busy machine's thread has begun to write of it."""
        put(recording, entry)
        assert begun.wait(60)

    monkeypatch.setattr(recorder, "_put", put_and_wait)
    line = call.run(recorder.session)
    assert line.closed_because == "the test is over"
    assert len(line.played) > 300
    assert _counted(call.metrics, "duplex_queue_drops_total", queue="recorder") >= 1
    gate.set()
    recorder.close()
    archive = Archive(find(tmp_path))
    assert archive.manifest.stopped_because == "the disk did not keep up"
    assert archive.manifest.entries <= 66
    assert replay(archive).same


def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(SessionWriter, "entry", lambda self, entry: gate.wait(60))
    call = Call(total_s=1.0, speech=[])
    recorder = Recorder(RecordConfig(dir=tmp_path), call.metrics)
    call.run(recorder.session)
    recorder.close(limit_s=0.05)
    gate.set()
    recorder._thread.join(10)
    assert not recorder._thread.is_alive()


def test_a_directory_that_cannot_be_written_is_an_error_before_any_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Choose another directory with --record"):
        Recorder(RecordConfig(dir=tmp_path / "file"), Metrics())


def test_several_sessions_are_written_by_one_thread(tmp_path: Path) -> None:
    metrics = Metrics()
    recorder = Recorder(RecordConfig(dir=tmp_path), metrics)
    for number in range(3):
        Call(session_id=f"sess_{number}", seed=number, metrics=metrics).run(recorder.session)
    recorder.close()
    assert len(sessions(tmp_path)) == 3
    for directory in sessions(tmp_path):
        assert replay(Archive(directory)).same


def test_old_recordings_go_when_a_new_one_begins(tmp_path: Path) -> None:
    for day in range(4):
        Call(session_id=f"sess_{day}", total_s=0.5).record(
            tmp_path, wall=NEW_YEAR + timedelta(days=day), max_sessions=2
        )
    # Two are left when the next begins, and the new one makes three until the next sweep.
    assert [path.name.partition("-")[2] for path in sessions(tmp_path)] == ["sess_2", "sess_3"]


def test_a_session_that_alone_is_over_the_limit_stops_being_recorded(tmp_path: Path) -> None:
    archive = Call(total_s=30.0).record(tmp_path, max_total_mb=0.3)
    assert archive.manifest.state == "stopped"
    assert "max_total_mb" in str(archive.manifest.stopped_because)
    assert 5.0 < archive.manifest.duration_s < 29.0
    assert size_bytes(archive.directory) < 300_000


_CRASH = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from recorded import Call
from duplex.config import RecordConfig
from duplex.metrics import Metrics
from duplex.records.recorder import Recorder

def on_line(line, now_s):
    if now_s >= 6.0:
        while recorder._queue.qsize():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

recorder = Recorder(RecordConfig(dir=Path(sys.argv[1])), Metrics())
Call(on_line=on_line).run(recorder.session)
"""


def test_what_a_killed_process_leaves_behind_is_readable(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CRASH, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    archive = Archive(find(tmp_path))
    assert archive.notes == ["The recording was cut off."]
    replayed = replay(archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.comparison.entries > 250  # of 300; the last sound was still being encoded
    assert replayed.outcomes[0].counts["holds"] >= 1


def test_the_flag_is_a_setting(tmp_path: Path) -> None:
    args = _parser().parse_args(["serve", "--record", str(tmp_path), "--set", "record.redact=text"])
    assert config_from(args).record == RecordConfig(dir=tmp_path, redact="text")


def test_the_models_behind_an_agent_are_named_by_their_hashes(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"weights")
    facts = {fact["name"]: fact["files"] for fact in model_facts({"thinker": str(mine), "more_voices": ["piper-amy"]})}
    assert facts["mine.gguf"] == {"mine.gguf": hashlib.sha256(b"weights").hexdigest()}
    assert all(len(digest) == 64 for files in facts.values() for digest in files.values())
    assert "silero-vad" in facts


async def test_a_server_records_what_a_client_says_to_it(tmp_path: Path) -> None:
    root = tmp_path / "rec"
    assignments = ["server.port=0", "agent.name=echo", f"record.dir={root}", "agent.options.complete_s=0.2"]
    config = load_config(None, {}, assignments)
    async with running(config) as server:
        address = server.url.replace("http://localhost", "ws://127.0.0.1") + "/v1/realtime"
        async with websockets.connect(address) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            settings = {"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}
            await socket.send(json.dumps(settings))
            spoken = np.concatenate([tone(0.4), np.zeros(12_000, dtype=np.float32)])
            audio = base64.b64encode(to_pcm16(spoken)).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            async with asyncio.timeout(20):
                while json.loads(await socket.recv())["type"] != "response.done":
                    pass
    archive = Archive(find(root))
    manifest = archive.manifest
    assert manifest.state == "complete"
    assert manifest.line["kind"] == "WebSocketLine"
    assert manifest.config["agent"] == {"name": "echo", "options": {"complete_s": 0.2}}
    assert manifest.models
    requests = [line["request"]["is"] for _, line in archive.lines() if line["kind"] == "request"]
    assert requests == ["UpdateSettings"]
    replayed = await asyncio.to_thread(replay, archive)
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.comparison.exact
    assert replayed.sound_same
