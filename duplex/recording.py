"""A call as stereo sound and events, and what can be measured on it.

Pure: numpy arrays and numbers in, numbers out. The client records with it, and `duplex call`, the
benchmarks and the tests measure with the same rules, so a figure means the same thing everywhere.

Rules of measurement
--------------------
Sound is cut into windows of 10 ms. A window is *audible* if its RMS is at least −40 dBFS (full scale is
a square wave at ±1, as in AES17 without its +3 dB). A *voiced* stretch is a run of at least three audible
windows, so a click is not speech. The *first voiced sample* is the first sample of the first such run; the
*last voiced sample* is the last sample of the last one. The agent *starts* where an audible window opens
100 ms of which at least 80 are audible, and *stops* at the end of the last audible window before 300 ms
without any. From a start to the next stop is an *utterance*. ``docs/measuring.md`` says which figure is made
of which of these.

Everything is placed on one time line that starts with the recording, in milliseconds.

 - Left is the user: a packet's samples lie where a microphone would have picked them up, so the packet
   leaves when its last sample has been spoken.
 - Right is the agent, as heard by someone whose player waits a fixed, declared ``playout_ms`` at the start
   of each stretch of speech and never longer: see :func:`play_out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.frames import SAMPLE_RATE_HZ, Samples

WINDOW_MS = 10
AUDIBLE_DBFS = -40.0
VOICED_MS = 30
START_MS, START_AUDIBLE_MS = 100, 80
STOP_MS = 300
_FLOOR_DBFS = -120.0
_FRESH_START_S = 0.1  # later than this by the player's clock: the sender paused without counting on

Stereo = npt.NDArray[np.float32]
"""float32[n, 2] in [-1, 1]: user left, agent right."""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event from the server. ``at_ms``: when the client received it, on the recording's time line."""

    at_ms: float
    event: Mapping[str, Any]

    @property
    def type(self) -> str:
        return str(self.event.get("type", ""))


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording's time line, in milliseconds."""

    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class WireStats:
    """How the call went on the wire, as the client saw it.

    ``late``: arrived after its moment, so the listener heard a gap of ``stalled_ms`` in total.
    ``out_of_order``: arrived after its successor and was not used. ``send_late_ms``: the longest that one
    of our own packets left after its moment; large values mean that this machine was too busy to measure.
    """

    received: int = 0
    lost: int = 0
    late: int = 0
    out_of_order: int = 0
    stalled_ms: float = 0.0
    send_late_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Recording:
    """One call. ``playout_ms``: the listener's delay included in the right channel."""

    stereo: Stereo
    playout_ms: float
    events: tuple[RecordedEvent, ...] = ()
    wire: WireStats = field(default_factory=WireStats)
    events_dropped: int = 0
    sample_rate_hz: int = SAMPLE_RATE_HZ

    @property
    def user(self) -> Samples:
        return self.stereo[:, 0]

    @property
    def agent(self) -> Samples:
        return self.stereo[:, 1]

    @property
    def duration_ms(self) -> float:
        return len(self.stereo) * 1000.0 / self.sample_rate_hz

    def between(self, start_ms: float, end_ms: float) -> Recording:
        """A part of the call as a recording of its own, whose time line begins at ``start_ms``.

        What is counted for the whole call (``wire``, ``events_dropped``) stays as it is.
        """
        start_ms = max(0.0, start_ms)
        first, last = (round(max(0.0, ms) * self.sample_rate_hz / 1000.0) for ms in (start_ms, end_ms))
        events = tuple(
            RecordedEvent(recorded.at_ms - start_ms, recorded.event)
            for recorded in self.events
            if start_ms <= recorded.at_ms < end_ms
        )
        return replace(self, stereo=self.stereo[first : max(first, last)], events=events)


# --- what the listener heard ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """One decoded packet: int16[n], received at wall time ``at_s``.

    ``sequence`` and ``timestamp`` are RTP's, unwrapped; the timestamp counts samples.
    """

    at_s: float
    sequence: int
    timestamp: int
    samples: npt.NDArray[np.int16]


def play_out(
    arrivals: Sequence[Arrival], *, rate_hz: int, origin_s: float, n_samples: int, playout_s: float
) -> tuple[Samples, WireStats]:
    """What a listener with a fixed playout delay heard: float32[n_samples] at ``rate_hz`` from ``origin_s``.

    Theory of operation: packets play at ``offset + timestamp``. A stretch of speech sets the offset so that
    its first packet plays ``playout_s`` after it arrived. A packet that comes after its moment plays at
    once, which is heard as a gap and moves the offset back; silent packets let it catch up. A stretch
    begins where timestamps jump and sequence numbers do not, which is how a sender pauses; where both jump,
    packets were lost, and silence stands in for them.
    """
    out = np.zeros(n_samples, dtype=np.float32)
    offset: int | None = None  # in samples
    expected = arrivals[0] if arrivals else None
    next_sequence = expected.sequence if expected else 0
    next_timestamp = expected.timestamp if expected else 0
    playout, fresh_start = round(playout_s * rate_hz), round(_FRESH_START_S * rate_hz)
    cursor = received = lost = late = out_of_order = stalled = 0
    for packet in arrivals:
        received += 1
        if packet.sequence < next_sequence:
            out_of_order += 1
            continue
        arrived = round((packet.at_s - origin_s) * rate_hz)
        paused = packet.timestamp != next_timestamp and packet.sequence == next_sequence
        lost += packet.sequence - next_sequence
        next_sequence, next_timestamp = packet.sequence + 1, packet.timestamp + len(packet.samples)
        if offset is None or paused:
            offset = arrived + playout - packet.timestamp
        lateness = arrived - (offset + packet.timestamp)
        if lateness > fresh_start:
            offset = arrived + playout - packet.timestamp
        elif lateness > 0:
            late, stalled = late + 1, stalled + lateness
            offset = arrived - packet.timestamp
        elif -lateness > playout and not _is_audible(packet.samples):
            offset -= min(-lateness - playout, len(packet.samples))
        start = offset + packet.timestamp
        skip = max(0, cursor - start)
        kept = packet.samples[skip : max(skip, n_samples - start)]
        if start + skip < 0 or not len(kept):
            continue
        cursor = start + skip + len(kept)
        out[start + skip : cursor] = kept.astype(np.float32) / 32768.0
    stats = WireStats(received, max(0, lost - out_of_order), late, out_of_order, stalled * 1000.0 / rate_hz)
    return out, stats


def _is_audible(samples: npt.NDArray[np.int16]) -> bool:
    return level_dbfs(samples.astype(np.float32) / 32768.0) >= AUDIBLE_DBFS


# --- levels ----------------------------------------------------------------------------------------


def level_dbfs(samples: Samples) -> float:
    """RMS of the whole array, in dB below full scale; −120 for silence or nothing."""
    if not len(samples):
        return _FLOOR_DBFS
    mean_square = float(np.mean(np.square(samples, dtype=np.float64)))
    return max(_FLOOR_DBFS, 10.0 * np.log10(mean_square)) if mean_square > 0 else _FLOOR_DBFS


def window_levels_dbfs(samples: Samples, rate_hz: int = SAMPLE_RATE_HZ) -> npt.NDArray[np.float64]:
    """RMS of each whole 10 ms window, dBFS: float64[floor(n / window)]."""
    window = rate_hz * WINDOW_MS // 1000
    count = len(samples) // window
    squares = np.square(samples[: count * window], dtype=np.float64).reshape(count, window)
    levels: npt.NDArray[np.float64] = 10.0 * np.log10(np.maximum(squares.mean(axis=1), 1e-12))
    return levels


def voiced_spans(samples: Samples, rate_hz: int = SAMPLE_RATE_HZ, *, bridge_ms: float = 0.0) -> list[Span]:
    """Voiced stretches in order; gaps shorter than ``bridge_ms`` are closed."""
    spans: list[Span] = []
    for start, end in _runs(window_levels_dbfs(samples, rate_hz) >= AUDIBLE_DBFS):
        if (end - start) * WINDOW_MS < VOICED_MS:
            continue
        if spans and start * WINDOW_MS - spans[-1].end_ms < bridge_ms:
            spans[-1] = Span(spans[-1].start_ms, float(end * WINDOW_MS))
        else:
            spans.append(Span(float(start * WINDOW_MS), float(end * WINDOW_MS)))
    return spans


def voiced_extent(samples: Samples, rate_hz: int = SAMPLE_RATE_HZ) -> Span | None:
    """From the first voiced sample to the last one; None if nothing is voiced."""
    spans = voiced_spans(samples, rate_hz)
    return Span(spans[0].start_ms, spans[-1].end_ms) if spans else None


def voiced_level_dbfs(samples: Samples, rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Level of the speech alone: RMS over the windows within 20 dB of the loudest one."""
    levels = window_levels_dbfs(samples, rate_hz)
    if not len(levels) or levels.max() <= _FLOOR_DBFS:
        return _FLOOR_DBFS
    return float(10.0 * np.log10(np.mean(10.0 ** (levels[levels >= levels.max() - 20.0] / 10.0))))


def normalised(samples: Samples, target_dbfs: float = -20.0, rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """The same sound with its speech at ``target_dbfs``, never clipped: float32."""
    level = voiced_level_dbfs(samples, rate_hz)
    if level <= _FLOOR_DBFS:
        return samples
    gain = 10.0 ** ((target_dbfs - level) / 20.0)
    peak = float(np.max(np.abs(samples))) * gain
    louder: Samples = (samples * (gain / max(1.0, peak / 0.99))).astype(np.float32)
    return louder


# --- the moments that latencies are made of ----------------------------------------------------------


def audible_windows(samples: Samples, rate_hz: int = SAMPLE_RATE_HZ) -> npt.NDArray[np.bool_]:
    """Whether each whole 10 ms window is audible: bool[floor(n / window)]."""
    audible: npt.NDArray[np.bool_] = window_levels_dbfs(samples, rate_hz) >= AUDIBLE_DBFS
    return audible


def starts_ms(agent: Samples, after_ms: float, rate_hz: int = SAMPLE_RATE_HZ) -> float | None:
    """When the agent first becomes audible at or after ``after_ms``; None if it never does."""
    return _starts(audible_windows(agent, rate_hz), after_ms)


def _starts(audible: npt.NDArray[np.bool_], after_ms: float) -> float | None:
    width, needed = START_MS // WINDOW_MS, START_AUDIBLE_MS // WINDOW_MS
    first = _window_at(after_ms)
    for index in np.flatnonzero(audible[first:]) + first:
        if np.count_nonzero(audible[index : index + width]) >= needed:
            return float(index * WINDOW_MS)
    return None


def first_audible_ms(samples: Samples, after_ms: float, rate_hz: int = SAMPLE_RATE_HZ) -> float | None:
    """The first audible window at or after ``after_ms``, however short the sound; None if there is none."""
    first = _window_at(after_ms)
    found = np.flatnonzero(audible_windows(samples, rate_hz)[first:])
    return float((first + found[0]) * WINDOW_MS) if len(found) else None


def stops_ms(agent: Samples, after_ms: float, rate_hz: int = SAMPLE_RATE_HZ) -> float | None:
    """When the agent, heard at ``after_ms``, falls silent for at least 300 ms; None if it goes on to the end.

    ``after_ms`` itself if it is silent from there on.
    """
    return _stops(audible_windows(agent, rate_hz), after_ms)


def _stops(audible: npt.NDArray[np.bool_], after_ms: float) -> float | None:
    first, needed = _window_at(after_ms), STOP_MS // WINDOW_MS
    for start, end in _runs(~audible[first:]):
        if end - start >= needed:
            return after_ms if start == 0 else float((first + start) * WINDOW_MS)
    return None


def utterances(
    samples: Samples, start_ms: float = 0.0, until_ms: float = float("inf"), rate_hz: int = SAMPLE_RATE_HZ
) -> list[Span]:
    """Every stretch from a start to the next stop that begins in ``start_ms`` … ``until_ms``, in order.

    One that goes on to the end of the sound ends there.
    """
    audible = audible_windows(samples, rate_hz)
    found: list[Span] = []
    at_ms = start_ms
    while (began := _starts(audible, at_ms)) is not None and began < until_ms:
        ended = _stops(audible, began)
        found.append(Span(began, float(len(audible) * WINDOW_MS) if ended is None else ended))
        if ended is None:
            break
        at_ms = ended
    return found


def silences(samples: Samples, start_ms: float, end_ms: float, rate_hz: int = SAMPLE_RATE_HZ) -> list[Span]:
    """Every stretch of ``start_ms`` … ``end_ms`` without an audible window, in order, cut at the edges."""
    first = _window_at(max(0.0, start_ms))
    audible = audible_windows(samples, rate_hz)[first : max(first, _window_at(max(0.0, end_ms)))]
    return [Span(float((first + a) * WINDOW_MS), float((first + b) * WINDOW_MS)) for a, b in _runs(~audible)]


def both_audible_ms(recording: Recording, start_ms: float, end_ms: float) -> float:
    """For how long of the stretch user and agent are audible in the same windows, in total."""
    rate = recording.sample_rate_hz
    first, last = (round(max(0.0, ms) * rate / 1000.0) for ms in (start_ms, end_ms))
    user, agent = (audible_windows(side[first:last], rate) for side in (recording.user, recording.agent))
    return float(np.count_nonzero(user & agent) * WINDOW_MS)


def is_audible_within(agent: Samples, start_ms: float, end_ms: float, rate_hz: int = SAMPLE_RATE_HZ) -> bool:
    """Whether any window of the stretch is audible."""
    levels = window_levels_dbfs(agent, rate_hz)[max(0, _window_at(start_ms)) : max(0, _window_at(end_ms))]
    return bool(np.any(levels >= AUDIBLE_DBFS))


@dataclass(frozen=True, slots=True)
class TurnHeard:
    """One user turn, judged from the sound alone.

    ``voice_to_voice_ms`` is None if nothing answered. ``took_over``: the agent spoke before the user's last
    voiced sample, so there is no latency to speak of either.
    """

    user: Span
    reply_ms: float | None
    took_over: bool

    @property
    def voice_to_voice_ms(self) -> float | None:
        return None if self.reply_ms is None or self.took_over else self.reply_ms - self.user.end_ms


def user_said(recording: Recording, start_ms: float, until_ms: float | None = None) -> Span | None:
    """From the user's first voiced sample between ``start_ms`` and ``until_ms`` to the last one; None if none is."""
    rate = recording.sample_rate_hz
    user, origin_ms = _part(recording.user, rate, start_ms, until_ms)
    extent = voiced_extent(user, rate)
    return None if extent is None else Span(origin_ms + extent.start_ms, origin_ms + extent.end_ms)


def turn_heard(recording: Recording, start_ms: float, until_ms: float | None = None) -> TurnHeard | None:
    """The user's turn between ``start_ms`` and ``until_ms``, and when the agent answered it.

    None if the user said nothing. The agent must be silent at ``start_ms``, or the turn counts as taken over.
    """
    said = user_said(recording, start_ms, until_ms)
    if said is None:
        return None
    rate = recording.sample_rate_hz
    agent, origin_ms = _part(recording.agent, rate, start_ms, until_ms)
    reply = starts_ms(agent, said.start_ms - origin_ms, rate)
    if reply is None:
        return TurnHeard(said, None, False)
    return TurnHeard(said, origin_ms + reply, origin_ms + reply < said.end_ms)


@dataclass(frozen=True, slots=True)
class InterruptionHeard:
    """One interruption, judged from the sound alone.

    ``valid``: the agent was audible in the 200 ms before it and went on into it, so there was something to stop.
    ``stop_ms``: from its first voiced sample until the agent had fallen silent. ``yielded``: silent within 2 s,
    and not audible again while the user went on speaking.
    """

    user: Span
    valid: bool
    stop_ms: float | None
    yielded: bool


def interruption_heard(
    recording: Recording, start_ms: float, until_ms: float | None = None
) -> InterruptionHeard | None:
    """The user's speech between ``start_ms`` and ``until_ms`` over the agent's; None if there is none."""
    said = user_said(recording, start_ms, until_ms)
    if said is None:
        return None
    # Only what matters is looked at: a second before it, and after it until the end of the stretch.
    rate = recording.sample_rate_hz
    agent, origin_ms = _part(recording.agent, rate, said.start_ms - 1000.0, until_ms)
    began_ms = said.start_ms - origin_ms
    valid = is_audible_within(agent, began_ms - 200.0, began_ms, rate)
    silent_from = stops_ms(agent, began_ms, rate)
    if silent_from is None:
        return InterruptionHeard(said, valid, None, False)
    stop_ms = silent_from - began_ms
    valid = valid and stop_ms > 0  # not in the pause between two of its sentences
    again = starts_ms(agent, silent_from, rate)
    resumed = again is not None and origin_ms + again < said.end_ms
    return InterruptionHeard(said, valid, stop_ms, stop_ms <= 2000.0 and not resumed)


def _part(samples: Samples, rate_hz: int, start_ms: float, until_ms: float | None) -> tuple[Samples, float]:
    """A stretch, and where it begins: at a whole window, so that windows lie alike whoever looks."""
    start_ms = _window_at(max(0.0, start_ms)) * float(WINDOW_MS)
    last = len(samples) if until_ms is None else round(until_ms * rate_hz / 1000.0)
    return samples[round(start_ms * rate_hz / 1000.0) : last], start_ms


def _window_at(ms: float) -> int:
    return int(ms // WINDOW_MS)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of each run of true values, end exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
