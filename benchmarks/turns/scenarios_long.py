"""Scenarios 18, 19, 23 and 24: long turns, long replies, many calls and a long day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from duplex.benchmarks.turns.contract import Bench, CallOptions, Limit, Scenario, Trial
from duplex.benchmarks.turns.mixed import mixed_turns
from duplex.benchmarks.turns.overlap import unjudged
from duplex.benchmarks.turns.play import (
    ANSWER_TIMEOUT_S,
    STORYTELLER,
    begin_story,
    in_mid_speech,
    let_it_answer,
    made,
    say,
)
from duplex.benchmarks.turns.server_counts import ProcessWeight, counted, weigh
from duplex.benchmarks.turns.sizes import sizes_of
from duplex.benchmarks.turns.told import replies
from duplex.benchmarks.turns.trials import (
    CannotRunError,
    called,
    one_by_one,
    recording_of,
    seed_of,
    side_by_side,
)
from duplex.benchmarks.turns.verdicts import ANSWER_WITHIN_MS, monologues, without_asides
from duplex.recording import Span, audible_windows, starts_ms, user_said, utterances

_UNDERRUNS, _LIVE = "duplex_underruns_total", "duplex_sessions_live"
STRETCHED_MS = 100.0
WARM_UP_CALLS = 10
POOL = 2.0  # threads or files that a pool may still add once it is warm; a leak of one a call would be fifty


# --- 18: the user goes on for 44 s ---------------------------------------------------------------------------


async def _user_monologue(bench: Bench, number: int) -> Trial:
    speech = await made(bench.material.monologue, number)
    async with called(bench) as call:
        await call.wait_ms(800.0)
        start_ms = call.now_ms
        voiced = await say(call, speech)
        await let_it_answer(call, voiced.end_ms)
    recording = without_asides(await recording_of(call))
    said = user_said(recording, start_ms)
    if said is None:
        return unjudged(18, bench, number, speech, recording, "nothing was said", voiced)
    rate = recording.sample_rate_hz
    into = utterances(recording.agent, said.start_ms, said.end_ms, rate)
    reply_ms = starts_ms(recording.agent, said.end_ms, rate)
    replied = reply_ms is not None and reply_ms - said.end_ms <= ANSWER_WITHIN_MS
    values = {"interruptions": float(len(into)), "replied": float(replied)}
    if replied and reply_ms is not None:
        values["voice_to_voice_ms"] = reply_ms - said.end_ms
    failed = f"it spoke {len(into)} times into it" if len(into) > 1 else None
    failed = failed or (None if replied else "no reply after it")
    span = Span(start_ms, recording.duration_ms)
    details = {"spoke_at_ms": [span.start_ms - said.start_ms for span in into], "said": speech.text}
    return Trial(18, seed_of(bench, 18, number), speech.name, values, recording, span, failed, details=details)


def user_monologues(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """18: a person talks for 44 s, with the pauses people make."""
    return side_by_side(bench, 18, trials, _user_monologue, 2)


# --- 19: the agent goes on for a minute -------------------------------------------------------------------------


async def _agent_monologue(bench: Bench, number: int) -> Trial:
    wanted_ms = sizes_of(bench).monologue_s * 1000.0
    before = (await counted(bench, _UNDERRUNS)).get(_UNDERRUNS)
    async with called(bench, CallOptions(instructions=STORYTELLER)) as call:
        await call.wait_ms(300.0)
        began_ms = call.now_ms
        stories = 0
        while call.now_ms - began_ms < wanted_ms and stories < 20:
            if not await begin_story(call, number + stories):
                break
            stories += 1
            async with asyncio.timeout(150.0):
                while any(reply.done_ms is None for reply in replies(call.events)):
                    await call.wait_ms(100.0)
                await call.wait_quiet(200.0, timeout_s=ANSWER_TIMEOUT_S)
    recording = await recording_of(call)
    after = (await counted(bench, _UNDERRUNS)).get(_UNDERRUNS)
    heard = list(monologues(recording))
    stretched = [reply.stretched_ms for reply in heard if reply.stretched_ms is not None]
    told = after is not None and before is not None
    underruns = after - before if after is not None and before is not None else sum(s > STRETCHED_MS for s in stretched)
    spoken_s = float(audible_windows(recording.agent, recording.sample_rate_hz).sum()) * 0.01
    values = {
        "underruns": float(underruns),
        "late": float(recording.wire.late),
        "spoken_s": spoken_s,
        "longest_s": max((reply.spoken_ms for reply in heard), default=0.0) / 1000.0,
    }
    if stretched:
        values["stretched_ms"] = max(stretched)
    failed = f"{underruns:.0f} underruns" if underruns else None
    details = {
        "replies": len(heard),
        "underruns_by": "the server's count" if told else "the sound",
        "wire": repr(recording.wire),
    }
    span = Span(0.0, min(70_000.0, recording.duration_ms))
    trial = Trial(19, seed_of(bench, 19, number), "a story", values, recording, span, failed, details=details)
    return trial if spoken_s > 10.0 else unjudged(19, bench, number, trial.stimulus, recording, "it hardly spoke", span)


def agent_monologues(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """19: the agent talks for a minute."""
    return one_by_one(bench, 19, trials, _agent_monologue)


# --- 23: fifty hang-ups ------------------------------------------------------------------------------------------


async def _hang_up(bench: Bench, number: int) -> Trial:
    async with called(bench, CallOptions(instructions=STORYTELLER)) as call:
        speaking = await begin_story(call, number) and await in_mid_speech(call, 200.0)
    name = f"call {number + 1}"
    return Trial(23, seed_of(bench, 23, number), name, {"in_mid_reply": float(speaking)}, valid=speaking)


async def hang_ups(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """23: calls that end in the middle of a reply; what is left of them afterwards."""
    if weigh(bench.server_pid) is None:
        raise CannotRunError("The server's process has to be on this machine. With --url, give --server-pid.")
    for number in range(WARM_UP_CALLS):  # allocators and caches fill up
        await _hang_up(bench, 5000 + number)
    before = await _at_rest(bench)
    async for trial in one_by_one(bench, 23, trials, _hang_up):
        yield trial
    after = await _at_rest(bench)
    yield Trial(23, seed_of(bench, 23, 9999), "what is left", _left(before, after), details={"before": repr(before)})


async def _at_rest(bench: Bench) -> tuple[ProcessWeight, float]:
    """The server's weight once its sessions have ended, or 20 s have passed; and how many have not."""
    live = 0.0
    for _ in range(20):
        live = (await counted(bench, _LIVE)).get(_LIVE, 0.0)
        if live == 0.0:
            break
        await asyncio.sleep(1.0)
    await asyncio.sleep(3.0)
    found = weigh(bench.server_pid)
    if found is None:
        raise CannotRunError("The server's process is gone.")
    return found, live


def _left(before: tuple[ProcessWeight, float], after: tuple[ProcessWeight, float]) -> dict[str, float]:
    return {
        "memory_growth_mb": after[0].memory_mb - before[0].memory_mb,
        "threads_growth": float(after[0].threads - before[0].threads),
        "files_growth": float(after[0].files - before[0].files),
        "sessions_left": after[1],
    }


SCENARIOS = (
    Scenario(
        18,
        "the user talks for 44 s",
        (Limit("interruptions", "max", at_most=1.0), Limit("replied", "mean", at_least=0.95)),
        user_monologues,
        voice="human",
        minutes=10.0,
    ),
    Scenario(
        19,
        "the agent talks for a minute",
        (Limit("underruns", "sum", at_most=0.0),),
        agent_monologues,
        minutes=24.0,
    ),
    Scenario(
        23,
        "fifty calls that end in mid-reply",
        (
            Limit("memory_growth_mb", "max", at_most=15.0),
            Limit("threads_growth", "max", at_most=POOL),
            Limit("files_growth", "max", at_most=POOL),
            Limit("sessions_left", "max", at_most=0.0),
        ),
        hang_ups,
        trials=50,
        minutes=4.0,
    ),
    Scenario(
        24,
        "half an hour of everything",
        (Limit("p95_drift", "max", at_most=0.10), Limit("memory_growth_mb", "max", at_most=30.0)),
        mixed_turns,
        voice="both",
        trials=60,
        minutes=30.0,
    ),
)
