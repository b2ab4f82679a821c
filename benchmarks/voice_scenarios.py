"""What the voice benchmark does on its calls, and how it judges what came back.

Everything is judged from the client's stereo recording by the rules of :mod:`duplex.recording`; the
server's own trace is kept beside it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duplex.benchmarks.server_process import CpuMeter
from duplex.benchmarks.stimuli import Stimulus
from duplex.errors import TransportError
from duplex.frames import Samples
from duplex.recording import Recording, WireStats, interruption_heard, starts_ms, turn_heard, voiced_extent
from duplex.transport.client import CallClient, CallSettings

ANSWER_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 25.0
TURNS_PER_CALL = 10
OPENING_S = 10.0
_STORYTELLER = "You are a storyteller. You tell long stories with many sentences."
_STORIES = ("a lighthouse keeper", "a lost dog", "two rivers", "an old clock", "a train in the snow")


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One spoken turn. Latencies in ms; None: not answered within 10 s, taken over, or not traced."""

    stimulus: str
    answered: bool
    took_over: bool
    voice_to_voice_ms: float | None
    traced: Mapping[str, float]
    """Of the server's trace: ``voice_to_voice``, ``end_of_turn``, ``first_packet`` and each stage's span, ms."""
    speculative: bool | None
    heard_as: str
    answer: str


@dataclass(frozen=True, slots=True)
class InterruptionResult:
    """``valid``: the agent was speaking when it was interrupted. ``answered``: it replied to the interruption."""

    stimulus: str
    valid: bool
    yielded: bool
    stop_ms: float | None
    answered: bool


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """``sensible``: the answer has one of the words it should have."""

    question: str
    heard_as: str
    answer: str
    sensible: bool


@dataclass(slots=True)
class Findings:
    turns: list[TurnResult] = field(default_factory=list)
    interruptions: list[InterruptionResult] = field(default_factory=list)
    questions: list[QuestionResult] = field(default_factory=list)
    wire: list[WireStats] = field(default_factory=list)
    connect_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Marked:
    """A stimulus and where on the call it was played; what it is judged by ends where the next one begins."""

    stimulus: Stimulus
    start_ms: float
    until_ms: float | None = None


Keep = Callable[[Recording, str], None]


async def run_turns(
    url: str, stimuli: Sequence[Stimulus], count: int, rng: random.Random, findings: Findings, tick: Keep
) -> None:
    """``count`` plain turns, in calls of ten: say it, wait for the whole answer, say the next."""
    chosen = [stimuli[k % len(stimuli)] for k in range(count)]
    rng.shuffle(chosen)
    for number, first in enumerate(range(0, count, TURNS_PER_CALL)):
        marks: list[_Marked] = []
        async with CallClient.connect(url) as call:
            findings.connect_ms.append(call.connected_in_s * 1000.0)
            for stimulus in chosen[first : first + TURNS_PER_CALL]:
                await call.wait_ms(rng.uniform(600.0, 1200.0))
                marks.append(_Marked(stimulus, call.now_ms))
                said = await call.play(stimulus.samples)
                voiced_until_ms = said.start_ms + stimulus.voiced.end_ms
                await _let_it_answer(call, voiced_until_ms, findings)
        recording = call.recording()
        findings.wire.append(recording.wire)
        findings.turns += [_judge_turn(recording, mark) for mark in _bounded(marks)]
        tick(recording, f"turns-{number + 1}")


async def run_interruptions(
    url: str, stimuli: Sequence[Stimulus], count: int, rng: random.Random, findings: Findings, tick: Keep
) -> None:
    """``count`` interruptions of stories, each on a call of its own, 1 to 2 s after the agent began to speak.

    A small model that has been cut off often tells ever shorter stories; a new call forgets that.
    """
    chosen = [stimuli[k % len(stimuli)] for k in range(count)]
    rng.shuffle(chosen)
    for number, stimulus in enumerate(chosen):
        for attempt in range(2):
            recording, mark = await _interrupt(
                url, stimulus, _STORIES[(number + attempt) % len(_STORIES)], rng, findings
            )
            findings.wire.append(recording.wire)
            if mark is not None:
                findings.interruptions.append(_judge_interruption(recording, mark))
            tick(recording, f"interruption-{number + 1}" + ("-again" if attempt else ""))
            if findings.interruptions and mark is not None and findings.interruptions[-1].valid:
                break


async def _interrupt(
    url: str, stimulus: Stimulus, about: str, rng: random.Random, findings: Findings
) -> tuple[Recording, _Marked | None]:
    """One story and one interruption; None for the latter if the story was too short to be interrupted."""
    mark: _Marked | None = None
    async with CallClient.connect(url, CallSettings(instructions=_STORYTELLER)) as call:
        findings.connect_ms.append(call.connected_in_s * 1000.0)
        await call.wait_ms(1500.0)
        content = [{"type": "input_text", "text": f"Tell me a long story about {about}."}]
        call.send({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
        call.send({"type": "response.create"})
        try:
            await call.wait_audible(timeout_s=ANSWER_TIMEOUT_S)
            await call.wait_ms(rng.uniform(1000.0, 2000.0))
            await call.wait_audible(timeout_s=2.0)  # never into a breath between sentences
            start_ms = call.now_ms
            await call.play(stimulus.samples)
            mark = _Marked(stimulus, start_ms)
            await call.wait_audible(timeout_s=ANSWER_TIMEOUT_S)
            await call.wait_ms(300.0)
        except TimeoutError:
            if mark is None:
                findings.errors.append(f"the story about {about} was too short or too late to be interrupted")
    return call.recording(), mark


async def run_questions(url: str, questions: Sequence[tuple[str, Samples, Sequence[str]]], findings: Findings) -> None:
    """Synthetic questions, each (text, sound, words of which one must be in the answer) on a call of its own."""
    for text, samples, wanted in questions:
        async with CallClient.connect(url) as call:
            await call.wait_ms(500.0)
            said = await call.play(samples)
            voiced = voiced_extent(samples)
            await _let_it_answer(call, said.start_ms + (voiced.end_ms if voiced else 0.0), findings)
        events = [recorded.event for recorded in call.events]
        answer = _said(events, "response.output_audio_transcript.done")
        heard_as = _said(events, "conversation.item.input_audio_transcription.completed")
        sensible = any(word in answer.lower() for word in wanted)
        findings.questions.append(QuestionResult(text, heard_as, answer, sensible))


@dataclass(frozen=True, slots=True)
class IdleResult:
    """``opening_s``: processor time the server spent in the first ten seconds of a call on which nobody speaks,
    ``percent``: of a core in the seconds after that. ``spoke``: the agent did, unasked."""

    opening_s: float | None
    percent: float | None
    spoke: bool


async def run_idle(url: str, pid: int | None, duration_s: float) -> IdleResult:
    """An open call on which nobody speaks."""
    async with CallClient.connect(url) as call:
        opening = CpuMeter(pid)
        await call.wait_ms(OPENING_S * 1000.0)
        opened = opening.percent()
        idle = CpuMeter(pid)
        await call.wait_ms(duration_s * 1000.0)
        percent = idle.percent()
    recording = call.recording()
    spoke = starts_ms(recording.agent, 0.0, recording.sample_rate_hz) is not None
    return IdleResult(None if opened is None else opened / 100.0 * OPENING_S, percent, spoke)


async def _let_it_answer(call: CallClient, voiced_until_ms: float, findings: Findings) -> None:
    """Waits for the answer and its end; one that does not end is cancelled, so that the next turn can begin."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S + REPLY_TIMEOUT_S):
            await call.wait_settled(voiced_until_ms, answer_timeout_s=ANSWER_TIMEOUT_S)
    except TimeoutError:
        call.send({"type": "response.cancel"})
        try:
            await call.wait_quiet(500.0, timeout_s=5.0)
        except TimeoutError:
            findings.errors.append("a cancelled reply went on for 5 s")


def _bounded(marks: Sequence[_Marked]) -> Iterator[_Marked]:
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        yield _Marked(mark.stimulus, mark.start_ms, None if after is None else after.start_ms)


def _judge_turn(recording: Recording, mark: _Marked) -> TurnResult:
    until_ms = recording.duration_ms if mark.until_ms is None else mark.until_ms
    heard = turn_heard(recording, mark.start_ms, until_ms)
    if heard is None:
        raise TransportError(f"{mark.stimulus.name} is not in the recording; the call was cut off.")
    wait_ms = heard.voice_to_voice_ms
    answered = heard.took_over or (wait_ms is not None and wait_ms <= ANSWER_TIMEOUT_S * 1000.0)
    events = [e.event for e in recording.events if mark.start_ms <= e.at_ms < until_ms]
    trace = next((event for event in reversed(events) if event.get("type") == "duplex.trace"), None)
    traced: dict[str, float] = {}
    if trace is not None:
        traced = {span["name"]: span["end_ms"] - span["start_ms"] for span in trace["spans"]}
        traced |= {name: trace[f"{name}_ms"] for name in ("voice_to_voice", "end_of_turn", "first_packet")}
    return TurnResult(
        stimulus=mark.stimulus.name,
        answered=answered,
        took_over=heard.took_over,
        voice_to_voice_ms=wait_ms if answered else None,
        traced=traced,
        speculative=None if trace is None else bool(trace["speculative"]),
        heard_as=_said(events, "conversation.item.input_audio_transcription.completed"),
        answer=_said(events, "response.output_audio_transcript.done"),
    )


def _judge_interruption(recording: Recording, mark: _Marked) -> InterruptionResult:
    heard = interruption_heard(recording, mark.start_ms, mark.until_ms)
    if heard is None:
        raise TransportError(f"{mark.stimulus.name} is not in the recording; the call was cut off.")
    after = starts_ms(recording.agent, heard.user.end_ms, recording.sample_rate_hz) if heard.yielded else None
    return InterruptionResult(
        stimulus=mark.stimulus.name,
        valid=heard.valid,
        yielded=heard.yielded,
        stop_ms=heard.stop_ms,
        answered=after is not None and (mark.until_ms is None or after < mark.until_ms),
    )


def _said(events: Sequence[Mapping[str, Any]], kind: str) -> str:
    return " / ".join(str(event.get("transcript", "")) for event in events if event.get("type") == kind)


def keep_recordings(directory: Path | None) -> Keep:
    """Writes each call's recording and picture into ``directory``; does nothing without one."""

    def keep(recording: Recording, name: str) -> None:
        if directory is None:
            return
        import soundfile

        from duplex.timeline import save_timeline

        directory.mkdir(parents=True, exist_ok=True)
        soundfile.write(directory / f"{name}.wav", recording.stereo, recording.sample_rate_hz, subtype="PCM_16")
        save_timeline(recording, directory / f"{name}.png", title=name)

    return keep
