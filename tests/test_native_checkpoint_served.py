"""A model's directory as an engine: what was published is what speaks, with its tokenizer, codec, voices and role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from native_tiny import tiny_checkpoint

from duplex.codecs.mimi import load as load_mimi
from duplex.errors import ConfigError, WeightsError
from duplex.scheduler.contract import SlotFrame, SlotResult, SlotSettings
from duplex.testing import tone
from duplex.thinker_talker.native.device.engine_loading import load_engine
from duplex.thinker_talker.native.device.engine_options import EngineOptions

FRAMES = 12


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), seed=0)


def engine_of(**options: Any) -> Any:
    table = {"device": "cpu", "max_slots": 2, "seed": 1, "temperature_text": 0.0, "temperature_audio": 0.0}
    engine = load_engine(EngineOptions(**(table | options)), codec_factory=load_mimi)
    engine.start()
    return engine


def call(engine: Any, settings: SlotSettings = SlotSettings()) -> Sequence[SlotResult]:  # noqa: B008
    sound = 0.1 * np.random.default_rng(0).standard_normal((FRAMES, engine.frame_samples)).astype(np.float32)
    key = engine.join(settings)
    while engine.prefill(key, 64):
        pass
    results = [engine.step([SlotFrame(key, frame)])[0][0] for frame in sound]
    engine.leave(key)
    assert not any(result.error for result in results)
    return results


def tokens(results: Sequence[SlotResult]) -> list[tuple[int | None, tuple[int, ...]]]:
    return [(r.text_token, () if r.codes is None else tuple(r.codes.tolist())) for r in results]


def test_a_directory_speaks_as_the_weights_it_was_made_of(directory: Path) -> None:
    published = engine_of(weights=str(directory))
    drawn = engine_of(preset="tiny", weights_seed=0)
    said = tokens(call(published))
    assert said == tokens(call(drawn))
    assert len({text for text, _ in said}) > 4
    published.close()
    drawn.close()


def test_a_voice_and_a_role_change_what_is_said(directory: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "Ann.wav", tone(0.8, hz=180.0), 24_000)
    engine = engine_of(weights=str(directory), voices_dir=tmp_path)
    plain = tokens(call(engine))
    with_role = tokens(call(engine, SlotSettings(prompt="the lazy dog")))
    with_voice = tokens(call(engine, SlotSettings(prompt="the lazy dog", voice="Ann")))
    assert plain != with_role != with_voice != plain
    assert tokens(call(engine)) == plain
    with pytest.raises(ConfigError, match="called by its name"):
        engine.join(SlotSettings(voice="../Ann"))
    assert tokens(call(engine)) == plain
    engine.close()


def test_a_personaplex_directory_serves_with_half_its_depth(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "m", model_type="personaplex", dep_q=8)
    engine = engine_of(weights=str(directory))
    said = tokens(call(engine, SlotSettings(prompt="the fox")))
    assert {len(codes) for _, codes in said} == {4}
    engine.close()


def test_int8_serves(directory: Path) -> None:
    full, small = engine_of(weights=str(directory)), engine_of(weights=str(directory), precision="int8")
    assert small.memory().weights < full.memory().weights
    assert len(tokens(call(small))) == FRAMES
    full.close()
    small.close()


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "m")
    (directory / "text.model").write_bytes(b"no tokenizer")
    with pytest.raises(WeightsError, match="no SentencePiece model"):
        engine_of(weights=str(directory))
    (directory / "config.json").write_text(
        (directory / "config.json").read_text().replace('"text_card": 320', '"text_card": 321')
    )
    with pytest.raises(WeightsError, match=r"text_emb\.weight is \[321, 64\], the configuration says \[322, 64\]"):
        engine_of(weights=str(directory))
