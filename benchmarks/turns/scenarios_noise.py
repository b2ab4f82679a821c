"""Scenarios 12 to 15: what is not speech to the agent: noise, silence, other people, and itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Echo, Limit, Link, Scenario, Trial
from duplex.benchmarks.turns.overlap import dismissible, meet, over_a_story
from duplex.benchmarks.turns.play import ANSWER_TIMEOUT_S, STORYTELLER, Build, Sayable, Sound, begin_story, made, pick
from duplex.benchmarks.turns.sizes import sizes_of
from duplex.benchmarks.turns.told import replies
from duplex.benchmarks.turns.trials import PLAIN, called, one_by_one, recording_of, seed_of, side_by_side
from duplex.benchmarks.turns.verdicts import spoken_unasked
from duplex.recording import Recording, Span, audible_windows

_TALKER_S = 4.0

WIDTH = 4
"""Calls at a time where nobody speaks and latency is not judged; a server takes four by default."""

ECHOES = tuple(Echo(level_db, delay_ms) for level_db, delay_ms in product((-10.0, -20.0, -30.0), (40.0, 120.0, 250.0)))


def _unasked(scenario: int, bench: Bench, number: int, name: str, recording: Recording, since_ms: float) -> Trial:
    """Judges a call on which nobody spoke to the agent. Values: ``spurious`` utterances, and ``turns`` committed."""
    spans = spoken_unasked(recording, since_ms, recording.duration_ms)
    turns = sum(e.type == "input_audio_buffer.committed" for e in recording.events)
    values = {"spurious": float(len(spans)), "turns": float(turns), "minutes": recording.duration_ms / 60_000.0}
    failed = f"it spoke at {spans[0].start_ms / 1000.0:.1f} s" if spans else None
    span = Span(spans[0].start_ms, spans[0].end_ms) if spans else Span(0.0, min(10_000.0, recording.duration_ms))
    heard = [
        str(e.event.get("transcript"))
        for e in recording.events
        if e.type == "conversation.item.input_audio_transcription.completed"
    ]
    seed = seed_of(bench, scenario, number)
    return Trial(scenario, seed, name, values, recording, span, failed, details={"heard_as": heard})


async def _noise(bench: Bench, number: int) -> Trial:
    snr_db = pick((5.0, 7.5, 10.0), number)
    sound = await made(lambda k: bench.material.noise_bed(k, sizes_of(bench).noise_s, snr_db), number)
    async with called(bench) as call:
        await call.wait_ms(500.0)
        await call.play(sound.samples)
        await call.wait_ms(3000.0)
    return _unasked(12, bench, number, sound.name, await recording_of(call), 0.0)


def noises(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """12: a minute of noise, 5 to 10 dB below speech, and nobody says a word."""
    return side_by_side(bench, 12, trials, _noise, WIDTH)


async def _silence(bench: Bench, number: int) -> Trial:
    silent_s = sizes_of(bench).silence_s
    tone = await made(lambda k: bench.material.room_tone(k, 20.0, pick((-60.0, -50.0), k)), number)
    async with called(bench, CallOptions(max_call_s=silent_s + 120.0)) as call:
        await call.wait_ms(silent_s * 1000.0)
        await call.play(tone)
        await call.wait_ms(2000.0)
    return _unasked(13, bench, number, f"room tone {number}", await recording_of(call), 0.0)


def silences(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """13: five minutes of digital silence, then the sound of a room."""
    return side_by_side(bench, 13, trials, _silence, WIDTH)


async def _talker_over(bench: Bench, number: int) -> Trial:
    told = await over_a_story(bench, 14, number, _talker(bench), first=bench.material.question)
    return dismissible(14, bench, number, told, "false_stop")


async def _talker_idle(bench: Bench, number: int) -> Trial:
    sound = await made(_talker(bench), number)
    async with called(bench, PLAIN) as call:
        await call.wait_ms(300.0)
        await meet(call, bench.material.question, number)
        since_ms = call.now_ms
        await call.wait_ms(800.0)
        await call.play(sound.samples)
        await call.wait_ms(4000.0)
    recording = await recording_of(call)
    trial = _unasked(14, bench, 500 + number, sound.name, recording, since_ms)
    values = {"replied_idle": float(trial.failed is not None)}
    return Trial(14, trial.seed, sound.name, values, recording, trial.span, trial.failed, details=trial.details)


async def talkers(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """14: somebody else in the room, 15 dB below and muffled; over the agent's speech, and in its silence.

    The user has asked something before: on a call on which nobody has spoken yet, whoever speaks is the user.
    """
    async for trial in one_by_one(bench, 14, trials, _talker_over):
        yield trial
    async for trial in side_by_side(bench, 14, trials, _talker_idle, 2):
        yield trial


async def _echo(bench: Bench, number: int) -> Trial:
    """Stories one after the other on a line that sends them back, and a user who says nothing."""
    echo = pick(ECHOES, number)
    wanted_s = sizes_of(bench).echo_s
    link = Link(echo=echo, seed=seed_of(bench, 15, number))
    async with called(bench, CallOptions(instructions=STORYTELLER, link=link)) as call:
        began_ms = call.now_ms
        stories = 0
        while call.now_ms - began_ms < wanted_s * 1000.0 and stories < 20:
            if not await begin_story(call, number + stories):
                break
            stories += 1
            await _until_done(call, began_ms + wanted_s * 1000.0)
        await call.wait_ms(1500.0)
    recording = await recording_of(call)
    spoken_s = float(audible_windows(recording.agent, recording.sample_rate_hz).sum()) * 0.01
    answered_itself = sum(e.type == "input_audio_buffer.committed" for e in recording.events)
    given_up = [reply for reply in replies(recording.events) if reply.given_up and reply.audible_ms is not None]
    wrongs = len(given_up) + answered_itself
    values = {
        "self_interruptions": float(wrongs),
        "spoken_s": spoken_s,
        "holds": float(sum(e.type == "duplex.reply.held" for e in recording.events)),
    }
    failed = f"it interrupted or answered itself {wrongs} times" if wrongs else None
    span = None
    if given_up and given_up[0].done_ms is not None:
        span = Span(given_up[0].done_ms - 2000.0, given_up[0].done_ms + 1000.0)
    name = f"{echo.level_db:g} dB, {echo.delay_ms:g} ms"
    return Trial(15, link.seed, name, values, recording, span, failed, valid=spoken_s > 3.0)


async def _until_done(call: Call, until_ms: float) -> None:
    """Waits until the running reply is over, or it is ``until_ms``."""
    try:
        async with asyncio.timeout(max(0.1, (until_ms - call.now_ms) / 1000.0)):
            while any(reply.done_ms is None for reply in replies(call.events)):
                await call.wait_ms(100.0)
            await call.wait_quiet(300.0, timeout_s=ANSWER_TIMEOUT_S)
    except TimeoutError:
        pass


async def echoes(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """15: the agent hears itself; ten minutes of its speech in all, in every combination of level and delay."""
    wrongs, spoken_s = 0.0, 0.0
    async for trial in side_by_side(bench, 15, trials, _echo, 2):
        yield trial
        if trial.valid and "spoken_s" in trial.values:
            wrongs += trial.values["self_interruptions"]
            spoken_s += trial.values["spoken_s"]
    if spoken_s:
        rate = {"per_10_min": wrongs * 600.0 / spoken_s, "minutes_spoken": spoken_s / 60.0}
        yield Trial(15, seed_of(bench, 15, 9999), "all of them", rate)


def _talker(bench: Bench) -> Build:
    def build(number: int) -> Sayable:
        return Sound.of(f"talker {number}", bench.material.background_talker(number, _TALKER_S))

    return build


SCENARIOS = (
    Scenario(
        12,
        "a minute of noise",
        (Limit("spurious", "sum", at_most=0.0),),
        noises,
        minutes=6.0,
    ),
    Scenario(
        13,
        "five minutes of silence, then a room",
        (Limit("spurious", "sum", at_most=0.0),),
        silences,
        minutes=28.0,
    ),
    Scenario(
        14,
        "somebody else is talking",
        (Limit("false_stop", "mean", at_most=0.15), Limit("replied_idle", "mean", at_most=0.15)),
        talkers,
        voice="human",
        minutes=6.0,
    ),
    Scenario(
        15,
        "echo of the agent",
        (Limit("per_10_min", "max", at_most=1.0),),
        echoes,
        minutes=6.5,
    ),
)
