"""What happened on a call, told from its recording: who said what when, who held the floor, how long it took.

Pure. The sound says *when* (events arrive a little later than what they speak of), the events say *what*.
Times are milliseconds of the recording's time line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duplex.frames import Samples
from duplex.recording import RecordedEvent, Recording, Span, starts_ms, stops_ms, voiced_spans

FLOORS = ("listening", "thinking", "speaking", "holding", "yielding")


@dataclass(frozen=True, slots=True)
class FloorSpan:
    floor: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """``heard``: it reached the listener, as far as the server remembers."""

    text: str
    start_ms: float
    end_ms: float
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Utterance:
    """One caption. ``who``: "user" or "agent". Never without words."""

    who: str
    words: tuple[SpokenWord, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """One answered turn. ``asked_ms``: the user's last voiced sample; ``answered_ms``: the agent's first audible one.

    ``spans``: the server's waterfall as (name, start, end), ms after ``asked_ms``.
    """

    asked_ms: float
    answered_ms: float | None
    spans: tuple[tuple[str, float, float], ...]
    traced_ms: float
    speculative: bool

    @property
    def voice_to_voice_ms(self) -> float | None:
        return None if self.answered_ms is None else self.answered_ms - self.asked_ms


@dataclass(frozen=True, slots=True)
class Stop:
    """The user spoke over the agent and it fell silent."""

    said_ms: float
    silent_ms: float


@dataclass(frozen=True, slots=True)
class Story:
    duration_ms: float
    floors: tuple[FloorSpan, ...]
    utterances: tuple[Utterance, ...]
    turns: tuple[TurnLatency, ...]
    stops: tuple[Stop, ...]


def tell(recording: Recording) -> Story:
    """The story of ``recording``; parts for which there are no events are left out."""
    events = recording.events
    floors = tuple(_floors(events, recording.duration_ms))
    utterances = [*_user_utterances(recording), *_agent_utterances(recording)]
    return Story(
        duration_ms=recording.duration_ms,
        floors=floors,
        utterances=tuple(sorted(utterances, key=lambda said: said.words[0].start_ms)),
        turns=tuple(_turns(recording)),
        stops=tuple(_stops(recording)),
    )


def _of(events: Sequence[RecordedEvent], *kinds: str) -> Iterator[tuple[float, Mapping[str, Any]]]:
    return ((recorded.at_ms, recorded.event) for recorded in events if recorded.type in kinds)


# --- the floor ---------------------------------------------------------------------------------------


def _floors(events: Sequence[RecordedEvent], duration_ms: float) -> Iterator[FloorSpan]:
    """Stretches of one floor. What is passed through without time is left out."""
    floor, since_ms = FLOORS[0], 0.0
    for at_ms, event in _of(events, "duplex.floor"):
        if event.get("floor") != floor:
            if at_ms > since_ms:
                yield FloorSpan(floor, since_ms, at_ms)
            floor, since_ms = str(event.get("floor")), max(since_ms, at_ms)
    if duration_ms > since_ms:
        yield FloorSpan(floor, since_ms, duration_ms)


# --- captions ------------------------------------------------------------------------------------------


def _user_utterances(recording: Recording) -> Iterator[Utterance]:
    """One per item. Words are spread over the voiced stretch, since nothing says where each of them lies."""
    events = recording.events
    final = {
        event.get("item_id"): (at_ms, str(event.get("transcript", "")))
        for at_ms, event in _of(events, "conversation.item.input_audio_transcription.completed")
    }
    began: dict[Any, float] = {}
    for at_ms, event in _of(events, "input_audio_buffer.speech_started"):
        began.setdefault(event.get("item_id"), at_ms)
    voiced = voiced_spans(recording.user, recording.sample_rate_hz, bridge_ms=700.0)
    for item_id, (at_ms, text) in final.items():
        if not text.split():
            continue
        from_ms = began.get(item_id, at_ms)
        first = min(voiced, key=lambda span: max(span.start_ms - from_ms, from_ms - span.end_ms, 0.0), default=None)
        start = first.start_ms if first is not None else from_ms
        end = max((span.end_ms for span in voiced if start < span.end_ms <= max(at_ms, start)), default=at_ms)
        yield Utterance("user", _spread(text, start, max(end, start + 100.0)))


def _agent_utterances(recording: Recording) -> Iterator[Utterance]:
    """One per reply, by its word timings where the server gives them; words past the cut are marked unheard."""
    events = recording.events
    texts: dict[str, str] = {}
    words: dict[str, list[Mapping[str, Any]]] = {}
    reply_of: dict[str, str] = {}
    for _, event in _of(events, "response.output_audio_transcript.delta", "response.output_text.delta"):
        item_id = str(event.get("item_id"))
        texts[item_id] = texts.get(item_id, "") + str(event.get("delta", ""))
        reply_of[item_id] = str(event.get("response_id"))
    for _, event in _of(events, "duplex.words"):
        words.setdefault(str(event.get("item_id")), []).extend(event.get("words", ()))
        reply_of.setdefault(str(event.get("item_id")), str(event.get("response_id")))
    started = {str(event.get("response_id")): at_ms for at_ms, event in _of(events, "output_audio_buffer.started")}
    ended = {
        str(event.get("response_id")): at_ms
        for at_ms, event in _of(events, "output_audio_buffer.stopped", "output_audio_buffer.cleared")
    }
    cut = {
        str(event.get("item_id")): float(event.get("audio_end_ms", 0.0))
        for _, event in _of(events, "conversation.item.truncated")
    }
    for item_id, reply_id in reply_of.items():
        if reply_id not in started:
            continue  # nothing of it was ever heard
        floor_ms = started[reply_id]
        start = starts_ms(recording.agent, max(0.0, floor_ms - 100.0), recording.sample_rate_hz)
        start = floor_ms if start is None or start > floor_ms + 1500.0 else start
        end = ended.get(reply_id, recording.duration_ms)
        if listed := words.get(item_id):
            timed = _timed(listed, start, _holds(events, start, end), cut.get(item_id))
        else:
            timed = _spread(texts.get(item_id, ""), start, max(end, start + 100.0))
        if timed:
            yield Utterance("agent", timed)


def _timed(
    listed: Sequence[Mapping[str, Any]], start_ms: float, holds: Sequence[Span], cut_ms: float | None
) -> tuple[SpokenWord, ...]:
    """Words at their place in the reply's sound, moved back by the times it was held; unheard ones at the cut."""

    def place(offset_ms: float) -> float:
        at = start_ms + offset_ms
        for hold in holds:
            if at > hold.start_ms:
                at += hold.end_ms - hold.start_ms
        return at

    words = []
    for word in listed:
        offset = float(word["start_ms"])
        if cut_ms is None or offset < cut_ms:
            words.append(SpokenWord(str(word["text"]), place(offset), place(float(word["end_ms"]))))
        else:
            words.append(SpokenWord(str(word["text"]), place(cut_ms), place(cut_ms), heard=False))
    return tuple(words)


def _holds(events: Sequence[RecordedEvent], start_ms: float, end_ms: float) -> list[Span]:
    """Pauses of the reply that it came back from."""
    held: float | None = None
    found = []
    for at_ms, event in _of(events, "duplex.reply.held", "duplex.reply.resumed"):
        if not start_ms <= at_ms <= end_ms:
            continue
        if event["type"] == "duplex.reply.held":
            held = at_ms
        elif held is not None:
            found.append(Span(held, at_ms))
            held = None
    return found


def _spread(text: str, start_ms: float, end_ms: float) -> tuple[SpokenWord, ...]:
    """Words over a stretch, each as long as its letters."""
    words = text.split()
    total = sum(len(word) + 1 for word in words)
    placed, letters = [], 0
    for word in words:
        begin = start_ms + (end_ms - start_ms) * letters / total
        letters += len(word) + 1
        placed.append(SpokenWord(word, begin, start_ms + (end_ms - start_ms) * letters / total))
    return tuple(placed)


# --- latencies -------------------------------------------------------------------------------------------


def _turns(recording: Recording) -> Iterator[TurnLatency]:
    """Each trace, laid onto the sound: its zero is the end of speech nearest to where the trace says it was."""
    ends = [span.end_ms for span in voiced_spans(recording.user, recording.sample_rate_hz)]
    for at_ms, trace in _of(recording.events, "duplex.trace"):
        traced_ms = float(trace.get("voice_to_voice_ms", 0.0))
        supposed = at_ms - traced_ms
        asked = min(ends, key=lambda end: abs(end - supposed), default=supposed)
        if abs(asked - supposed) > 1000.0:
            asked = supposed  # the trace speaks of something that is not in our sound
        answered = starts_ms(recording.agent, max(asked, at_ms - 300.0), recording.sample_rate_hz)
        if answered is not None and answered > at_ms + 2000.0:
            answered = None
        spans = tuple(
            (str(span["name"]), float(span["start_ms"]), float(span["end_ms"])) for span in trace.get("spans", ())
        )
        yield TurnLatency(asked, answered, spans, traced_ms, bool(trace.get("speculative")))


def _stops(recording: Recording) -> Iterator[Stop]:
    """Where the user began to speak over an audible agent, and a reply was cancelled within two seconds."""
    cuts = [at_ms for at_ms, _ in _of(recording.events, "conversation.item.truncated", "output_audio_buffer.cleared")]
    rate = recording.sample_rate_hz
    agent = voiced_spans(recording.agent, rate, bridge_ms=300.0)
    for said in voiced_spans(recording.user, rate, bridge_ms=300.0):
        over = any(span.start_ms < said.start_ms < span.end_ms for span in agent)
        if over and any(said.start_ms <= cut <= said.start_ms + 2500.0 for cut in cuts):
            silent = stops_ms(_until_next(recording.agent, rate, said.start_ms), said.start_ms, rate)
            if silent is not None:
                yield Stop(said.start_ms, silent)


def _until_next(agent: Samples, rate_hz: int, start_ms: float) -> Samples:
    """Three seconds from ``start_ms`` are enough to fall silent in."""
    return agent[: round((start_ms + 3000.0) * rate_hz / 1000.0)]
