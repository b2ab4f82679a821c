"""The transform codec and the benchmark that measures it: exact where nothing is quantised, worse with fewer codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from duplex.benchmarks import bitrate
from duplex.benchmarks.bitrate_quality import log_mel_distance_db, si_sdr_db
from duplex.benchmarks.jitter import voice
from duplex.benchmarks.stimuli import Stimulus
from duplex.codecs import rvq_mdct
from duplex.codecs.rvq_mdct import FRAME_SAMPLES, MdctTraining, RvqMdctCodec, RvqMdctState, mdct_matrix
from duplex.errors import ConfigError, DuplexError, WeightsCorruptError, WeightsMissingError
from duplex.frames import Samples
from duplex.recording import Span

TINY = MdctTraining(codebooks=4, codebook_size=16, steps=3, batch=256, first_batch=512)
ALL = torch.tensor([True])


@pytest.fixture(scope="module")
def codec() -> RvqMdctCodec:
    torch.set_num_threads(1)
    return rvq_mdct.train([torch.from_numpy(voice(4.0))], TINY)


def frames(seconds: float, seed: int) -> Tensor:
    """float32[n, frame_samples] of voice-like sound."""
    sound = torch.from_numpy(voice(seconds + 0.1 * seed))[-round(seconds * 24_000) :]
    return sound.view(-1, FRAME_SAMPLES)


def spoken(codec: RvqMdctCodec, sound: Tensor, k: int = 4) -> Tensor:
    """One slot, frame by frame: float32[n, frame_samples]."""
    state = codec.new_state(1)
    heard = []
    for frame in sound:
        codes = codec.encode(state, frame[None], ALL)
        heard.append(codec.decode(state, codes, ALL, torch.tensor([k])))
    return torch.cat(heard)


# -- codec --------------------------------------------------------------------------------------------------


def test_without_quantisation_the_transform_gives_the_samples_back_one_frame_late() -> None:
    transform = mdct_matrix(FRAME_SAMPLES)
    sound = torch.randn(8 * FRAME_SAMPLES)
    padded = torch.nn.functional.pad(sound, (FRAME_SAMPLES, FRAME_SAMPLES))
    heard = torch.zeros_like(padded)
    for start in range(0, len(sound) + 1, FRAME_SAMPLES):
        window = slice(start, start + 2 * FRAME_SAMPLES)
        heard[window] += transform.t() @ (transform @ padded[window])
    torch.testing.assert_close(heard[FRAME_SAMPLES:-FRAME_SAMPLES], sound, rtol=0, atol=1e-5)


def test_an_error_in_coefficients_is_as_large_in_samples() -> None:
    transform = mdct_matrix(FRAME_SAMPLES)
    torch.testing.assert_close(transform @ transform.t(), torch.eye(FRAME_SAMPLES), rtol=0, atol=1e-5)


def test_more_codebooks_are_nearer(codec: RvqMdctCodec) -> None:
    sound = frames(2.0, seed=3)
    late = [spoken(codec, sound, k).flatten()[FRAME_SAMPLES:].numpy() for k in (1, 2, 3, 4)]
    original = sound.flatten()[:-FRAME_SAMPLES].numpy()
    found = [si_sdr_db(original, heard) for heard in late]
    assert found == sorted(found)
    assert found[-1] > found[0] + 3.0
    assert found[-1] > 3.0


def test_slots_do_not_hear_each_other_and_idle_ones_stand_still(codec: RvqMdctCodec) -> None:
    sounds = [frames(0.4, seed) for seed in range(3)]
    alone = [spoken(codec, sound) for sound in sounds]
    state, four = codec.new_state(4), torch.full((3,), 4)
    assert state.first(3) is state.first(3)
    heard: list[list[Tensor]] = [[], [], []]
    at = [0, 0, 0]
    for tick in range(40):
        active = torch.tensor([at[slot] < 20 and (tick + slot) % (slot + 1) == 0 for slot in range(3)])
        given = torch.stack([sounds[slot][min(at[slot], 19)] if active[slot] else torch.ones(480) for slot in range(3)])
        rows = state.first(3)
        out = codec.decode(rows, codec.encode(rows, given, active), active, four)
        for slot in torch.nonzero(active)[:, 0].tolist():
            heard[slot].append(out[slot])
            at[slot] += 1
    for slot in range(3):
        assert at[slot] >= 13
        torch.testing.assert_close(torch.stack(heard[slot]), alone[slot][: at[slot]], rtol=0, atol=1e-6)


def test_a_reset_slot_is_as_new_and_the_others_are_not_touched(codec: RvqMdctCodec) -> None:
    state, both, four = codec.new_state(2), torch.tensor([True, True]), torch.tensor([4, 4])
    codec.decode(state, codec.encode(state, frames(0.04, 1), both), both, four)
    kept = {name: tensor[1].clone() for name, tensor in state.tensors().items()}
    state.reset(0)
    for name, tensor in state.tensors().items():
        assert not tensor[0].any()
        assert torch.equal(tensor[1], kept[name])
        assert kept[name].any()


def test_a_codec_comes_back_from_its_file(codec: RvqMdctCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    codec.save(path)
    again = rvq_mdct.load({"weights": str(path)})
    assert again.info == codec.info
    sound = frames(0.4, seed=2)
    assert torch.equal(spoken(again, sound), spoken(codec, sound))
    with pytest.raises(ConfigError, match="weights"):
        rvq_mdct.load({})
    with pytest.raises(WeightsMissingError):
        rvq_mdct.load({"weights": tmp_path / "none.safetensors"})
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(WeightsCorruptError, match="not a safetensors file"):
        rvq_mdct.load({"weights": path})


def test_learning_is_repeatable_and_needs_sound(codec: RvqMdctCodec) -> None:
    again = rvq_mdct.train([torch.from_numpy(voice(4.0))], TINY)
    assert torch.equal(again.rvq.codebooks[-1].entries, codec.rvq.codebooks[-1].entries)
    with pytest.raises(ConfigError, match="no recording"):
        rvq_mdct.train([torch.zeros(100)], TINY)


def test_a_state_has_no_more_slots_than_it_has(codec: RvqMdctCodec) -> None:
    state = codec.new_state(2)
    assert isinstance(state, RvqMdctState)
    with pytest.raises(ValueError, match="2 slots"):
        state.first(3)


# -- distances ----------------------------------------------------------------------------------------------


def test_si_sdr_is_the_ratio_that_noise_was_mixed_with_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(48_000).astype(np.float32)
    noise = rng.standard_normal(48_000).astype(np.float32)
    for snr_db in (-5.0, 0.0, 20.0):
        mixed = sound + noise * 10.0 ** (-snr_db / 20.0)
        assert si_sdr_db(sound, 0.3 * mixed) == pytest.approx(snr_db, abs=0.2)
    assert si_sdr_db(sound, 0.5 * sound) > 100.0
    assert si_sdr_db(sound, np.zeros_like(sound)) == -np.inf
    with pytest.raises(ValueError, match="against"):
        si_sdr_db(sound, sound[1:])


def test_log_mel_distance_hears_level_and_spectrum_but_not_phase_nor_what_is_far_below() -> None:
    sound = voice(2.0)
    assert log_mel_distance_db(sound, sound) == 0.0
    assert log_mel_distance_db(sound, -sound) == pytest.approx(0.0, abs=1e-6)
    assert log_mel_distance_db(sound, np.zeros_like(sound)) > 8.0
    hiss = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    assert log_mel_distance_db(hiss, hiss * 10.0 ** (-6.0 / 20.0)) == pytest.approx(6.0, abs=0.01)
    faint, loud = (log_mel_distance_db(sound, sound + level * hiss) for level in (1e-5, 1e-2))
    assert faint < 0.2 < 2.0 < loud


# -- benchmark ----------------------------------------------------------------------------------------------


def stimulus(name: str, samples: Samples) -> Stimulus:
    return Stimulus(name, "made", "", samples, Span(0.0, 1.0), speaker=name)


def test_the_benchmark_decodes_one_encoding_with_each_number_of_codebooks(codec: RvqMdctCodec) -> None:
    sound = voice(1.3)[:30_001]  # no whole number of frames
    result = bitrate.measure(codec, "ours", [stimulus("a", sound), stimulus("b", 0.5 * sound)], (1, 2, 4, 32), print)
    assert [row.n_codebooks for row in result.rows] == [1, 2, 4], "32 are more than it has"
    assert [row.bits_per_second for row in result.rows] == [200.0, 400.0, 800.0], "50 frames of 4 bits a codebook"
    assert (result.n, result.speakers, len(result.usage)) == (2, 2, 4)
    assert result.seconds == pytest.approx(2 * 30_001 / 24_000)
    assert result.g711.bits_per_second == 64_000.0
    assert result.g711.log_mel_db.p90 < result.rows[-1].log_mel_db.p10
    medians = [row.si_sdr_db.p50 for row in result.rows]
    assert medians == sorted(medians)
    padded = torch.zeros(64 * FRAME_SAMPLES)
    padded[: len(sound)] = torch.from_numpy(sound)
    heard = spoken(codec, padded.view(-1, FRAME_SAMPLES), 2).flatten()[FRAME_SAMPLES:][: len(sound)]
    assert result.rows[1].si_sdr_db.p90 == pytest.approx(si_sdr_db(sound, heard.numpy()), abs=0.5)
    with pytest.raises(DuplexError, match="Nothing to measure"):
        bitrate.measure(codec, "ours", [], (1,), print)


def test_the_command_prints_its_table_and_writes_figures_and_picture(
    codec: RvqMdctCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bitrate, "turns", lambda split, note, uses=("turn",): [stimulus(split, voice(1.0))] * 3)
    weights, figures, plot = tmp_path / "c.safetensors", tmp_path / "b.json", tmp_path / "b.png"
    codec.save(weights)
    options = ["--codebooks", "1,4", "--seconds", "1.5", "--json", str(figures), "--plot", str(plot)]
    assert bitrate.main(["--weights", str(weights), *options]) == 0
    said = capsys.readouterr().out
    assert "not Mimi" in said
    told = json.loads(figures.read_text())
    assert (told["codec"], told["n"]) == ("rvq-mdct", 2)
    assert [row["bits_per_second"] for row in told["rows"]] == [200.0, 800.0]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_weights_the_command_learns_from_the_other_split_and_can_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def turns(split: str, note: object, uses: object = None) -> list[Stimulus]:
        asked.append(split)
        return [stimulus(split, voice(1.0))]

    monkeypatch.setattr(bitrate, "turns", turns)
    monkeypatch.setattr(rvq_mdct, "MdctTraining", lambda codebooks: TINY.model_copy(update={"codebooks": codebooks}))
    saved = tmp_path / "learned.safetensors"
    assert bitrate.main(["--codebooks", "1,2", "--save", str(saved)]) == 0
    assert asked == ["tuning", "reporting"]
    assert rvq_mdct.load({"weights": saved}).info.codebooks == 2


def test_a_mimi_is_measured_through_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from duplex.codecs import mimi

    tiny = mimi.load({"config": "tiny", "codebooks": 8})
    result = bitrate.measure(tiny, "random weights", [stimulus("a", voice(0.7))], (1, 8, 16), print)
    assert [(row.n_codebooks, row.bits_per_second) for row in result.rows] == [(1, 75.0), (8, 600.0)]
    other = tmp_path / "tokenizer.safetensors"
    other.write_bytes(b"not one")
    with pytest.raises(DuplexError, match="no whole safetensors file"):
        bitrate.codec_for(str(other), 8, None, print)


def test_weights_that_are_not_there_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DuplexError, match="duplex models pull mimi"):
        bitrate.codec_for(str(tmp_path / "none"), 8, None, print)
    monkeypatch.setenv("DUPLEX_MODELS_DIR", str(tmp_path))
    with pytest.raises(WeightsMissingError, match="duplex models pull mimi"):
        bitrate.codec_for("mimi", 8, None, print)
