"""The benchmarks' recordings are what their measurements take them for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from duplex.benchmarks import stimuli
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ
from duplex.recording import voiced_extent, voiced_level_dbfs


def only_moonshine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine that cannot reach a package index."""

    def unreachable(_directory: Path) -> None:
        raise DuplexError("pip could not download it: no network")

    monkeypatch.setattr(stimuli, "default_root", lambda: tmp_path / "models")
    monkeypatch.setattr(stimuli, "_fetch_pocketsphinx", unreachable)


def test_recordings_are_level_trimmed_and_distinct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_moonshine(monkeypatch, tmp_path)
    notes: list[str] = []
    loaded = stimuli.load_stimuli("packages", notes.append)
    assert len(loaded) >= 10
    assert len({s.name for s in loaded}) == len(loaded)
    assert any("no network" in note for note in notes)
    for stimulus in loaded:
        assert voiced_level_dbfs(stimulus.samples) == pytest.approx(-20.0, abs=0.1)
        assert voiced_extent(stimulus.samples) == stimulus.voiced
        assert stimulus.voiced.start_ms <= 60
        assert len(stimulus.samples) / SAMPLE_RATE_HZ * 1000 - stimulus.voiced.end_ms <= 120.1
        assert stimulus.text[-1] in ".?!"


def test_breath_on_the_microphone_is_not_voice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_moonshine(monkeypatch, tmp_path)
    better = next(s for s in stimuli.load_stimuli("packages") if s.text == "Fail better.")
    assert better.voiced.end_ms < 800  # with its rumble it would go on until 1460


def test_rumble_goes_and_voice_stays() -> None:
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    rumble, voice = np.sin(2 * np.pi * 40 * t), 0.3 * np.sin(2 * np.pi * 200 * t)
    kept = stimuli._without_rumble((rumble + voice).astype(np.float32))
    assert np.max(np.abs(kept - voice)) < 1e-4


def test_interruptions_are_short_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_moonshine(monkeypatch, tmp_path)
    chosen = stimuli.load_interruptions(stimuli.load_stimuli("packages"))
    assert {"What are you talking about?", "No, not heartily, just less heartily."} <= {s.text for s in chosen}
    assert "Not now." not in {s.text for s in chosen}


def test_without_any_recordings_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stimuli, "ASTERISK", tmp_path)
    with pytest.raises(DuplexError, match="apt-get install asterisk-core-sounds-en-wav"):
        stimuli.load_stimuli("asterisk")
