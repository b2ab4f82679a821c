"""What a part's precision costs, measured: against the same model in float32, one part at a time.

A backbone in float32 speaks greedily to random user codes through the package's own generator. Then each candidate is
given that same history (teacher forcing) and asked for its logits at every step, so that one different token does not
become a different conversation. The codec is measured on sound. For random weights the numbers say how rounding
travels through the shape; what it does to speech is told by the same function on real weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from duplex.codec import SlotCodec
from duplex.thinker_talker.native.model.kv_cache import KvLayout, pack, unpack

from .package import moshi_loaders
from .precision import DTYPES, Format, Part, Precision, apply_precision, weight_bytes

CANDIDATES: Sequence[tuple[Part, Format]] = (
    *(("temporal", "bfloat16"), ("temporal", "int8")),
    *(("depth", "bfloat16"), ("depth", "int8")),
    *(("kv", "bfloat16"), ("kv", "int8")),
)


@dataclass(frozen=True, slots=True)
class PartError:
    """One part in one format against float32.

    ``worst`` and ``mean``: of the difference of logits, over the root mean square of float32's; ``text_agrees`` and
    ``audio_agrees``: shares of ``steps`` (times codebooks) in which the greedy token is the same. For the codec: the
    difference of decoded sound, and the share of codes. ``bytes``: of the part's weights, or of a slot's cache.
    """

    part: Part
    format: Format
    worst: float
    mean: float
    text_agrees: float
    audio_agrees: float
    bytes: int
    float32_bytes: int
    steps: int


@torch.no_grad()
def measure(
    model: Any, *, steps: int = 64, seed: int = 0, candidates: Sequence[tuple[Part, Format]] = CANDIDATES
) -> list[PartError]:
    """Of a backbone (the package's LMModel in float32), which is left as it is. Needs memory for it twice."""
    codes = greedy_history(model, steps, seed)
    text, audio = _logits(model, codes)
    errors = []
    for part, kind in candidates:
        if part == "kv":
            with _kept_as(model, kind):
                got = _logits(model, codes)
            n_bytes, full_bytes = _kv_bytes(model, kind), _kv_bytes(model, "float32")
        else:
            # What is no linear stays float32 in an int8 part: int8 is measured, and nothing else.
            candidate = copy.deepcopy(model)
            apply_precision(candidate, Precision.model_validate({part: kind}))
            got = _logits(candidate, codes)
            n_bytes, full_bytes = weight_bytes(candidate)[part], weight_bytes(model)[part]
            del candidate
        worst, mean = _difference((text, audio), got)
        errors.append(
            PartError(
                part=part,
                format=kind,
                worst=worst,
                mean=mean,
                text_agrees=_agreement(text, got[0]),
                audio_agrees=_agreement(audio, got[1]),
                bytes=n_bytes,
                float32_bytes=full_bytes,
                steps=steps,
            )
        )
    return errors


@torch.no_grad()
def greedy_history(model: Any, steps: int, seed: int) -> torch.Tensor:
    """int64[1, 1 + n_q, steps]: what the model says to random codes, greedily; all streams, their delays undone."""
    moshi_loaders()
    from moshi.models.lm import LMGen

    generator = torch.Generator().manual_seed(seed)
    n_user, delay = model.n_q - model.dep_q, max(model.delays)
    user = torch.randint(0, model.card, (1, n_user, steps + delay + 1), generator=generator).to(model.device)
    said = []
    stock = LMGen(model, use_sampling=False)
    with stock.streaming(1):
        for at in range(steps + delay):
            out = stock.step(user[:, :, at : at + 1])
            if out is not None:
                said.append(out)
    # The generator has its first input replaced by the initial token: what it says at step t follows on input t.
    agent = torch.cat(said, dim=2)[:, :, :steps]
    return torch.cat([agent, user[:, :, 1 : steps + 1]], dim=1)


def _logits(model: Any, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 ``[steps, text_card]`` and ``[steps * dep_q, card]``, without the steps that the delays cut off."""
    out = model(codes)
    return out.text_logits[out.text_mask].float(), out.logits[out.mask].float()


def _difference(
    wanted: tuple[torch.Tensor, torch.Tensor], got: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    worst, total, count = 0.0, 0.0, 0
    for a, b in zip(wanted, got, strict=True):
        off = (a - b).abs() / a.pow(2).mean().sqrt()
        worst, total, count = max(worst, off.max().item()), total + off.sum().item(), count + off.numel()
    return worst, total / count


def _agreement(wanted: torch.Tensor, got: torch.Tensor) -> float:
    return (wanted.argmax(-1) == got.argmax(-1)).float().mean().item()


@contextmanager
def _kept_as(model: Any, kind: Format) -> Iterator[None]:
    """Keys and values of the temporal transformer as a cache of ``kind`` would give them back."""
    stored = torch.int8 if kind == "int8" else DTYPES[kind]
    attentions = [layer.self_attn for layer in model.transformer.layers]

    def keeping(complete: Any) -> Any:
        def kept(keys: torch.Tensor, values: torch.Tensor) -> Any:
            back = (unpack(*pack(x, stored), x.dtype) for x in (keys, values))
            return complete(*back)

        return kept

    try:
        for attention in attentions:
            attention._complete_kv = keeping(attention._complete_kv)
        yield
    finally:
        for attention in attentions:
            del attention._complete_kv  # the instance's; the class's is there again


def _kv_bytes(model: Any, kind: Format) -> int:
    attention = model.transformer.layers[0].self_attn
    heads = attention.num_heads // attention.kv_repeat
    dim = attention.embed_dim // attention.num_heads
    stored = torch.int8 if kind == "int8" else DTYPES[kind]
    return len(model.transformer.layers) * KvLayout(model.context, 0, heads, dim, stored).bytes_per_slot


@torch.no_grad()
def measure_codec(reference: SlotCodec, other: SlotCodec, kind: Format, samples: torch.Tensor) -> PartError:
    """``reference`` in float32 and ``other`` on ``samples`` float32[n] at their rate: codes they agree in, and what
    each decodes from the reference's codes."""
    info = reference.info
    frames = samples[: len(samples) // info.frame_samples * info.frame_samples].view(-1, 1, info.frame_samples)
    state, other_state = reference.new_state(1), other.new_state(1)
    active = torch.ones(1, dtype=torch.bool, device=samples.device)
    every = torch.full((1,), info.codebooks, dtype=torch.int64, device=samples.device)
    agree, off, power, worst = 0.0, 0.0, 0.0, 0.0
    for frame in frames:
        codes, others = reference.encode(state, frame, active), other.encode(other_state, frame, active)
        sound = reference.decode(state, codes, active, every).float()
        difference = (other.decode(other_state, codes, active, every).float() - sound).abs()
        agree += (codes == others).float().mean().item()
        off, power = off + difference.mean().item(), power + sound.pow(2).mean().item()
        worst = max(worst, difference.max().item())
    count = len(frames)
    level = (power / count) ** 0.5
    return PartError(
        part="codec",
        format=kind,
        worst=worst / level,
        mean=off / count / level,
        text_agrees=1.0,
        audio_agrees=agree / count,
        bytes=int(getattr(other, "weight_bytes", 0)),
        float32_bytes=int(getattr(reference, "weight_bytes", 0)),
        steps=count,
    )


def as_table(errors: Sequence[PartError]) -> str:
    """For a person; every line one part in one format."""
    lines = ["part      format    worst    mean     text   audio  bytes            of float32"]
    lines += [
        f"{e.part:9} {e.format:9} {e.worst:<8.2g} {e.mean:<8.2g} {e.text_agrees:<6.1%} {e.audio_agrees:<6.1%} "
        f"{e.bytes:<16,} {e.bytes / e.float32_bytes if e.float32_bytes else 1:.0%}"
        for e in errors
    ]
    return "\n".join(lines)
