"""Checkpoints as they are published: whole, fused, cut, quantised, adapted; and all that can be wrong with one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from native_tiny import CARD, tiny_lm, tiny_lm_kwargs
from safetensors.torch import save_file

from duplex.errors import ConfigError, WeightsCorruptError, WeightsError, WeightsMissingError
from duplex.thinker_talker.native.checkpoints.checkpoint import Checkpoint, find_checkpoint, load_lm
from duplex.thinker_talker.native.checkpoints.int8_linear import Int8Linear
from duplex.thinker_talker.native.checkpoints.precision import Precision
from duplex.weights import Manifest, ModelStore

CPU = torch.device("cpu")
FULL = Precision()
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny_lm(seed=3)


def published(tensors: Tensors) -> Tensors:
    """As the family's files are: the depth transformer's projections of all steps in one matrix."""
    fused: dict[str, list[torch.Tensor]] = {}
    out: Tensors = {}
    for name, tensor in tensors.items():
        if found := re.match(r"(.*self_attn\.)(in|out)_projs\.\d+\.weight(.*)$", name):
            fused.setdefault(f"{found[1]}{found[2]}_proj{'_' if found[2] == 'in' else '.'}weight{found[3]}", []).append(
                tensor
            )
        else:
            out[name] = tensor.contiguous()
    return out | {name: torch.cat(parts) for name, parts in fused.items()}


def write(directory: Path, tensors: Tensors, **config: Any) -> str:
    directory.mkdir(exist_ok=True)
    table = tiny_lm_kwargs() | {"moshi_name": "lm.safetensors", "mimi_name": "mimi.safetensors"} | config
    (directory / "config.json").write_text(json.dumps(table | {"tokenizer_name": "text.model"}))
    save_file(tensors, directory / "lm.safetensors")
    save_file({"x": torch.zeros(1)}, directory / "mimi.safetensors")
    (directory / "text.model").write_bytes(b"tokenizer")
    return str(directory)


def same_model(one: Any, other: Any) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of text and audio, for a fixed sound and text."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, CARD, (1, model.n_q + 1, 12), generator=generator)
    with torch.no_grad():
        out = model(codes)
    return out.text_logits, torch.nan_to_num(out.logits)


def test_a_published_file_loads_as_the_package_loads_it(tmp_path: Path, original: Any) -> None:
    from moshi.models import loaders

    where = write(tmp_path, published(original.state_dict()))
    checkpoint = find_checkpoint(where)
    ours = load_lm(checkpoint, CPU, FULL)
    theirs = loaders.get_moshi_lm(checkpoint.lm, lm_kwargs=tiny_lm_kwargs(), dtype=torch.float32)
    same_model(ours, original)
    same_model(ours, theirs)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in ours.parameters())
    assert not ours.training
    assert checkpoint.codec_options() == {"weights": tmp_path / "mimi.safetensors", "config": None, "codebooks": 4}


def test_what_was_drawn_at_random_can_be_saved_and_loaded(tmp_path: Path, original: Any) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in original.state_dict().items()}
    same_model(load_lm(find_checkpoint(write(tmp_path, tensors)), CPU, FULL), original)


def test_a_model_lives_on_when_its_file_is_replaced(tmp_path: Path, original: Any) -> None:
    where = write(tmp_path, published(original.state_dict()))
    model = load_lm(find_checkpoint(where), CPU, FULL)
    with (tmp_path / "lm.safetensors").open("r+b") as file:
        file.write(bytes((tmp_path / "lm.safetensors").stat().st_size))
    same_model(model, original)


def test_parts_have_their_own_precision(tmp_path: Path, original: Any) -> None:
    checkpoint = find_checkpoint(write(tmp_path, published(original.state_dict())))
    model = load_lm(checkpoint, CPU, Precision(temporal="bfloat16", depth="int8"))
    assert model.text_linear.weight.dtype == model.emb[0].weight.dtype == torch.bfloat16
    assert model.depformer_text_emb.weight.dtype == torch.float32
    assert isinstance(model.linears[0], Int8Linear)
    assert isinstance(model.depformer.layers[0].self_attn.in_projs[2], Int8Linear)
    assert isinstance(model.transformer.layers[0].self_attn.in_projs[0], torch.nn.Linear)
    (text, audio), (text8, audio8) = logits(original), logits(model)
    assert (text - text8).abs().max() < 0.02 * text.abs().max()
    assert 0 < (audio - audio8).abs().max() < 0.1 * audio.abs().max()


def test_a_q8_file_keeps_its_int8(tmp_path: Path, original: Any) -> None:
    """As `moshiko-pytorch-q8`: int8 steps of each row's largest magnitude over 127, and that magnitude beside it."""
    tensors: Tensors = {}
    for name, module in original.named_modules():
        if isinstance(module, torch.nn.Linear):
            peak = module.weight.abs().amax(1)
            tensors[f"{name}.weight"] = (module.weight / peak[:, None] * 127).round().to(torch.int8)
            tensors[f"{name}.weight_scb"] = peak
    tensors = {name: tensor for name, tensor in original.state_dict().items() if name not in tensors} | tensors
    checkpoint = find_checkpoint(write(tmp_path, published(tensors), quantize=True))
    as_int8 = load_lm(checkpoint, CPU, Precision(temporal="int8", depth="int8"))
    projection = as_int8.depformer.layers[0].self_attn.in_projs[1]
    assert isinstance(projection, Int8Linear)
    name = "depformer.layers.0.self_attn.in_projs.1.weight"
    assert torch.equal(projection.weight, tensors[name])
    assert torch.allclose(projection.scale * 127, tensors[name + "_scb"])
    widened = load_lm(checkpoint, CPU, FULL)
    assert isinstance(widened.text_linear, torch.nn.Linear)
    for a, b in zip(logits(as_int8), logits(widened), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_lora_adapter_is_added(tmp_path: Path, original: Any) -> None:
    """Against the package, which keeps adapters as layers of their own."""
    from moshi.models import loaders

    where = write(tmp_path, published(original.state_dict()), lora=True, lora_name="a.safetensors", lora_rank=4)
    generator = torch.Generator().manual_seed(1)
    adapter = {}
    for name, module in original.named_modules():
        if isinstance(module, torch.nn.Linear):
            adapter[f"{name}.lora_A.weight"] = 0.1 * torch.randn(4, module.in_features, generator=generator)
            adapter[f"{name}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, 4, generator=generator)
    with pytest.raises(WeightsMissingError, match=r"a\.safetensors, LoRA"):
        find_checkpoint(where)
    save_file(adapter, tmp_path / "a.safetensors")
    checkpoint = find_checkpoint(where)
    ours = load_lm(checkpoint, CPU, FULL)
    kwargs = tiny_lm_kwargs() | {"lora": True, "lora_rank": 4}
    theirs = loaders.get_moshi_lm(
        checkpoint.lm, kwargs, dtype=torch.float32, lora_weights=checkpoint.lora, fuse_lora=True
    )
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    assert not torch.equal(ours.text_linear.weight, original.text_linear.weight)
    save_file({"text_linear.lora_A.weight": torch.zeros(4, 64)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit the model: 1 tensors, such as text_linear\.lora_A\.weight"):
        load_lm(find_checkpoint(where), CPU, FULL)


def test_personaplex_is_served_without_the_steps_that_guess_the_user(tmp_path: Path) -> None:
    whole = tiny_lm(seed=4, dep_q=8)  # 4 steps for the agent, 4 for the user
    tensors = published(whole.state_dict())
    assert tensors["depformer.layers.0.self_attn.in_proj_weight"].shape == (8 * 3 * 32, 32)
    for fused in (True, False):
        where = write(tmp_path, tensors if fused else whole.state_dict(), model_type="personaplex", dep_q=8)
        model = load_lm(find_checkpoint(where), CPU, FULL)
        assert model.dep_q == 4
        for a, b in zip(logits(model), logits(whole), strict=True):
            assert torch.allclose(a, b[:, : a.shape[1]], atol=1e-5)


def test_hibiki_does_not_end_early(tmp_path: Path, original: Any) -> None:
    model = load_lm(find_checkpoint(write(tmp_path, original.state_dict(), model_type="hibiki")), CPU, FULL)
    assert torch.equal(model.text_emb.weight[2], original.text_emb.weight[3])


def test_shards_with_an_index(tmp_path: Path, original: Any) -> None:
    tensors = published(original.state_dict())
    where = write(tmp_path, tensors)
    (tmp_path / "lm.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "lm.safetensors.index.json").write_text(json.dumps(index))
    same_model(load_lm(find_checkpoint(where), CPU, FULL), original)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(WeightsMissingError, match=r"1 files that are not there: b\.safetensors"):
        load_lm(find_checkpoint(where), CPU, FULL)
    (tmp_path / "lm.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(WeightsError, match="no file beside it"):
        load_lm(find_checkpoint(where), CPU, FULL)


def refused(where: str, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        load_lm(find_checkpoint(where), CPU, FULL)
    return str(caught.value)


def test_everything_that_does_not_fit_is_told_at_once(tmp_path: Path, original: Any) -> None:
    tensors = original.state_dict()
    for k in range(5):
        tensors.pop(f"emb.{k}.weight")
    tensors["text_linear.weight"] = torch.zeros(48, 64)
    tensors["decoder.bias"] = torch.zeros(3)
    told = refused(write(tmp_path, tensors), WeightsError)
    assert "5 missing: emb.0.weight, emb.1.weight, emb.2.weight, …" in told
    assert "1 not of this model: decoder.bias" in told
    assert "1 of another shape: text_linear.weight is [48, 64], the configuration says [320, 64]" in told
    assert "config.json" in told


def test_a_fused_tensor_of_another_model_is_told(tmp_path: Path, original: Any) -> None:
    tensors = published(original.state_dict())
    name = "depformer.layers.0.self_attn.in_proj_weight"
    tensors[name] = tensors[name][:-7].contiguous()
    assert "of another shape" in refused(write(tmp_path, tensors), WeightsError)


def test_int8_without_scales_is_told(tmp_path: Path, original: Any) -> None:
    tensors = original.state_dict()
    tensors["text_linear.weight"] = torch.zeros(320, 64, dtype=torch.int8)
    assert "text_linear.weight_scb" in refused(write(tmp_path, tensors), WeightsError)


@pytest.mark.parametrize("left", [0, 4, 5_000, -1])
def test_a_file_that_was_cut_short(tmp_path: Path, original: Any, left: int) -> None:
    where = write(tmp_path, original.state_dict())
    path = tmp_path / "lm.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    told = refused(where, WeightsCorruptError)
    assert str(path) in told
    assert "cut short" in told


def test_a_pickle_is_not_opened(tmp_path: Path, original: Any) -> None:
    where = write(tmp_path, original.state_dict())

    class Trap:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "sprung").touch, ()

    torch.save({"model": Trap()}, tmp_path / "lm.safetensors")  # by its first bytes, whatever its name
    assert "is a pickle" in refused(where, WeightsError)
    write(tmp_path, original.state_dict(), mimi_name="mimi.pt")
    torch.save({"model": Trap()}, tmp_path / "mimi.pt")
    assert "is a pickle" in refused(where, WeightsError)
    assert not (tmp_path / "sprung").exists()


def test_a_directory_that_is_none(tmp_path: Path, original: Any) -> None:
    assert "no model of this family" in refused(str(tmp_path), WeightsMissingError)
    where = write(tmp_path / "m", original.state_dict())
    assert "is a file" in refused(str(tmp_path / "m" / "lm.safetensors"), ConfigError)
    (tmp_path / "m" / "text.model").unlink()
    assert "text tokenizer" in refused(where, WeightsMissingError)
    (tmp_path / "m" / "lm.safetensors").unlink()
    (tmp_path / "m" / "text.model").touch()
    assert "lm.safetensors.index.json" in refused(where, WeightsMissingError)


def test_a_directory_without_a_config_is_one_of_the_first_releases(tmp_path: Path) -> None:
    """Those of the 7B's shape; PersonaPlex is told by its steps of depth."""
    (tmp_path / "tokenizer_spm_32k_3.model").touch()
    save_file({"x": torch.zeros(1)}, tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors")
    save_file({"linears.7.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert find_checkpoint(str(tmp_path)).config.dep_q == 8
    save_file({"linears.15.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = find_checkpoint(str(tmp_path))
    assert (found.config.model_type, found.config.dep_q, found.config.agent_q) == ("personaplex", 16, 8)
    assert "of another shape: linears.15" not in (told := refused(str(tmp_path), WeightsError))
    assert "missing: emb.0.weight" in told


def test_a_repository_is_found_in_the_manifest_and_never_fetched_on_the_way(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(WeightsMissingError, match="duplex models pull personaplex-7b"):
        find_checkpoint("nvidia/personaplex-7b-v1", store)
    with pytest.raises(WeightsMissingError, match="duplex models pull moshika"):
        find_checkpoint("moshika", store)
    with pytest.raises(ConfigError, match=r"neither a directory nor in the weights manifest \(there: moshika"):
        find_checkpoint("nobody/knows-this", store)


def test_a_model_from_the_store(tmp_path: Path, original: Any) -> None:
    import hashlib

    write(tmp_path / "tiny", published(original.state_dict()))
    files = [
        {"name": p.name, "size_bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted((tmp_path / "tiny").iterdir())
    ]
    source = {"kind": "hub", "repo": "someone/tiny", "revision": "main", "paths": {f["name"]: f["name"] for f in files}}
    entry = {"name": "tiny", "title": "t", "role": "native", "licence": "MIT", "files": files, "sources": [source]}
    store = ModelStore(tmp_path, Manifest.model_validate({"default": [], "model": [entry]}))
    found: Checkpoint = find_checkpoint("someone/tiny", store)
    assert found.directory == tmp_path / "tiny"
    same_model(load_lm(found, CPU, FULL), original)
    (tmp_path / "tiny" / "lm.safetensors").write_bytes(b"x" * files[1]["size_bytes"])  # type: ignore[operator]
    with pytest.raises(WeightsCorruptError, match="altered"):
        find_checkpoint("tiny", store)
