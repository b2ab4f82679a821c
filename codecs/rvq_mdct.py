"""A small speech codec of our own: a lapped transform and a residual quantiser, nothing learned but the codebooks.

    encode   20 ms of samples ─ MDCT ─ weights ─ residual quantiser ─ codes
    decode   entries, summed ─ weights undone ─ inverse MDCT, overlapped ─ samples, 20 ms late

It is what the quantiser's own measurements run on where there is no Mimi (``duplex bench bitrate``), and an example of
a :class:`duplex.codec.SlotCodec` in one page. **It is not Mimi**, nor near it at the same rate: no network models
speech here, a frame is coded without its past, and what it reproduces is the waveform. With 256 entries a codebook
costs 400 bit/s.

The transform (Princen and Bradley, 1986) is orthonormal under its sine window, so without quantisation it gives the
samples back exactly, and an error in coefficients is as large in samples. The weights shape the error: coefficient k is
divided by the power ``shaping`` / 2 of its mean energy before it is quantised, so that quiet (high) frequencies get
their share of the bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from duplex.codec import CodecInfo, SlotState
from duplex.codecs.rvq import Rvq, RvqConfig
from duplex.codecs.rvq_checkpoint import config_of, fill, read_tensors, write_tensors
from duplex.codecs.rvq_training import RvqTrainer, TrainingOptions, initialise
from duplex.config import Settings, validated
from duplex.errors import ConfigError
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ

FORMAT = "duplex-rvq-mdct"
FRAME_SAMPLES = PACKET_SAMPLES


class RvqMdctOptions(Settings):
    """Options of the codec as an agent's codec: ``weights`` is a file that :meth:`RvqMdctCodec.save` wrote."""

    weights: Path
    device: str = "cpu"


class MdctTraining(Settings):
    """How the codebooks are learned from recordings. A step sees ``batch`` frames at random places, each turned upside
    down or not and at a random level, so that minutes of speech go a long way."""

    codebooks: int = Field(32, ge=1, le=64)
    codebook_size: int = Field(256, ge=2)
    shaping: float = Field(
        0.25, ge=0, le=1, description="0: the least squared error; 1: the same error in each coefficient"
    )
    steps: int = Field(10, ge=0)
    batch: int = Field(4096, ge=1)
    first_batch: int = Field(16_384, ge=1, description="frames that k-means starts the codebooks from")
    level_range_db: float = Field(12.0, ge=0)
    seed: int = Field(0, ge=0)


class RvqMdctState:
    """What the transform overlaps, by slot: ``encoder`` and ``decoder``, float32[slot, frame_samples] each."""

    def __init__(self, encoder: Tensor, decoder: Tensor) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self._views: dict[int, RvqMdctState] = {len(encoder): self}

    def tensors(self) -> Mapping[str, Tensor]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def first(self, n_slots: int) -> RvqMdctState:
        if not 1 <= n_slots <= len(self.encoder):
            raise ValueError(f"there are {len(self.encoder)} slots here, not {n_slots}")
        if n_slots not in self._views:
            self._views[n_slots] = RvqMdctState(self.encoder[:n_slots], self.decoder[:n_slots])
        return self._views[n_slots]

    def reset(self, slot: int) -> None:
        self.encoder[slot].zero_()
        self.decoder[slot].zero_()


class RvqMdctCodec:
    """``rvq`` has ``input_dim`` coefficients a frame; ``weights`` float32[input_dim] multiply them before it."""

    def __init__(self, rvq: Rvq, weights: Tensor) -> None:
        if rvq.config.input_dim != FRAME_SAMPLES or weights.shape != (FRAME_SAMPLES,):
            raise ConfigError(
                f"This codec's frame has {FRAME_SAMPLES} coefficients; the quantiser takes {rvq.config.input_dim}, "
                f"and there are weights for {tuple(weights.shape)}."
            )
        self.rvq = rvq.eval().requires_grad_(False)
        self.weights = weights
        self._transform = mdct_matrix(FRAME_SAMPLES).to(weights.device)
        self._info = CodecInfo(
            "rvq-mdct", SAMPLE_RATE_HZ, FRAME_SAMPLES, rvq.config.codebooks, rvq.config.codebook_size
        )

    @property
    def info(self) -> CodecInfo:
        return self._info

    @property
    def delay_samples(self) -> int:
        """How late :meth:`decode` is: a frame's second half is whole only when the next one overlaps it."""
        return FRAME_SAMPLES

    def new_state(self, n_slots: int) -> RvqMdctState:
        shape = (n_slots, FRAME_SAMPLES)
        device = self.weights.device
        return RvqMdctState(torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    @torch.no_grad()
    def encode(self, state: SlotState, samples: Tensor, active: Tensor) -> Tensor:
        assert isinstance(state, RvqMdctState)
        window = torch.cat([state.encoder, samples], dim=1)
        state.encoder.copy_(torch.where(active[:, None], samples, state.encoder))
        coefficients = window @ self._transform.t() * self.weights
        return self.rvq.encode(coefficients[..., None])[..., 0]

    @torch.no_grad()
    def decode(self, state: SlotState, codes: Tensor, active: Tensor, n_codebooks: Tensor) -> Tensor:
        assert isinstance(state, RvqMdctState)
        coefficients = self.rvq.decode(codes[..., None], n_codebooks)[..., 0] / self.weights
        window = coefficients @ self._transform
        samples = state.decoder + window[:, :FRAME_SAMPLES]
        state.decoder.copy_(torch.where(active[:, None], window[:, FRAME_SAMPLES:], state.decoder))
        return samples

    def save(self, path: Path) -> None:
        """Writes the codec; the file is there whole, or as it was before."""
        tensors = {**self.rvq.state_dict(), "weights": self.weights}
        write_tensors(path, FORMAT, tensors, {"config": self.rvq.config.model_dump_json()})

    @staticmethod
    def read(path: Path, device: str = "cpu") -> RvqMdctCodec:
        """Raises ``WeightsMissingError``, ``WeightsCorruptError`` or ``ConfigError``, each naming the file."""
        tensors, metadata = read_tensors(path, FORMAT)
        rvq = Rvq(config_of(metadata, path))
        fill(rvq, tensors, path)
        weights = tensors.get("weights", torch.empty(0))
        return RvqMdctCodec(rvq.to(device), weights.to(device))


def load(options: Mapping[str, Any]) -> RvqMdctCodec:
    """The entry point ``rvq-mdct`` of ``duplex.codecs``; options as in :class:`RvqMdctOptions`."""
    checked = validated(RvqMdctOptions, options)
    return RvqMdctCodec.read(checked.weights, checked.device)


def mdct_matrix(n: int) -> Tensor:
    """float32[n, 2n]: 2n windowed samples to n coefficients; its transpose goes back, halves overlapped and added."""
    time = torch.arange(2 * n, dtype=torch.float64)
    frequency = torch.arange(n, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * n) * (time + 0.5))
    phase = math.pi / n * torch.outer(frequency + 0.5, time + 0.5 + n / 2)
    return (math.sqrt(2.0 / n) * window * phase.cos()).float()


def train(sound: Sequence[Tensor], options: MdctTraining | None = None) -> RvqMdctCodec:
    """Learns the codebooks from recordings, float32[n] each at 24 kHz. Takes half a minute on a CPU core.

    Depends on the recordings, the options and nothing else. Raises ``ConfigError`` for recordings shorter than a frame.
    """
    options = options or MdctTraining()
    long_enough = [samples for samples in sound if len(samples) > 2 * FRAME_SAMPLES]
    if not long_enough:
        raise ConfigError(f"There is no recording of more than {2 * FRAME_SAMPLES} samples to learn codebooks from.")
    joined = torch.cat(long_enough)
    generator = torch.Generator().manual_seed(options.seed)
    transform = mdct_matrix(FRAME_SAMPLES)

    def batch(n: int) -> Tensor:
        starts = torch.randint(0, len(joined) - 2 * FRAME_SAMPLES + 1, (n,), generator=generator)
        windows = joined.unfold(0, 2 * FRAME_SAMPLES, 1)[starts]
        level_db = (torch.rand(n, 1, generator=generator) - 0.5) * options.level_range_db
        sign = torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1.0
        return windows @ transform.t() * sign * 10.0 ** (level_db / 20.0)

    first = batch(max(options.first_batch, options.codebook_size))
    energy = first.square().mean(dim=0)
    weights = (energy + 1e-4 * energy.mean()).pow(-options.shaping / 2.0)
    rvq = Rvq(
        RvqConfig(
            input_dim=FRAME_SAMPLES,
            dim=FRAME_SAMPLES,
            codebooks=options.codebooks,
            codebook_size=options.codebook_size,
        )
    )
    initialise(rvq, (first * weights).t()[None], seed=options.seed, iterations=8)
    # Every frame passes all codebooks: the encoder is fixed, so dropout could change nothing but the data they see.
    trainer = RvqTrainer(rvq, TrainingOptions(decay=0.9, dropout_share=0.0), seed=options.seed)
    for _ in range(options.steps):
        trainer.step((batch(options.batch) * weights)[..., None])
    return RvqMdctCodec(rvq, weights)
