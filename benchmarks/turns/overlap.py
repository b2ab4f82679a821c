"""One sound over the agent's speech: how it is brought about, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Link, Trial
from duplex.benchmarks.turns.play import (
    ANSWER_TIMEOUT_S,
    STORYTELLER,
    Build,
    Sayable,
    ask,
    begin_story,
    in_mid_speech,
    made,
    say,
    transcripts,
)
from duplex.benchmarks.turns.told import reply_spoken_at
from duplex.benchmarks.turns.trials import called, recording_of, rng_of, seed_of
from duplex.benchmarks.turns.verdicts import overlap_heard, stop_heard
from duplex.recording import Recording, Span, starts_ms

PERFECT = Link()
_AFTER_MS = 4_000.0  # how much of the call after a sound is looked at


@dataclass(frozen=True, slots=True)
class OverStory:
    """A story, and something said over it at ``voiced`` on the call's time line. ``voiced`` is None if the story
    ended too early for that; the trial is not valid then."""

    recording: Recording
    what: Sayable
    began_ms: float
    voiced: Span | None


async def over_a_story(
    bench: Bench,
    scenario: int,
    number: int,
    build: Build,
    *,
    wait_ms: tuple[float, float] = (1000.0, 2500.0),
    link: Link = PERFECT,
    after_ms: float = _AFTER_MS,
    to_answer: bool = False,
    first: Build | None = None,
) -> OverStory:
    """A call of its own: a story is begun, and what ``build`` makes is said over it after ``wait_ms`` of it.

    The call goes on for ``after_ms`` from the end of that; with ``to_answer`` at least until the agent speaks again.
    ``first`` is said and answered before all that: the agent has heard its user then, and could know them again.

    A small model that has been cut off often tells ever shorter stories; a new call forgets that.
    """
    rng = rng_of(bench, scenario, number)
    what = await made(build, number)
    voiced: Span | None = None
    async with called(bench, CallOptions(instructions=STORYTELLER, link=link)) as call:
        await call.wait_ms(300.0)
        if first is not None:
            await meet(call, first, number)
        began_ms = call.now_ms
        if await begin_story(call, number) and await in_mid_speech(call, rng.uniform(*wait_ms)):
            voiced = await say(call, what)
            if to_answer:
                await until_answered(call)
            await after(call, voiced, after_ms)
    return OverStory(await recording_of(call), what, began_ms, voiced)


async def meet(call: Call, first: Build, number: int) -> None:
    """The user says something, and is answered."""
    await ask(call, await made(first, number))
    await call.wait_quiet(700.0, timeout_s=20.0)


async def after(call: Call, voiced: Span, at_most_ms: float) -> None:
    """Lets the call go on after a sound, for ``at_most_ms``."""
    await call.wait_ms(max(0.0, voiced.end_ms + at_most_ms - call.now_ms))


def dismissible(scenario: int, bench: Bench, number: int, told: OverStory, share: str = "abandoned") -> Trial:
    """Judges a sound that should not stop the agent. Values: ``share`` (given up or not), ``resume_gap_ms``."""
    if told.voiced is None:
        return unjudged(scenario, bench, number, told.what, told.recording, "the story was over too early")
    heard = overlap_heard(told.recording, told.voiced, told.voiced.end_ms + _AFTER_MS)
    values = {share: float(heard.abandoned)}
    if heard.gap_ms is not None:
        values["resume_gap_ms"] = heard.gap_ms
    failed = None
    if heard.abandoned:
        failed = "the reply was given up"
    elif heard.gap_ms is not None and heard.gap_ms > 600.0:
        failed = f"silent for {heard.gap_ms:.0f} ms"
    if not heard.valid:
        why = "the agent was not speaking there"
        return unjudged(scenario, bench, number, told.what, told.recording, why, told.voiced)
    return over_trial(scenario, bench, number, told, values, failed)


def over_trial(
    scenario: int, bench: Bench, number: int, told: OverStory, values: dict[str, float], failed: str | None
) -> Trial:
    """The trial with what helps a reader: what was said and how it was taken."""
    assert told.voiced is not None
    span = Span(told.began_ms, min(told.recording.duration_ms, told.voiced.end_ms + _AFTER_MS))
    reply = reply_spoken_at(told.recording, told.voiced.start_ms)
    details: dict[str, Any] = {
        "said": told.what.text,
        "voiced_ms": [told.voiced.start_ms, told.voiced.end_ms],
        "reply": None if reply is None else reply.status,
        **transcripts(told.recording, told.voiced.start_ms, span.end_ms),
    }
    seed = seed_of(bench, scenario, number)
    return Trial(scenario, seed, told.what.name, values, told.recording, span, failed, details=details)


def unjudged(
    scenario: int,
    bench: Bench,
    number: int,
    what: Sayable | str,
    recording: Recording,
    why: str,
    span: Span | None = None,
) -> Trial:
    """A trial that says nothing, and why."""
    seed, name = seed_of(bench, scenario, number), what if isinstance(what, str) else what.name
    return Trial(scenario, seed, name, {}, recording, span, valid=False, details={"invalid": why})


def interruption(
    scenario: int, bench: Bench, number: int, told: OverStory, slow_ms: float = 350.0, suffix: str = ""
) -> Trial:
    """Judges a real interruption. Values: ``yielded``, ``stop_ms`` (of those yielded to), ``answered``."""
    if told.voiced is None:
        return unjudged(scenario, bench, number, told.what, told.recording, "the story was over too early")
    until_ms = told.recording.duration_ms
    heard = stop_heard(told.recording, told.voiced.start_ms - 50.0, until_ms)
    if heard is None or not heard.valid:
        why = "the agent was not speaking there"
        return unjudged(scenario, bench, number, told.what, told.recording, why, told.voiced)
    if heard.ended:
        why = "the reply came to its own end"
        return unjudged(scenario, bench, number, told.what, told.recording, why, told.voiced)
    again = starts_ms(told.recording.agent, heard.user.end_ms, told.recording.sample_rate_hz) if heard.yielded else None
    values = {f"yielded{suffix}": float(heard.yielded), f"answered{suffix}": float(again is not None)}
    if heard.yielded and heard.stop_ms is not None:
        values[f"stop_ms{suffix}"] = heard.stop_ms
    failed = None
    if not heard.yielded:
        failed = "it did not stop" if heard.stop_ms is None else f"it stopped after {heard.stop_ms:.0f} ms, and went on"
    elif heard.stop_ms is not None and heard.stop_ms > slow_ms:
        failed = f"it stopped after {heard.stop_ms:.0f} ms"
    return over_trial(scenario, bench, number, told, values, failed)


async def until_answered(call: Call, quiet_ms: float = 300.0) -> bool:
    """Waits until the agent speaks again and has said a little; False if it does not."""
    try:
        await call.wait_ms(300.0)  # what is still on its way is no answer
        await call.wait_audible(timeout_s=ANSWER_TIMEOUT_S)
        await call.wait_ms(quiet_ms)
    except TimeoutError:
        return False
    return True
