"""What a recorded session is on disk: whole, cut off, damaged, redacted, secret, old."""

from __future__ import annotations

import json
import os
import shutil
import stat
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import NEW_YEAR, SPEECH, Call

from duplex.agent import AgentEvent
from duplex.config import RecordConfig
from duplex.errors import DuplexError, RecordingError
from duplex.frames import PACKET_SAMPLES, Image, Samples
from duplex.records.archive import Archive, find, is_live, sessions, sound_of, without_secrets
from duplex.records.archive_writer import SessionWriter, levels
from duplex.records.journal import Entry, Reader, Writer, from_pcm, hints_of, mask, on_grid
from duplex.records.replay import replay
from duplex.records.retention import size_bytes, sweep
from duplex.requests import Request
from duplex.testing import ScriptedAgent, ScriptedReply


class Memory:
    """A sink and a source in memory."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def put_sound(self, samples: Samples) -> Any:
        self.kept.append(samples)
        return len(self.kept) - 1

    put_image = put_sound

    def get_sound(self, reference: Any) -> Any:
        return self.kept[reference]

    get_image = get_sound

    def next_heard(self, n_packets: int) -> Samples:
        return np.zeros(n_packets * PACKET_SAMPLES, dtype=np.float32)


def an(hint: Any, name: str = "") -> Any:
    """Some value of a type that is not the default of anything."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is np.ndarray:
        return np.asarray([0.5, -0.25], dtype=np.float32)
    if origin is tuple:
        return (an(args[0]),)
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return {an(args[0]): an(args[1])}
    if origin is typing.Literal:
        return args[-1]
    if args:
        return an(next(arg for arg in args if arg is not type(None)))
    if hint is Any:
        return [1, "two", {"three": 3.5}]
    if hint is Image:
        return Image(480, b"jpeg", 4, 3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint)[-1]
    if isinstance(hint, type) and issubclass(hint, DuplexError):
        return DuplexError("it broke")
    if is_dataclass(hint):
        return hint(**{f.name: an(hints_of(hint)[f.name]) for f in fields(hint)})
    return {bool: True, int: 7, float: 0.1 + 0.2, str: "naïve “words”"}[hint]


def plain(value: Any) -> Any:
    """For comparing: arrays as lists, errors as texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, DuplexError):
        return type(value).__name__, str(value)
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


@pytest.mark.parametrize(
    ("union", "kind"),
    [(union, kind) for union in (AgentEvent, Request) for kind in typing.get_args(union)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_event_and_request_comes_back_as_it_went(union: Any, kind: Any) -> None:
    memory = Memory()
    fewest = kind(**{f.name: an(hints_of(kind)[f.name]) for f in fields(kind) if _required(f)})
    for value in (an(kind), fewest):
        written = json.loads(json.dumps(Writer(memory).value(value)))
        assert plain(Reader(memory).value(union, written)) == plain(value)


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "nap"},
        {"kind": "tick", "us": ["soon"]},
        {"kind": "tick", "heard": [0, "wq"]},
        {"kind": "tick", "collected": [[{"is": "Telepathy"}]]},
        {"kind": "tick", "collected": [[{"is": "SpeechStarted"}]]},
        {"kind": "tick", "collected": [[{"is": "UserState", "pts": 1, "user": "dancing"}]]},
        {"kind": "request", "request": "please"},
        ["tick"],
    ],
)
def test_a_line_that_cannot_have_been_written_is_refused(line: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Reader(Memory()).entry(line)


def test_masked_words_keep_their_number_and_nothing_else() -> None:
    assert mask(" Ada, come here!\n") == " x x x\n"
    assert mask("") == ""
    assert mask(mask("Hel") + mask("lo you")) == mask("Hello you")


def test_loudness_stands_in_for_sound() -> None:
    rng = np.random.default_rng(1)
    gains = np.repeat(np.asarray([0.3, 0.00999, 0.0101, 0.0], dtype=np.float32), PACKET_SAMPLES)
    noise = (np.sign(rng.standard_normal(4 * PACKET_SAMPLES)) * gains).astype(np.float32)[:-100]
    stand_in = sound_of(len(noise), levels(noise))
    assert len(stand_in) == len(noise)
    audible = [float(np.dot(p, p)) > 1e-4 * PACKET_SAMPLES for p in np.pad(stand_in, (0, 100)).reshape(4, -1)]
    assert audible == [True, False, True, False]


def test_rounding_to_the_grid_is_exact_from_then_on() -> None:
    samples = np.random.default_rng(2).uniform(-1.2, 1.2, 5000).astype(np.float32)
    rounded = on_grid(samples)
    assert np.abs(rounded - np.clip(samples, -1, 1)).max() <= 1 / 32768
    assert np.array_equal(on_grid(rounded), rounded)


# --- on disk ------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Call().record(tmp_path / "rec")


def test_a_recording_has_everything_in_it_and_is_nobody_elses_business(archive: Archive) -> None:
    manifest = archive.manifest
    assert manifest.state == "complete"
    assert manifest.duration_s == pytest.approx(8.0, abs=0.1)
    assert set(manifest.files) == {"journal.jsonl", "heard.flac", "spoken.flac", "made.flac"}
    assert manifest.session["commit_wait_s"] == 0.5
    assert manifest.config["server"]["port"] == 8998
    assert manifest.settings["instructions"] == "Be kind to Ada."
    assert manifest.libraries["numpy"]
    assert manifest.duplex
    assert manifest.python
    assert stat.S_IMODE(archive.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(archive.directory.parent.stat().st_mode) == 0o700
    for path in archive.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    heard, spoken = archive.sound("heard"), archive.sound("spoken")
    assert len(heard) == pytest.approx(8.0 * 24_000, abs=2400)
    assert np.abs(from_pcm(heard)[round(0.6 * 24_000) : round(1.4 * 24_000)]).max() > 0.1
    assert np.abs(spoken).max() > 3000
    told = [event for _, line in archive.lines() for event in line.get("told", ())]
    assert all({"pts", "at_s"} <= set(event["at"]) for event in told)
    assert {"TurnTraced", "FloorChanged", "UserTranscriptFinal", "SessionClosed"} <= {event["is"] for event in told}
    commands = [command["is"] for _, line in archive.lines() for command in line.get("commands", ())]
    assert {"BeginReply", "CommitTurn", "HoldReply", "ResumeReply", "DropReply"} <= set(commands)


def test_a_growing_history_is_written_once(tmp_path: Path) -> None:
    replies = [ScriptedReply(f"This is answer number {n}.", 0.1, 0.3) for n in range(9)]
    archive = Call(ScriptedAgent(replies), [(1.5 * n + 0.2, 0.4) for n in range(9)], 14.0).record(tmp_path)
    histories = [c["history"] for _, line in archive.lines() for c in line.get("commands", ()) if "history" in c]
    assert max(map(len, histories)) >= 16
    text = (archive.directory / "journal.jsonl").read_text("utf-8")
    # Once as it was made, once as it was told, once finished, and once remembered.
    assert text.count("This is answer number 3.") <= 5


def test_secrets_are_not_written() -> None:
    told = without_secrets(
        {
            "agent": {
                "options": {
                    "thinker": "openai:https://ada:hunter2@host/v1?key=abc#model",
                    "api_key": "sk-123456789",
                    "OPENAI-API-KEY": "x",
                    "headers": ["Authorization: Bearer abc.def"],
                    "password": "p",
                    "max_reply_tokens": 120,
                    "keyboard": "qwerty",
                    "note": "uses sk-abcdefgh12345",
                }
            }
        }
    )
    text = json.dumps(told)
    for secret in ("hunter2", "abc", "sk-123456789", "sk-abcdefgh12345", '"p"', '"x"'):
        assert secret not in text, secret
    assert told["agent"]["options"]["max_reply_tokens"] == 120
    assert told["agent"]["options"]["keyboard"] == "qwerty"
    assert told["agent"]["options"]["thinker"].endswith("#model")


@pytest.mark.parametrize("redact", ["none", "audio", "text", "all"])
def test_redaction_leaves_out_what_it_says(tmp_path: Path, redact: str) -> None:
    archive = Call().record(tmp_path, redact=redact)
    names = {path.name for path in archive.directory.iterdir()}
    assert ("heard.flac" in names) is (redact in ("none", "text"))
    assert ("made.flac" in names) is (redact in ("none", "text"))
    everything = b"".join(path.read_bytes() for path in archive.directory.glob("*.json*")).lower()
    assert (b"ada" in everything) is (redact in ("none", "audio"))
    assert (b"three" in everything) is (redact in ("none", "audio"))
    assert b"floorchanged" in everything


@pytest.mark.parametrize("kept", [True, False])
def test_pictures_are_kept_unless_told_otherwise(tmp_path: Path, kept: bool) -> None:
    def on_line(line: Any, now_s: float) -> None:
        line.image = Image(line._pts, b"\xff\xd8 the same", 64, 48)

    archive = Call(on_line=on_line).record(tmp_path, images=kept)
    pictures = list(archive.directory.glob("images/*.jpg"))
    assert len(pictures) == (1 if kept else 0)  # by content: the same one is kept once
    assert replay(archive).same


# --- damage -------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["journal.jsonl", "heard.flac", "spoken.flac", "made.flac"])
@pytest.mark.parametrize(
    ("damage", "message"), [(_truncate, "truncated"), (_flip, "altered"), (Path.unlink, "is missing")]
)
def test_damage_is_named(archive: Archive, name: str, damage: Any, message: str) -> None:
    damage(archive.directory / name)
    with pytest.raises(RecordingError, match=rf"{name}.*{message}"):
        Archive(archive.directory)


def test_a_manifest_that_is_none_is_named(archive: Archive) -> None:
    manifest = archive.directory / "manifest.json"
    whole = json.loads(manifest.read_text("utf-8"))
    for text, message in (
        ("{", "damaged"),
        (json.dumps(whole | {"format": 99}), "format 99"),
        (json.dumps({k: v for k, v in whole.items() if k != "session"}), "session: Field required"),
    ):
        manifest.write_text(text, "utf-8")
        with pytest.raises(RecordingError, match=message):
            Archive(archive.directory)
    manifest.unlink()
    with pytest.raises(RecordingError, match=r"has no manifest\.json"):
        Archive(archive.directory)


def _unfinished(archive: Archive) -> None:
    """As if the writer had been killed: the first manifest is the only one."""
    manifest = archive.manifest.model_copy(update={"state": "recording", "files": {}, "entries": 0})
    (archive.directory / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")


def test_a_recording_that_was_cut_off_is_read_as_far_as_it_goes(archive: Archive) -> None:
    _unfinished(archive)
    for name in ("journal.jsonl", "heard.flac", "spoken.flac", "made.flac"):
        _truncate(archive.directory / name)
    cut = Archive(archive.directory)
    assert cut.notes == ["The recording was cut off."]
    assert len(cut.sound("heard")) % 4096 == 0
    replayed = replay(cut)
    assert replayed.same
    assert 50 < replayed.comparison.entries < 350
    # Much less sound than journal: what nobody can know is not made up.
    (archive.directory / "heard.flac").write_bytes(cut.directory.joinpath("heard.flac").read_bytes()[:4000])
    shorter = replay(Archive(archive.directory))
    assert shorter.same
    assert 0 < shorter.comparison.entries < replayed.comparison.entries
    assert any("Replayed up to entry" in note for note in shorter.notes)


def test_a_broken_line_in_the_middle_is_damage_even_so(archive: Archive) -> None:
    _unfinished(archive)
    path = archive.directory / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[9] = lines[9][:-3] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordingError, match="line 10 is damaged"):
        replay(Archive(archive.directory))


def test_a_journal_from_elsewhere_says_where_from(archive: Archive) -> None:
    _unfinished(archive)
    path = archive.directory / "journal.jsonl"
    path.write_text(path.read_text("utf-8").replace('"SpeechStarted"', '"SpeechBegan"'), "utf-8")
    with pytest.raises(RecordingError, match=r"SpeechBegan.*recorded by duplex"):
        replay(Archive(archive.directory))


def test_a_session_is_found_by_what_one_remembers_of_it(tmp_path: Path) -> None:
    for day, name in enumerate(("sess_one", "sess_two")):
        Call(session_id=name, total_s=0.5).record(tmp_path, wall=NEW_YEAR + timedelta(days=day))
    assert find(tmp_path).name.endswith("sess_two")
    assert find(tmp_path, "sess_o").name.endswith("sess_one")
    assert find(tmp_path, "20260103").name.endswith("sess_two")
    assert find(tmp_path / find(tmp_path).name) == find(tmp_path)
    with pytest.raises(RecordingError, match=r"Several.*sess_one.*sess_two"):
        find(tmp_path, "sess_")
    with pytest.raises(RecordingError, match="No recording is called 'nobody'"):
        find(tmp_path, "nobody")
    with pytest.raises(RecordingError, match="There are no recordings"):
        find(tmp_path / "elsewhere")


# --- how long they are kept ---------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Path]:
    """Five recordings, a day apart; and things that are none of ours."""
    Call(speech=SPEECH[:1], total_s=1.0).record(tmp_path)
    original = find(tmp_path)
    for day in range(1, 5):
        stamp = (NEW_YEAR + timedelta(days=day)).strftime("%Y%m%dT%H%M%S")
        shutil.copytree(original, tmp_path / f"{stamp}.000Z-sess_{day}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    yield tmp_path
    assert (tmp_path / "photos" / "manifest.json").is_file()
    assert (tmp_path / "notes.txt").is_file()


def _left(root: Path) -> list[str]:
    return [path.name[6:8] for path in sessions(root) if path.name[0] == "2"]


def test_the_oldest_go_first(five: Path) -> None:
    now = NEW_YEAR + timedelta(days=5)
    sweep(five, RecordConfig(), now)
    assert _left(five) == ["02", "03", "04", "05", "06"]
    sweep(five, RecordConfig(max_sessions=4), now)
    assert _left(five) == ["03", "04", "05", "06"]
    sweep(five, RecordConfig(max_age_days=3.5), now)
    assert _left(five) == ["04", "05", "06"]
    one = size_bytes(find(five, "20260106"))
    assert sweep(five, RecordConfig(max_total_mb=2.5 * one / 1e6), now) == 2 * one
    assert _left(five) == ["05", "06"]


def test_one_that_is_being_written_stays(five: Path) -> None:
    manifest = Archive(find(five, "20260106")).manifest
    writer = SessionWriter(five, manifest.model_copy(update={"started_at": "2026-01-01T00:00:00.000Z"}))
    writer.entry(Entry("start"))
    assert is_live(writer.directory)
    limits = RecordConfig(max_sessions=1, max_age_days=0.001)
    sweep(five, limits, NEW_YEAR + timedelta(days=9))
    assert _left(five) == ["01"]
    writer.finish("2026-01-01T00:00:01.000Z")
    writer.release()
    assert not is_live(writer.directory)
    sweep(five, limits, NEW_YEAR + timedelta(days=9))
    assert _left(five) == []


def test_a_folder_with_something_else_in_it_is_emptied_of_ours_and_stays(five: Path) -> None:
    extra = find(five, "20260103") / "my-notes.txt"
    extra.write_text("important")
    link = five / "20250101T000000.000Z-link"
    os.symlink(find(five, "20260106"), link)
    sweep(five, RecordConfig(max_age_days=0.001), NEW_YEAR + timedelta(days=9))
    assert extra.read_text() == "important"
    assert not (extra.parent / "journal.jsonl").exists()
    assert link.is_symlink()
