"""What a caller does in more than one scenario: ask, wait for the answer, have a story told, talk over it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Trial
from duplex.benchmarks.turns.trials import PLAIN, called, recording_of, rng_of, seed_of
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Recording, Span, voiced_extent

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 6.0
TURNS_PER_CALL = 10
_PATIENCE_S = 3.0
_UNDER_WAY_MS = 160.0
STORYTELLER = "You are a storyteller. You tell long stories with many sentences."
STORIES = (
    "a lighthouse keeper",
    "a lost dog",
    "two rivers",
    "an old clock",
    "a train in the snow",
    "a baker who could not sleep",
    "the last island",
)

TALES = (
    "Once there was a lighthouse on a rock so small that the keeper could walk around it in forty steps. Every "
    "evening he climbed the stairs, lit the lamp and counted the ships. He knew them all by the shape of their "
    "lights. One winter a ship came by that he had never seen before. It had a green light at the bow and no name"
    " on its side, and it stopped just where the water turns dark. The keeper took his boat and rowed out to it. "
    "Nobody was on deck. On the table in the cabin stood a pot of tea, still warm, and beside it lay a letter "
    "with his own name on it.",
    "In a town between two rivers lived a baker who could not sleep. While the others dreamed he walked along the"
    " water and listened. The first river spoke of the mountains it came from, of snow and of stones that roll. "
    "The second one spoke only of the sea, where it had never been. The baker liked the second river better. He "
    "asked it how it could know so much about a place it had not seen. The river said that every drop in it had "
    "been there once, had risen as a cloud, and had come home over the hills. After that the baker slept well, "
    "and his bread tasted a little of salt.",
    "The old clock in the station had two faces, one for those who arrive and one for those who leave. For eighty"
    " years both had shown the same hour. Then, on a quiet Sunday in March, one of them stopped. The people who "
    "arrived that day had all the time in the world. They sat down on the benches, they talked to strangers, they"
    " missed every bus. The people who left ran as they had always done. In the evening a boy with a ladder came "
    "to mend it. He looked at the benches, put his tools back into the bag, and told the station master that it "
    "could not be mended.",
)


class Sayable(Protocol):
    """What can be said: float32[n] at 24 kHz, and where in it the voice lies, in ms."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def samples(self) -> Samples: ...

    @property
    def voiced(self) -> Span: ...


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound that is not speech, as something to be "said": ``voiced`` is where it can be heard."""

    name: str
    samples: Samples
    voiced: Span
    text: str = ""

    @classmethod
    def of(cls, name: str, samples: Samples) -> Sound:
        """The sound of float32[n]; a click too short to count as voice is all of it."""
        extent = voiced_extent(samples)
        return cls(name, samples, extent or Span(0.0, len(samples) * 1000.0 / SAMPLE_RATE_HZ))


Build = Callable[[int], Sayable]
"""From a trial's number to what is said in it. May block for a second."""


async def made(build: Callable[[int], T], number: int) -> T:
    """Builds it in a thread. To be done before a call is open: on virtual time a call would go on without it."""
    return await asyncio.to_thread(build, number)


async def several(build: Callable[[int], T], count: int) -> list[T]:
    """The first ``count`` of them."""
    return [await made(build, number) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Said:
    """Something said on a call: ``voiced``, on the call's time line, from ``start_ms`` on; judged to ``until_ms``."""

    number: int
    what: Sayable
    start_ms: float
    voiced: Span
    until_ms: float


async def say(call: Call, what: Sayable) -> Span:
    """Says it in real time; returns where its first to its last voiced sample lie on the call's time line."""
    played = await call.play(what.samples)
    return Span(played.start_ms + what.voiced.start_ms, played.start_ms + what.voiced.end_ms)


async def let_it_answer(call: Call, after_ms: float) -> bool:
    """Waits for the answer to what was said until ``after_ms``, and for its end. False if none was begun.

    A reply that goes on for long is cancelled, so that the next turn can begin: how it ends is not judged here.
    """
    for _ in range(3):
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                return await call.wait_settled(after_ms, answer_timeout_s=ANSWER_TIMEOUT_S)
        except TimeoutError:
            if call.last_audible_ms is not None and call.now_ms - call.last_audible_ms < 1000.0:
                break
    call.send({"type": "response.cancel"})
    await call.wait_quiet(500.0, timeout_s=5.0)
    return True


async def ask(call: Call, what: Sayable) -> Span:
    """Says it and lets it be answered; returns where it was said."""
    voiced = await say(call, what)
    await let_it_answer(call, voiced.end_ms)
    return voiced


def put_question(call: Call, text: str) -> None:
    """Puts a written message of the user's into the conversation and asks for a reply to it."""
    content = [{"type": "input_text", "text": text}]
    call.send({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
    call.send({"type": "response.create"})


async def begin_story(call: Call, number: int, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Has a long story begun; True once it is audible, False if it is not in time.

    A server of ours is given its words, since a small model's stories are often over before they can be interrupted;
    any other is asked for one.
    """
    if _is_ours(call):
        call.send({"type": "response.create", "response": {"duplex": {"say": TALES[number % len(TALES)]}}})
    else:
        put_question(call, f"Tell me a long story about {STORIES[number % len(STORIES)]}.")
    try:
        await call.wait_audible(timeout_s=timeout_s)
    except TimeoutError:
        return False
    return True


def _is_ours(call: Call) -> bool:
    """Whether the server's session object has our extension."""
    return any("duplex" in e.event.get("session", {}) for e in call.events if e.type == "session.created")


async def in_mid_speech(call: Call, wait_ms: float) -> bool:
    """Lets the agent speak for ``wait_ms`` and returns at a moment at which it does; False if it fell silent."""
    await call.wait_ms(wait_ms)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                began_ms = await call.wait_audible(timeout_s=_PATIENCE_S)
                await call.wait_ms(_UNDER_WAY_MS)
                if await call.wait_audible(timeout_s=_PATIENCE_S) <= began_ms + _UNDER_WAY_MS + 60.0:
                    return True  # not at the edge of a breath: what is said now lies over its speech
    except TimeoutError:
        return False


Judge = Callable[[Recording, Said], Trial]


async def share_calls(
    bench: Bench,
    scenario: int,
    things: Sequence[Sayable],
    judge: Judge,
    options: CallOptions = PLAIN,
    per_call: int = TURNS_PER_CALL,
) -> AsyncIterator[Trial]:
    """Says each thing, lets it be answered, and says the next on the same call; judged when the call is over.

    A call that breaks fails the turn at hand, and the turns after it go on another.
    """
    pending = deque(enumerate(things))
    while pending:
        placed: list[tuple[int, Sayable, float, Span]] = []
        broken: str | None = None
        made: Call | None = None
        number = pending[0][0]
        try:
            async with called(bench, options) as call:
                made = call
                while pending and len(placed) < per_call:
                    number, what = pending[0]
                    await call.wait_ms(rng_of(bench, scenario, number).uniform(600.0, 1200.0))
                    start_ms = call.now_ms
                    voiced = await say(call, what)
                    await let_it_answer(call, voiced.end_ms)
                    placed.append((number, what, start_ms, voiced))
                    pending.popleft()
        except (DuplexError, TimeoutError) as error:
            broken = str(error) or "a cancelled reply went on"
            pending.popleft()
        recording = None if made is None else await recording_of(made)
        if recording is not None:
            ends = [start_ms for _, _, start_ms, _ in placed[1:]] + [recording.duration_ms]
            for (each, what, start_ms, voiced), until_ms in zip(placed, ends, strict=True):
                yield judge(recording, Said(each, what, start_ms, voiced, until_ms))
        if broken is not None:
            name = things[number].name
            yield Trial(scenario, seed_of(bench, scenario, number), name, {"broken": 1.0}, recording, failed=broken)


def transcripts(recording: Recording, start_ms: float, until_ms: float) -> dict[str, Any]:
    """What was heard and answered in the stretch, as the server wrote it down."""
    kinds = {
        "heard_as": "conversation.item.input_audio_transcription.completed",
        "answer": "response.output_audio_transcript.done",
    }
    return {
        name: " / ".join(
            str(recorded.event.get("transcript", ""))
            for recorded in recording.events
            if recorded.type == kind and start_ms <= recorded.at_ms < until_ms
        )
        for name, kind in kinds.items()
    }


def pick(things: Sequence[T], number: int) -> T:
    """The ``number``-th of them, round and round."""
    return things[number % len(things)]
