"""Mimi's weights: files as published, random ones, and everything that must be refused with a sentence that helps."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from duplex.codecs.mimi import load
from duplex.codecs.mimi_weights import RANDOM_LEVEL
from duplex.errors import ConfigError, MissingDependencyError, WeightsCorruptError, WeightsError, WeightsMissingError

FRAME = 1920


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the names that published ones have: projections of attention under their older name."""
    torch.set_num_threads(1)
    state = load({"config": "tiny", "codebooks": 8, "seed": 3}).model.state_dict()
    renamed = {name.replace("in_projs.0.weight", "in_proj_weight"): tensor for name, tensor in state.items()}
    renamed = {name.replace("out_projs.0.", "out_proj."): tensor.contiguous() for name, tensor in renamed.items()}
    assert len(renamed) == len(state)
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    save_file(renamed, path)
    return path


def one_second(options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    mimi = load(options)
    state, active = mimi.new_state(1), torch.ones(1, dtype=torch.bool)
    noise = 0.1 * torch.randn(1, 12 * FRAME, generator=torch.Generator().manual_seed(0))
    codes = mimi.encode_frames(state, noise, active)
    return codes, mimi.decode_frames(state, codes, active, torch.tensor([mimi.info.codebooks]))


def test_a_file_loads_to_the_model_it_was_written_from(published: Path) -> None:
    codes, samples = one_second({"config": "tiny", "weights": str(published), "seed": 9})
    want_codes, want_samples = one_second({"config": "tiny", "seed": 3})
    assert torch.equal(codes, want_codes)
    assert torch.equal(samples, want_samples)


def test_random_weights_are_of_their_seed_and_leave_torch_s_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = one_second({"config": "tiny"}), one_second({"config": "tiny", "seed": 0})
    other = one_second({"config": "tiny", "seed": 1})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_random_codes_follow_the_sound_and_the_sound_is_heard() -> None:
    codes, samples = one_second({"config": "tiny", "codebooks": 32})
    assert codes.shape == (1, 12, 32)
    assert min(codes[0, :, k].unique().numel() for k in range(32)) >= 5  # of 12 frames
    assert 0.3 * RANDOM_LEVEL < samples.std() < 3 * RANDOM_LEVEL
    assert samples.mean().abs() < RANDOM_LEVEL


def test_a_configuration_comes_as_a_table_or_a_file(tmp_path: Path, published: Path) -> None:
    table = {"transformer": {"context": 30, "num_layers": 1}, "seanet": {"n_filters": 4}}
    path = tmp_path / "mimi.json"
    path.write_text(json.dumps(table))
    from_table, from_file = (load({"config": config, "codebooks": 1}) for config in (table, path))
    assert from_table.bytes_per_slot == from_file.bytes_per_slot
    state = from_table.new_state(1)
    assert state.tensors()["encoder.kv"].shape[1:] == (1, 2, 8, 32, 64)  # 30 + 1 steps, rounded up to 8


def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    ran: list[str] = []

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (ran.append, ("run",))

    plain, archive = pickle.dumps(Trap()), tmp_path / "torch"
    torch.save({"model": {}}, archive)
    for name, body in {
        "mimi.pt": b"anything",
        "mimi.bin": plain,
        "mimi.th": plain,
        "mimi.safetensors": plain,
        "renamed.safetensors": archive.read_bytes(),
    }.items():
        path = tmp_path / name
        path.write_bytes(body)
        with pytest.raises(WeightsError, match=r"pickle.*refused.*safetensors"):
            load({"config": "tiny", "weights": path})
    assert not ran


def test_a_missing_and_a_truncated_file_are_told_apart(tmp_path: Path, published: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"no file .*nowhere\.safetensors"):
        load({"config": "tiny", "weights": tmp_path / "nowhere.safetensors"})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(published.read_bytes()[:-1000])
    with pytest.raises(WeightsCorruptError, match="Fetch it again"):
        load({"config": "tiny", "weights": cut})
    cut.write_bytes(b"")
    with pytest.raises(WeightsCorruptError):
        load({"config": "tiny", "weights": cut})


def test_weights_of_another_shape_name_what_differs(published: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"do not fit.*size mismatch for encoder\.model\.14.*\[32, 64, 3\].*\d+ more\.$"
    ):
        load({"weights": published, "config": {"seanet": {"n_filters": 4}, "transformer": {"num_layers": 1}}})
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(ConfigError, match=r"do not fit.*Missing key"):
        load({"weights": foreign, "config": "tiny"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook": 8}, r"no setting 'codebook'.*codebooks"),
        ({"codebooks": 0}, "codebooks"),
        ({"codebooks": 33}, "codebooks = 33, and this Mimi has 32"),
        ({"dtype": "int8"}, "dtype"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"config": {"sea": {}}}, "no 'sea'.*seanet"),
        ({"config": {"seanet": 3}}, "'seanet' must be a table"),
        ({"config": {"seanet": {"filters": 3}}}, "no Mimi can be built"),
        ({"config": {"transformer": {"num_heads": 7}}}, "no Mimi can be built"),
        ({"config": {"transformer": {"positional_embedding": "sin", "num_layers": 1}}}, "rope"),
        ({"config": "huge"}, "config"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    tiny = options if "config" in options else {"config": "tiny"} | options
    with pytest.raises(ConfigError, match=message):
        load(tiny)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"sees no GPU.*'cpu'"):
        load({"config": "tiny", "device": "cuda"})


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moshi.models", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        load({"config": "tiny"})
