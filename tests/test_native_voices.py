"""Voices by name, and only those of the folder; and the prompt that is made of a voice and a role."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from duplex.errors import ConfigError
from duplex.frames import Samples
from duplex.scheduler.contract import SlotSettings
from duplex.testing import tone
from duplex.thinker_talker.native.checkpoints.config import PRESETS, parse_config, preset
from duplex.thinker_talker.native.checkpoints.persona import MIMI_SILENCE, MIMI_SINE, Prompts, wrapped
from duplex.thinker_talker.native.checkpoints.text_tokens import ByteTokens
from duplex.thinker_talker.native.checkpoints.voices import SPEECH_DBFS, Codes, VoiceFolder, levelled
from duplex.thinker_talker.native.model.tensors import CHOOSE

FRAME_S, FRAME = 0.08, 1920
PAUSE = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    voices = tmp_path / "voices"
    voices.mkdir()
    soundfile.write(voices / "Ann.wav", np.tile(tone(1.0, hz=200.0)[:, None], (1, 2)), 24_000)
    save_file({"codes": np.arange(40, dtype=np.int64).reshape(4, 10)}, voices / "Bo b.safetensors")
    soundfile.write(tmp_path / "secret.wav", tone(1.0), 24_000)
    return voices


def test_voices_are_listed_and_loaded_by_name(folder: Path) -> None:
    voices = VoiceFolder(folder)
    (folder / "notes.txt").write_text("no voice")
    assert voices.names == ("Ann", "Bo b")
    ann = voices.load("Ann")
    assert ann.samples is not None
    assert (ann.samples.dtype, len(ann.samples)) == (np.float32, 24_000)
    level_dbfs = 10 * np.log10(np.mean(ann.samples**2))
    assert abs(level_dbfs - SPEECH_DBFS) < 0.5
    codes = voices.load("Bo b.safetensors").codes
    assert codes is not None
    assert codes.shape == (10, 4)
    assert list(codes[3]) == [3, 13, 23, 33]


@pytest.mark.parametrize(
    "name", ["../secret", "../secret.wav", "/etc/passwd", "a/b", "..", ".", "", "x" * 65, "Ann\0", "~/Ann", "%2e%2e"]
)
def test_a_path_is_no_name(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="called by its name"):
        VoiceFolder(folder).load(name)


@given(st.text(max_size=30))
def test_nothing_outside_is_opened_whatever_it_is_called(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    empty = tmp_path_factory.getbasetemp() / "empty-voices"
    empty.mkdir(exist_ok=True)
    soundfile.write(empty.parent / "secret.wav", tone(1.0), 24_000)
    with pytest.raises(ConfigError):
        VoiceFolder(empty).load(name)


def test_links_and_what_is_no_file_are_not_opened(folder: Path) -> None:
    (folder / "link.wav").symlink_to(folder.parent / "secret.wav")
    (folder / "hole.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    voices = VoiceFolder(folder)
    assert voices.names == ("Ann", "Bo b")
    for name in ("link", "hole", "pipe"):
        with pytest.raises(ConfigError, match="no plain file of the voices folder"):
            voices.load(name)


def test_what_cannot_be_used_is_told(folder: Path) -> None:
    voices = VoiceFolder(folder)
    soundfile.write(folder / "blip.wav", tone(0.1), 24_000)
    soundfile.write(folder / "long.wav", np.tile(tone(1.0), 61), 8_000, subtype="PCM_U8")
    soundfile.write(folder / "still.wav", np.zeros(24_000), 24_000)
    soundfile.write(folder / "flac.wav", tone(1.0), 24_000, format="FLAC")
    soundfile.write(folder / "nan.wav", np.full(24_000, np.nan, np.float32), 24_000, subtype="FLOAT")
    (folder / "huge.wav").write_bytes(bytes(17 << 20))
    (folder / "torn.wav").write_bytes((folder / "Ann.wav").read_bytes()[:30])
    (folder / "torn2.safetensors").write_bytes((folder / "Bo b.safetensors").read_bytes()[:-9])
    save_file({"embeddings": np.zeros((3, 2), np.float32)}, folder / "emb.safetensors")
    save_file({"codes": np.zeros((3, 2), np.float32)}, folder / "float.safetensors")
    (folder / "NATM1.pt").write_bytes(b"PK\x03\x04")
    for name, told in {
        "blip": "0.1 s long",
        "long": "183.0 s long",
        "still": "silent",
        "flac": "is FLAC",
        "nan": "no numbers",
        "huge": "over 16 MiB",
        "torn": "no WAV file that can be read",
        "torn2": "no whole safetensors file",
        "emb": r"needs a tensor 'codes' int64\[codebooks, frames\]; there: embeddings",
        "float": "needs a tensor 'codes'",
        "NATM1": "is a pickle, which is not opened",
        "NATM1.pt": "is a pickle, which is not opened",
        "Carol": "There is no voice 'Carol'. Known here: .*Ann, Bo b",
    }.items():
        with pytest.raises(ConfigError, match=told):
            voices.load(name)


def test_without_a_folder_there_are_no_voices(tmp_path: Path) -> None:
    assert VoiceFolder(None).names == ()
    with pytest.raises(ConfigError, match="Known here: none"):
        VoiceFolder(None).load("Ann")
    with pytest.raises(ConfigError, match="is no directory"):
        VoiceFolder(tmp_path / "nowhere")


def test_pauses_do_not_count_for_the_level() -> None:
    speech = tone(1.0, hz=200.0)
    with_pauses = np.concatenate([np.zeros(24_000, np.float32), speech, np.zeros(24_000, np.float32)])
    voiced = levelled(with_pauses)[24_000:48_000]
    assert abs(10 * np.log10(np.mean(voiced**2)) - SPEECH_DBFS) < 0.5


class Encoder:
    """Frames to codes that tell which frame, and how loud."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples: Samples) -> Codes:
        self.calls += 1
        frames = samples.reshape(-1, FRAME)
        return np.stack([np.full(8, 1 + k % 60, np.int64) for k in range(len(frames))])


def prompts(kind: str, folder: Path | None, most_steps: int = 500) -> tuple[Prompts, Encoder]:
    table = PRESETS["tiny"] | {"text_card": 32_000}
    config = (
        parse_config(table | {"model_type": "personaplex", "dep_q": 8})
        if kind == "personaplex"
        else parse_config(table)
    )
    encoder = Encoder()
    return Prompts(config, ByteTokens(320), VoiceFolder(folder), encoder, FRAME_S, most_steps), encoder


SILENCE = np.array([50, 51, 52, 53, 54, 55, 56, 57], np.int64)


def test_personaplex_reads_the_voice_then_the_role(folder: Path) -> None:
    make, encoder = prompts("personaplex", folder)
    plan = make.of(SlotSettings(prompt=" You are kind. ", voice="Ann"), SILENCE)
    role = ByteTokens(320).encode("<system> You are kind. <system>")
    voice = 13  # 24 000 samples, filled up to whole frames
    assert len(plan) == voice + PAUSE + len(role) + PAUSE
    assert list(plan.text) == [3] * (voice + PAUSE) + role + [3] * PAUSE
    assert plan.audio.shape == plan.user.shape == (len(plan), 4)
    assert [row[0] for row in plan.audio[:voice]] == list(range(1, voice + 1))
    assert (plan.audio[voice:] == SILENCE[:4]).all()
    assert (plan.user == 8).all()  # the eighth frame of the sine: the steady state
    assert CHOOSE not in plan.audio
    calls = encoder.calls
    make.of(SlotSettings(voice="Ann"), SILENCE)
    assert encoder.calls == calls  # kept


def test_the_published_codec_has_published_silence_and_sine(folder: Path) -> None:
    encoder = Encoder()
    make = Prompts(preset("personaplex"), ByteTokens(32_000), VoiceFolder(None), encoder, FRAME_S, 500)
    plan = make.of(SlotSettings(prompt="Hi"), SILENCE)
    assert (plan.user == MIMI_SINE).all()
    assert (plan.audio == MIMI_SILENCE).all()
    assert encoder.calls == 0


def test_moshi_reads_plain_text_with_a_silent_user(folder: Path) -> None:
    make, _ = prompts("moshi", folder)
    plan = make.of(SlotSettings(prompt="Hi", voice="Bo b"), SILENCE)
    assert list(plan.text) == [3] * (10 + PAUSE) + ByteTokens(320).encode("Hi") + [3] * PAUSE
    assert (plan.user == SILENCE[:4]).all()
    assert list(plan.audio[3]) == [3, 13, 23, 33]


def test_without_a_prompt_only_the_delays_fill(folder: Path) -> None:
    make, _ = prompts("moshi", folder)
    for settings in (SlotSettings(), SlotSettings(prompt="  ")):
        plan = make.of(settings, SILENCE)
        assert len(plan) == 1
        assert (plan.text[0], *plan.audio[0]) == (CHOOSE,) * 5


def test_prompts_that_do_not_fit_are_refused(folder: Path) -> None:
    make, _ = prompts("moshi", folder, most_steps=20)
    with pytest.raises(ConfigError, match="take 52 steps of the model, and 20 are allowed"):
        make.of(SlotSettings(prompt="x" * 40), SILENCE)
    save_file({"codes": np.full((4, 9), 64, np.int64)}, folder / "far.safetensors")
    with pytest.raises(ConfigError, match="beyond the 64"):
        make.of(SlotSettings(voice="far"), SILENCE)
    save_file({"codes": np.zeros((3, 9), np.int64)}, folder / "few.safetensors")
    with pytest.raises(ConfigError, match="has 3 codebooks, and the model speaks in 4"):
        make.of(SlotSettings(voice="few"), SILENCE)


def test_voices_are_encoded_before_a_call_needs_them(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "bad.wav").write_bytes(b"RIFF")
    make, encoder = prompts("personaplex", folder)
    assert make.prepare() == ("Ann", "Bo b")
    assert "'bad' is no WAV file" in caplog.text
    calls = encoder.calls
    make.of(SlotSettings(voice="Ann", prompt="Hi"), SILENCE)
    assert encoder.calls == calls == 2  # Ann, and the sine


def test_tags_are_put_once() -> None:
    assert wrapped(" a ") == "<system> a <system>"
    assert wrapped("<system> a <system>") == "<system> a <system>"
    assert wrapped("<system>") == "<system> <system> <system>"
