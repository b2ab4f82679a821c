"""Mimi, the codec of the Moshi family, for many calls at once: 24 kHz mono to 12.5 frames of codes a second, and back.

    encode   samples ─ convolutions ─ transformer ─ to frame rate ─ quantiser ─ codes
    decode   codes ─ entries, summed ─ to transformer's rate ─ transformer ─ transposed convolutions ─ samples

The weights and their arrangement are the moshi package's ``MimiModel`` (Défossez et al. 2024, "Moshi", section 3.3),
which loads published files unchanged; the streaming is ours. The package keeps its state inside the modules, for one
batch size, with one mask for both directions. Here it is a value (:mod:`duplex.codecs.mimi_state`), a step is a
function of it, and neither reads a number back from the device, so that a CUDA graph can be captured for each batch
size over the same state.

**How equal is equal.** Streaming computes what the package computes over the whole, for every cutting into frames
(tests/test_mimi.py): in float64 to rounding, in float32 samples to 1e-6 of full scale, and codes too unless two entries
are equally near to rounding (about one frame in a thousand with random codebooks). A slot's result does not depend on
the others in the batch, nor on where it lies. On a CPU with oneDNN and MKL it does not depend on the batch's size
either, bit for bit: no operation runs there on fewer rows than :data:`CPU_BATCH` and
:data:`~duplex.codecs.mimi_layers.MIN_CPU_ROWS`, below which those libraries take other kernels. On a GPU the kernels,
and with them the last bits, may differ between batch sizes.

**Changing the number of codebooks** in a call makes no click and needs no crossfade: what changes is the latent, and
the decoder's overlapping kernels are the crossfade. :mod:`duplex.codecs.mimi_seam` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from duplex.codec import CodecInfo, SlotCodec, SlotState
from duplex.config import validated

from .mimi_layers import MIN_CPU_ROWS, Layer, Tick, layers_of, run
from .mimi_quantizer import SlotQuantizer
from .mimi_state import Half, HalfLayout, MimiState, state_bytes
from .mimi_transformer import SlotTransformer
from .mimi_weights import MimiOptions, Model, build

__all__ = ["CPU_BATCH", "MimiCodec", "MimiState", "load", "state_bytes"]

CPU_BATCH = 2
"""Smallest batch a step runs on on a CPU. oneDNN's convolutions serve batches of two and more, torch's own a batch of
one, and their last bits differ."""


def load(options: Mapping[str, Any]) -> MimiCodec:
    """The entry point ``mimi`` of ``duplex.codecs``; options as in :class:`MimiOptions`, errors as in :func:`build`."""
    checked = validated(MimiOptions, options)
    return MimiCodec(build(checked), checked.codebooks)


class MimiCodec(SlotCodec):
    """Over a ``MimiModel``, whose parameters it uses where they are and whose own
    streaming it leaves alone. Wrong shapes raise ``ValueError`` with both shapes."""

    def __init__(self, model: Model, codebooks: int) -> None:
        self.model = model
        parameter = next(model.encoder.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._info = CodecInfo("mimi", model.sample_rate, model.frame_size, codebooks, model.cardinality)
        self._steps_per_frame: int = round(model.encoder_frame_rate / model.frame_rate)
        self._quantizer = SlotQuantizer(model.quantizer, codebooks)

        resampled = self._steps_per_frame > 1
        up: list[tuple[int, int]] = []
        down: list[tuple[int, int]] = []
        self._encoder: list[Layer] = layers_of(model.encoder, up)
        self._to_frames: list[Layer] = layers_of(model.downsample, up) if resampled else []
        self._from_frames: list[Layer] = layers_of(model.upsample, down) if resampled else []
        self._decoder: list[Layer] = layers_of(model.decoder, down)
        self._encoder_transformer = SlotTransformer(model.encoder_transformer, self._steps_per_frame)
        self._decoder_transformer = SlotTransformer(model.decoder_transformer, self._steps_per_frame)
        self._layouts = (_layout(up, self._encoder_transformer), _layout(down, self._decoder_transformer))

    @property
    def info(self) -> CodecInfo:
        return self._info

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of state that each slot takes on the device."""
        value = torch.empty((), dtype=self.dtype).element_size()
        return sum(
            value * (layout.starts[-1] + layout.n_layers * 2 * layout.n_heads * layout.ring * layout.head_dim) + 8
            for layout in self._layouts
        )

    @property
    def weight_bytes(self) -> int:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def frames_at_once(self) -> int:
        """The most frames of one slot that are computed side by side; more of them are cut up."""
        steps = min(self._encoder_transformer.max_steps, self._decoder_transformer.max_steps)
        return steps // self._steps_per_frame

    def new_state(self, n_slots: int) -> MimiState:
        min_rows = max(CPU_BATCH, -(-MIN_CPU_ROWS // self._steps_per_frame)) if self.device.type == "cpu" else 1
        return MimiState.new(*self._layouts, n_slots, self.device, self.dtype, min_rows)

    def encode(self, state: SlotState, samples: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        return self.encode_frames(state, samples, active)[:, 0]

    def decode(
        self, state: SlotState, codes: torch.Tensor, active: torch.Tensor, n_codebooks: torch.Tensor
    ) -> torch.Tensor:
        return self.decode_frames(state, codes[:, None], active, n_codebooks)

    @torch.no_grad()
    def encode_frames(self, state: SlotState, samples: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """float32[n, frames · frame_samples] to int64[n, frames, codebooks], any number of whole frames."""
        state = self._own(state)
        n, frame = state.n_slots, self._info.frame_samples
        if samples.dim() != 2 or len(samples) != n or not samples.shape[1] or samples.shape[1] % frame:
            raise ValueError(f"samples are {tuple(samples.shape)}, not [{n}, a multiple of {frame}]")
        samples, active = _rows(samples, state.encoder), _rows(_mask(active, n), state.encoder)
        chunks = torch.split(samples[:, None].to(self.dtype), frame * self.frames_at_once, dim=-1)
        return torch.cat([self._encode(state.encoder, chunk, active) for chunk in chunks], dim=1)[:n]

    @torch.no_grad()
    def decode_frames(
        self, state: SlotState, codes: torch.Tensor, active: torch.Tensor, n_codebooks: torch.Tensor
    ) -> torch.Tensor:
        """int64[n, frames, codebooks] to float32[n, frames · frame_samples]; ``n_codebooks`` int64[n]."""
        state = self._own(state)
        n, wanted = state.n_slots, self._info.codebooks
        if codes.dim() != 3 or len(codes) != n or not codes.shape[1] or codes.shape[2] != wanted:
            raise ValueError(f"codes are {tuple(codes.shape)}, not [{n}, frames, {wanted}]")
        if n_codebooks.shape != (n,):
            raise ValueError(f"n_codebooks is {tuple(n_codebooks.shape)}, not [{n}]")
        codes, active = _rows(codes, state.decoder), _rows(_mask(active, n), state.decoder)
        n_codebooks = _rows(n_codebooks, state.decoder)
        chunks = torch.split(codes.transpose(1, 2), self.frames_at_once, dim=-1)
        return torch.cat([self._decode(state.decoder, chunk, active, n_codebooks) for chunk in chunks], dim=-1)[:n]

    def _own(self, state: SlotState) -> MimiState:
        if not isinstance(state, MimiState) or (state.encoder.layout, state.decoder.layout) != self._layouts:
            raise ValueError("the state is another codec's; new_state makes one")
        return state

    def _encode(self, half: Half, samples: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        tick = Tick(half, active[:, None, None], (half.position == 0)[:, None, None])
        latent = run(self._encoder, samples, tick)
        latent = self._encoder_transformer(latent, half, active)
        latent = run(self._to_frames, latent, tick)
        return self._quantizer.encode(latent.to(self._quantizer.dtype)).transpose(1, 2)

    def _decode(self, half: Half, codes: torch.Tensor, active: torch.Tensor, n_codebooks: torch.Tensor) -> torch.Tensor:
        tick = Tick(half, active[:, None, None], (half.position == 0)[:, None, None])
        latent = self._quantizer.decode(codes, n_codebooks).to(self.dtype)
        latent = run(self._from_frames, latent, tick)
        latent = self._decoder_transformer(latent, half, active)
        return run(self._decoder, latent, tick)[:, 0].float()


def _layout(windows: list[tuple[int, int]], transformer: SlotTransformer) -> HalfLayout:
    return HalfLayout(tuple(windows), transformer.n_layers, transformer.n_heads, transformer.ring, transformer.head_dim)


def _mask(active: torch.Tensor, n: int) -> torch.Tensor:
    if active.shape != (n,) or active.dtype != torch.bool:
        raise ValueError(f"active is {active.dtype} {tuple(active.shape)}, not bool[{n}]")
    return active


def _rows(x: torch.Tensor, half: Half) -> torch.Tensor:
    """With zeros below, as many rows as the half has: what a spare row is given; as a mask, that it is not active."""
    missing = len(half.position) - len(x)
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x
