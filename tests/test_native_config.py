"""The family's config.json: published files are understood, wrong ones are told by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from native_tiny import tiny_lm_kwargs

from duplex.errors import ConfigError
from duplex.thinker_talker.native.checkpoints.config import PRESETS, file_in, parse_config, preset, read_config
from duplex.thinker_talker.native.checkpoints.package import empty_lm, moshi_loaders


def shapes(lm_kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    state = empty_lm(lm_kwargs, torch.bfloat16).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def parameters(lm_kwargs: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in empty_lm(lm_kwargs, torch.bfloat16).parameters())


def test_the_presets_have_the_published_shapes() -> None:
    moshi = preset("moshi-7b")
    assert shapes(moshi.lm_kwargs) == shapes(moshi_loaders()._lm_kwargs)
    assert parameters(moshi.lm_kwargs) == 7_687_729_152
    assert shapes(preset("tiny").lm_kwargs) == shapes(tiny_lm_kwargs())
    assert 1.5e9 < parameters(preset("1b").lm_kwargs) < 1.9e9
    assert (moshi.agent_q, moshi.user_q, moshi.codebooks) == (8, 8, 8)


def test_personaplex_says_nothing_of_its_shape_and_is_served_with_half_its_depth() -> None:
    config = parse_config({"model_type": "personaplex", "version": "7b-v1"})  # the published file, whole
    assert parameters(config.lm_kwargs) == 8_371_408_896  # 16 742 817 792 bytes in bfloat16, and a header
    assert (config.dep_q, config.agent_q, config.user_q) == (16, 8, 8)
    assert config.served_lm_kwargs["dep_q"] == 8
    assert shapes(config.served_lm_kwargs) == shapes(preset("moshi-7b").lm_kwargs)


def test_what_a_file_does_not_say_is_as_the_package_has_it() -> None:
    inherits = {k: v for k, v in PRESETS["tiny"].items() if k != "depformer_gating"} | {"layer_scale": 0.01}
    model = empty_lm(parse_config(inherits).lm_kwargs, torch.float32)
    assert "depformer.layers.0.layer_scale_1.scale" in model.state_dict()
    assert "depformer.layers.0.gating.0.linear_in.weight" in model.state_dict()


def test_a_published_file_with_all_its_notes_is_read(tmp_path: Path) -> None:
    table = PRESETS["tiny"] | {
        **{"moshi_name": "m.safetensors", "mimi_name": "c.safetensors", "tokenizer_name": "t.model"},
        **{"depformer_causal": True, "demux_second_stream": False, "cross_attention": False, "conditioners": {}},
        **{"lm_gen_config": {"temp": 0.6, "top_k_text": 50}, "model_id": {"sig": "77f82164", "epoch": 110}},
        **{"model_type": "hibiki", "tts_config": {}, "stt_config": {}},
    }
    (tmp_path / "config.json").write_text(json.dumps(table))
    config = read_config(tmp_path / "config.json")
    assert config.moshi_name == "m.safetensors"
    assert (config.lm_gen_config.temp, config.lm_gen_config.top_k_text, config.lm_gen_config.top_k) == (0.6, 50, 250)
    assert shapes(config.lm_kwargs) == shapes(tiny_lm_kwargs())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dim": None}, "config.json: dim = None"),
        ({"dim": 65}, "not divisible by num_heads"),
        ({"delays": [0, 0, 1]}, "delays has 3 entries and needs n_q + 1 = 9"),
        ({"n_streams": 3}, "'n_streams' is nothing this engine knows"),
        ({"dep_q": 8}, "hears no user"),
        ({"stt_config": {"audio_delay_seconds": 0.5}}, "only listens"),
        ({"conditioners": {"description": {"type": "lut"}}}, "conditioners is not something this engine serves"),
        ({"lm_gen_config": {"temp": -1}}, "lm_gen_config.temp = -1"),
        ({"lm_gen_config": {"cfg_coef": 3.0}}, "guidance is not something this engine serves"),
        ({"existing_text_padding_id": 400}, "outside text_card"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "depformer_weights_per_step_schedule has 2 entries"),
        ({"lora": True, "quantize": True}, "exclude each other"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(PRESETS["tiny"] | change)
    assert told in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has no 'n_q'"):
        parse_config({k: v for k, v in PRESETS["tiny"].items() if k != "n_q"})
    with pytest.raises(ConfigError, match="Known: tiny, 1b, moshi-7b, personaplex"):
        preset("7b")


def test_what_is_no_json_object_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_config(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        read_config(path)


def test_file_names_stay_in_the_directory(tmp_path: Path) -> None:
    assert file_in(tmp_path, "a/b.safetensors", "moshi_name") == tmp_path / "a" / "b.safetensors"
    assert file_in(tmp_path, "file:///models/b.safetensors", "moshi_name") == Path("/models/b.safetensors")
    for name in ("../b", "/etc/passwd", "a/../../b", "hf://kyutai/moshiko-pytorch-bf16/model.safetensors", ""):
        with pytest.raises(ConfigError, match="moshi_name"):
            file_in(tmp_path, name, "moshi_name")
