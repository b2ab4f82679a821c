"""The fast copy of a GGUF model: the same metadata, nearly the same weights, made once."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from duplex.thinker_talker.gguf_repack import as_q4_0, repacked

Q = gguf.GGMLQuantizationType


def small_model(path: Path, kind: gguf.GGMLQuantizationType = Q.Q4_1) -> Path:
    """Two tensors, one of them quantised, and some metadata."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a small model")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_uint32("llama.block_count", 3)
    weights = rng.standard_normal((8, 64)).astype(np.float32)
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # in the plain rule, for an empty block
@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (3, 64), elements=st.floats(-2, 2, width=32)))
def test_weights_come_back_nearly_as_they_were(weights: np.ndarray) -> None:
    coded = as_q4_0(weights)
    assert coded.shape == (3, 64 // 32 * 18)
    back = gguf.quants.dequantize(coded, Q.Q4_0)
    largest = np.abs(weights.reshape(-1, 32)).max(axis=1)
    worst = np.abs(back - weights).reshape(-1, 32).max(axis=1)
    assert np.all(worst <= largest / 4 + 1e-4)
    plain = gguf.quants.dequantize(gguf.quants.quantize(weights, Q.Q4_0), Q.Q4_0)
    missed = [np.sum((kept - weights).astype(np.float64) ** 2) for kept in (back, plain)]
    assert missed[0] <= missed[1] * 1.001 + 1e-6, "never worse than the plain rule"


def test_it_is_closer_to_the_weights_than_the_plain_rule() -> None:
    weights = np.random.default_rng(2).standard_normal((16, 256)).astype(np.float32)
    plain = gguf.quants.dequantize(gguf.quants.quantize(weights, Q.Q4_0), Q.Q4_0)
    ours = gguf.quants.dequantize(as_q4_0(weights), Q.Q4_0)
    assert np.sum((ours - weights) ** 2) < 0.9 * np.sum((plain - weights) ** 2)


def test_a_copy_keeps_everything_but_the_format_of_its_matrices(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.gguf")
    copy = repacked(source, tmp_path / "prepared")
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(copy)
    for name, entry in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.fields[name].contents() == entry.contents()
    matrix, norm = after.tensors
    assert (matrix.name, matrix.tensor_type) == ("blk.0.ffn_up.weight", Q.Q4_0)
    assert (norm.tensor_type, norm.data.tolist()) == (Q.F32, [1.0] * 64)
    was = gguf.quants.dequantize(before.tensors[0].data, Q.Q4_1)
    now = gguf.quants.dequantize(matrix.data, Q.Q4_0)
    assert np.sqrt(np.mean((was - now) ** 2) / np.mean(was**2)) < 0.12


def test_it_is_made_once_and_anew_for_another_model(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.gguf")
    copy = repacked(source, tmp_path / "prepared")
    made_ns = copy.stat().st_mtime_ns
    os.utime(copy, ns=(made_ns - 10**9, made_ns - 10**9))
    assert repacked(source, tmp_path / "prepared").stat().st_mtime_ns == made_ns - 10**9
    small_model(source, Q.Q4_1)
    with source.open("ab") as file:
        file.write(b"\0" * 32)
    assert repacked(source, tmp_path / "prepared") != copy
    assert not list((tmp_path / "prepared").glob(".*")), "nothing half-made is left"


def test_a_model_in_another_format_is_left_alone(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.gguf", Q.Q8_0)
    assert repacked(source, tmp_path / "prepared") == source
    assert not (tmp_path / "prepared").exists()


def test_a_copy_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    source = small_model(tmp_path / "m.gguf")
    (tmp_path / "prepared").write_text("in the way")
    with pytest.raises(OSError, match="prepared"):
        repacked(source, tmp_path / "prepared")
