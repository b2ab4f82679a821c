"""Cutting a Piper voice in two, so that its first sound does not wait for its last.

A Piper voice is a VITS network: a text encoder, duration predictor and flow make a latent frame per
256 samples (11.6 ms), then a HiFi-GAN generator turns frames into samples. The published file does
both in one call, so that time to first sound grows with the sentence. The generator is convolutional:
a sample depends on a few frames around its own. We cut the graph between the two, run the first half
once, and the generator piece by piece with that context on either side. The outcome is the same to
within float rounding (checked by a test), and the durations inside the first half are the alignment.

The weights are not changed and nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.errors import MissingDependencyError, WeightsCorruptError, WeightsMissingError

from .onnx_session import session_of

Floats = npt.NDArray[np.float32]

_CONTEXTS = (8, 10, 12, 16, 24, 32, 48)  # frames to try on either side of a piece, smallest first


@dataclass(frozen=True, slots=True)
class Latents:
    """What the first half made of one clause. ``frames``: float32[1, channels, t]. ``durations``:
    int64[len(ids)], the latent frames each phoneme id lasts. ``conditions``: the generator's other inputs."""

    frames: Floats
    durations: npt.NDArray[np.int64]
    conditions: dict[str, Floats]

    @property
    def n_frames(self) -> int:
        return int(self.frames.shape[-1])


class PiperGraph:
    """The two halves as ONNX Runtime sessions. ``run`` on them is safe from any thread."""

    def __init__(self, model_path: Path, *, threads: int = 2, hop_samples: int = 256) -> None:
        first, second, latent, durations, conditions = _cut(model_path)
        self.hop_samples = hop_samples
        self._latent = latent
        self._outputs = [latent, durations, *conditions]
        self._conditions = conditions
        self._encoder = session_of(first, threads=threads)
        self._generator = session_of(second, threads=threads)
        self._takes_speaker = any(i.name == "sid" for i in self._encoder.get_inputs())
        self.context_frames = self._find_context()

    def encode(self, ids: list[int], scales: tuple[float, float, float], speaker: int = 0) -> Latents:
        """``ids``: phoneme ids. ``scales``: noise, length, duration noise, as in Piper's configuration."""
        feed: dict[str, Any] = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array(scales, np.float32),
        }
        if self._takes_speaker:
            feed["sid"] = np.array([speaker], np.int64)
        latent, durations, *conditions = self._encoder.run(self._outputs, feed)
        return Latents(
            latent,
            np.asarray(durations).reshape(-1).astype(np.int64),
            dict(zip(self._conditions, conditions, strict=True)),
        )

    def generate(self, latents: Latents, start: int, stop: int) -> Floats:
        """The samples of frames [start, stop): float32[(stop - start) * hop_samples], as if all frames had
        been generated in one call."""
        before = min(self.context_frames, start)
        after = min(self.context_frames, latents.n_frames - stop)
        window = latents.frames[:, :, start - before : stop + after]
        (sound,) = self._generator.run(None, {self._latent: window, **latents.conditions})
        hop = self.hop_samples
        flat: Floats = np.asarray(sound, np.float32).reshape(-1)
        return flat[before * hop : (before + stop - start) * hop]

    def _find_context(self) -> int:
        """The fewest frames of context that change nothing: 10 for the medium voices, more for the high."""
        latents = self.encode([1, 0, 2], (0.667, 1.0, 0.8))
        noise = np.random.default_rng(0).standard_normal((1, latents.frames.shape[1], 120)).astype(np.float32)
        trial = Latents(noise, latents.durations, latents.conditions)
        self.context_frames = 0
        whole = self.generate(trial, 0, 120)[55 * self.hop_samples : 65 * self.hop_samples]
        for frames in _CONTEXTS:
            self.context_frames = frames
            if float(np.abs(self.generate(trial, 55, 65) - whole).max()) < 1e-4:
                return frames
        return _CONTEXTS[-1]


def piece_edges(start: int, stop: int, first: int, largest: int) -> Iterator[tuple[int, int]]:
    """[start, stop) as pieces of ``first`` frames, then twice as many each time up to ``largest``. The
    first sound is early, and later pieces waste less on context. A short rest joins the last piece."""
    size = first
    while start < stop:
        end = start + size
        if stop - end < first:
            end = stop
        yield start, end
        start, size = end, min(size * 2, largest)


def _cut(model_path: Path) -> tuple[bytes, bytes, str, str, list[str]]:
    """(encoder, generator, latent's name, durations' name, names of the generator's other inputs)."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "local") from error
    if not model_path.is_file():
        raise WeightsMissingError(f"{model_path} is not there. Run: duplex models pull")
    try:
        model = onnx.load(str(model_path))
    except Exception as error:  # protobuf's DecodeError and its kin
        raise WeightsCorruptError(f"{model_path} is not an ONNX model. Run: duplex models pull") from error
    graph = model.graph
    known = {i.name for i in graph.initializer}
    generator = [n for n in graph.node if n.name.startswith("/dec/")]
    made = {o for n in generator for o in n.output}
    entries = list(dict.fromkeys(i for n in generator for i in n.input if i and i not in made | known))
    latent = next((n.input[0] for n in generator if n.name == "/dec/conv_pre/Conv"), None)
    ceils = [n.output[0] for n in graph.node if n.op_type == "Ceil"]
    if latent is None or latent not in entries or len(ceils) != 1:
        raise WeightsCorruptError(f"{model_path} is not a Piper voice: its generator could not be found.")
    by_output = {o: n for n in graph.node for o in n.output}
    # Constants the generator shares with the rest belong to both halves; the other inputs come from the first.
    shared = {e for e in entries if e in by_output and by_output[e].op_type == "Constant"}
    conditions = [e for e in entries if e != latent and e not in shared]
    inputs = {i.name for i in graph.input}

    def part(outputs: Iterable[str], stops: set[str], ports: list[Any]) -> bytes:
        nodes, used = _needed(by_output, list(outputs), stops)
        piece = onnx.helper.make_graph(
            [n for n in graph.node if id(n) in nodes],
            "piper",
            ports,
            [onnx.helper.make_empty_tensor_value_info(o) for o in outputs],
            [i for i in graph.initializer if i.name in used],
        )
        made_model = onnx.helper.make_model(piece, opset_imports=model.opset_import)
        made_model.ir_version = model.ir_version
        return bytes(made_model.SerializeToString())

    float_port = onnx.helper.make_tensor_value_info
    rank3 = onnx.TensorProto.FLOAT
    first = part([latent, ceils[0], *(c for c in conditions if c not in inputs)], set(), list(graph.input))
    second = part(
        [graph.output[0].name],
        {latent, *conditions},
        [float_port(name, rank3, [None, None, None]) for name in (latent, *conditions)],
    )
    return first, second, latent, ceils[0], conditions


def _needed(by_output: dict[str, Any], wanted: list[str], stops: set[str]) -> tuple[set[int], set[str]]:
    """Ids of the nodes that make ``wanted`` without going past ``stops``, and every tensor they use."""
    nodes: set[int] = set()
    used: set[str] = set()
    while wanted:
        name = wanted.pop()
        used.add(name)
        node = by_output.get(name)
        if name in stops or node is None or id(node) in nodes:
            continue
        nodes.add(id(node))
        wanted.extend(i for i in node.input if i)
    return nodes, used
