"""Runs Full-Duplex-Bench's samples through a server: each is one call, streamed in real time.

The output is what a listener heard while the input was spoken: sample k of ``output.wav`` was heard when sample k of
``input.wav`` left the microphone. So it is as long as the input, at its rate, and includes the client's playout delay.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr

from duplex import __version__
from duplex.benchmarks.fdb_layout import Sample, SampleError, is_answered, read_json, read_sound
from duplex.benchmarks.fdb_words import MADE_BY, write_text
from duplex.errors import AgentFullError, DuplexError, TransportError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Recording, Span, voiced_spans

_LEAD_MS = 300.0  # the line is up and quiet before the file begins
_TAIL_MS = 200.0  # what was sent at the very end is still on its way
_TRIES = 5
_BUSY_MS = 40.0  # our own packets left this late: the sample's times are no better than that


class FileCall(Protocol):
    """The part of :class:`duplex.benchmarks.turns.contract.Call` that is needed here."""

    async def play(self, samples: Samples) -> Span: ...

    async def wait_ms(self, duration_ms: float) -> None: ...

    def recording(self) -> Recording: ...


OpenCall = Callable[[], AbstractAsyncContextManager[FileCall]]


@dataclass(slots=True)
class RunFindings:
    """What came of a run."""

    done: int = 0
    passed_over: int = 0
    errors: list[DuplexError] = field(default_factory=list)
    busy: list[Sample] = field(default_factory=list)
    """Samples during which this machine was too busy to send in time."""


async def run_samples(
    samples: Sequence[Sample],
    open_call: OpenCall,
    *,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> RunFindings:
    """Calls once for each sample that has no output yet (or, with ``force``, for each), one after another.

    ``about`` goes into each events file. A sample that fails is kept as an error and the others go on; a server that
    is not there at all ends the run: ``TransportError``.
    """
    findings = RunFindings()
    for number, sample in enumerate(samples, 1):
        head = f"[{number}/{len(samples)}] {sample}"
        if not force and is_answered(sample):
            findings.passed_over += 1
            continue
        try:
            recording = await _run_one(sample, open_call, dict(about or {}))
        except SampleError as error:
            findings.errors.append(error)
            tell(f"{head}: {error}")
            continue
        except (TransportError, AgentFullError) as error:
            if not findings.done:
                raise
            findings.errors.append(SampleError(sample.input, f"the call failed: {error}"))
            tell(f"{head}: {error}")
            continue
        findings.done += 1
        if recording.wire.send_late_ms > _BUSY_MS:
            findings.busy.append(sample)
        spoken_s = sum(span.end_ms - span.start_ms for span in voiced_spans(recording.agent)) / 1000.0
        tell(f"{head}: {recording.duration_ms / 1000.0:.1f} s, the agent spoke for {spoken_s:.1f} s")
    return findings


async def _run_one(sample: Sample, open_call: OpenCall, about: dict[str, Any]) -> Recording:
    """One call; writes the output, and returns the stretch of its recording that is the sample."""
    sound, rate = await asyncio.to_thread(read_sound, sample.input)
    said = sound if rate == SAMPLE_RATE_HZ else soxr.resample(sound, rate, SAMPLE_RATE_HZ).astype(np.float32)
    for attempt in range(_TRIES):
        try:
            async with open_call() as call:
                await call.wait_ms(_LEAD_MS)
                span = await call.play(said)
                await call.wait_ms(_TAIL_MS)
                whole = call.recording()
            break
        except AgentFullError as error:
            if attempt == _TRIES - 1:
                raise
            await asyncio.sleep(error.retry_after_s)
    part = aligned(whole, span, len(sound), rate)
    heard = part.agent if rate == SAMPLE_RATE_HZ else soxr.resample(part.agent, SAMPLE_RATE_HZ, rate)
    await asyncio.to_thread(_write, sample, _exactly(heard, len(sound)), rate, part, about)
    return part


def aligned(whole: Recording, span: Span, n_input: int, input_rate_hz: int) -> Recording:
    """The stretch of ``whole`` during which the input was spoken, exactly as long; events on its own time line."""
    first = round(span.start_ms * whole.sample_rate_hz / 1000.0)
    length = round(n_input * whole.sample_rate_hz / input_rate_hz)
    stereo = whole.stereo[first : first + length]
    stereo = np.pad(stereo, ((0, length - len(stereo)), (0, 0)))
    end_ms = span.start_ms + n_input * 1000.0 / input_rate_hz
    events = tuple(
        type(recorded)(recorded.at_ms - span.start_ms, recorded.event)
        for recorded in whole.events
        if recorded.at_ms <= end_ms
    )
    return Recording(stereo, whole.playout_ms, events, whole.wire, whole.events_dropped, whole.sample_rate_hz)


def _exactly(samples: Samples, n: int) -> Samples:
    """Resampling may round the last sample away."""
    return np.pad(samples[:n], (0, max(0, n - len(samples)))).astype(np.float32)


def _write(sample: Sample, heard: Samples, rate_hz: int, part: Recording, about: dict[str, Any]) -> None:
    """The events, then the sound: the sound's being there says that the sample is done."""
    _forget_derived(sample)
    head = {
        "input": sample.input.name,
        "duplex": __version__,
        **about,
        "playout_ms": part.playout_ms,
        "wire": asdict(part.wire),
    }
    lines = [json.dumps(head)]
    lines += [json.dumps({"at_ms": round(each.at_ms, 1), **_small(each.event)}, default=str) for each in part.events]
    write_text(sample.events, "\n".join(lines) + "\n")
    partial = sample.output.with_name(f".{sample.output.name}.part")
    soundfile.write(partial, heard, rate_hz, format="WAV", subtype="PCM_16")
    os.replace(partial, sample.output)


def _forget_derived(sample: Sample) -> None:
    """A transcript and timings of an earlier output would be scored as if they were this one's.

    A transcript that somebody else's recogniser made is moved aside, not lost.
    """
    sample.intervals.unlink(missing_ok=True)
    if not sample.words.exists():
        return
    try:
        found = read_json(sample.words)
    except SampleError:
        found = None
    if isinstance(found, dict) and found.get("made_by") == MADE_BY:
        sample.words.unlink()
    else:
        os.replace(sample.words, sample.words.with_suffix(".json.old"))


def _small(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sound is in the sound file."""
    return {**event, "delta": ""} if event.get("type") == "response.output_audio.delta" else event
