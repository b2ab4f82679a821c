"""Scenarios 20 to 22: bad lines. They need a network, so they are not run inside one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Limit, Link, Scenario, Trial
from duplex.benchmarks.turns.overlap import interruption, over_a_story
from duplex.benchmarks.turns.play import (
    Said,
    begin_story,
    in_mid_speech,
    let_it_answer,
    made,
    pick,
    say,
    several,
    share_calls,
)
from duplex.benchmarks.turns.scenarios_turns import judge_turn
from duplex.benchmarks.turns.server_counts import counted
from duplex.benchmarks.turns.sizes import sizes_of
from duplex.benchmarks.turns.statistics import percentile
from duplex.benchmarks.turns.trials import (
    CannotRunError,
    called,
    one_by_one,
    recording_of,
    rng_of,
    seed_of,
    side_by_side,
)
from duplex.benchmarks.turns.verdicts import ANSWER_WITHIN_MS, stale_ms
from duplex.recording import Recording, Span, starts_ms, turn_heard

LOSSES = (0.01, 0.05, 0.10)
_UNDERRUNS = "duplex_underruns_total"
AGAIN_WITHIN_MS = 2_000.0
_HEARD_AGAIN_MS = 500.0  # long enough for the recording to call it speech


def _needs_a_network(bench: Bench) -> None:
    if bench.door.name == "in-process":
        raise CannotRunError("There is no network inside one process. Give --url, or leave --in-process out.")


# --- 20: loss --------------------------------------------------------------------------------------------


def _percent(loss: float) -> str:
    return f"{100 * loss:g}"


async def losses(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """20: turns and interruptions at each rate of loss, and on a perfect line to compare with."""
    _needs_a_network(bench)
    waits: dict[float, list[float]] = {}
    for loss in (0.0, *LOSSES):
        link = Link(loss=loss, burst_ms=60.0 if loss else 20.0, seed=seed_of(bench, 20, round(1000 * loss)))
        suffix = f"_{_percent(loss)}"
        chosen = await several(bench.material.question, trials)

        def judge(recording: Recording, said: Said, suffix: str = suffix) -> Trial:
            trial = judge_turn(20, bench, recording, said)
            named = {f"{name}{suffix}": trial.values[name] for name in _TURN_VALUES if name in trial.values}
            return Trial(
                20, trial.seed, f"{trial.stimulus}, {suffix[1:]} % lost", named, recording, trial.span, trial.failed
            )

        async for trial in share_calls(bench, 20, chosen, judge, CallOptions(link=link)):
            waits.setdefault(loss, []).extend(v for n, v in trial.values.items() if n.startswith("voice_to_voice"))
            yield trial
        if loss:
            one = partial(_interrupt_on, link=link, suffix=suffix)
            async for trial in one_by_one(bench, 20, trials, one):
                yield trial
    yield Trial(20, seed_of(bench, 20, 9999), "against a perfect line", _added(waits))


_TURN_VALUES = ("answered", "took_over", "voice_to_voice_ms")


async def _interrupt_on(bench: Bench, number: int, link: Link, suffix: str) -> Trial:
    told = await over_a_story(
        bench,
        20,
        number,
        bench.material.interruption,
        wait_ms=(1400.0, 1600.0),
        link=link,
        after_ms=700.0,
        to_answer=True,
    )
    trial = interruption(20, bench, number, told, slow_ms=2000.0, suffix=suffix)
    values = {name: value for name, value in trial.values.items() if not name.startswith("answered")}
    return replace(trial, values=values, stimulus=f"{trial.stimulus}, {suffix[1:]} % lost")


def _added(waits: dict[float, list[float]]) -> dict[str, float]:
    """How much later the p95 of each line is than the perfect line's, ms."""
    if not waits.get(0.0):
        return {}
    base_ms = percentile(waits[0.0], 95)
    return {
        f"added_p95_{_percent(loss)}_ms": percentile(found, 95) - base_ms
        for loss, found in waits.items()
        if loss and found
    }


# --- 21: jitter, reordering and a clock that runs fast --------------------------------------------------------


async def _jitter(bench: Bench, number: int) -> Trial:
    wanted_ms = sizes_of(bench).jitter_s * 1000.0
    seed = seed_of(bench, 21, number)
    link = Link(jitter_ms=50.0, reorder=True, skew_ppm=200.0, seed=seed)
    before = (await counted(bench, _UNDERRUNS)).get(_UNDERRUNS)
    rng = rng_of(bench, 21, number)
    asked: list[tuple[float, Span]] = []
    questions = bench.material.questions()
    async with called(bench, CallOptions(link=link, max_call_s=wanted_ms / 1000.0 + 120.0)) as call:
        while call.now_ms < wanted_ms:
            await call.wait_ms(rng.uniform(600.0, 1200.0))
            start_ms = call.now_ms
            voiced = await say(call, pick(questions, number + len(asked)))
            asked.append((start_ms, voiced))
            await let_it_answer(call, voiced.end_ms)
    recording = await recording_of(call)
    after = (await counted(bench, _UNDERRUNS)).get(_UNDERRUNS)
    minutes = recording.duration_ms / 60_000.0
    underruns = after - before if after is not None and before is not None else float(recording.wire.late)
    ends = [start_ms for start_ms, _ in asked[1:]] + [recording.duration_ms]
    turns = [turn_heard(recording, start_ms, until) for (start_ms, _), until in zip(asked, ends, strict=True)]
    waits = [turn.voice_to_voice_ms for turn in turns if turn is not None and turn.voice_to_voice_ms is not None]
    values = {
        "underruns_per_min": underruns / minutes,
        "av_drift_ms": media_drift_ms(recording),
        "late_per_min": recording.wire.late / minutes,
        "answered": float(np.mean([turn is not None and turn.reply_ms is not None for turn in turns])),
        "minutes": minutes,
    }
    if len(waits) >= 6:
        values["delay_drift_ms"] = drift(waits)
    wrong = [name for name, limit in (("underruns_per_min", 1.0), ("av_drift_ms", 40.0)) if values[name] > limit]
    failed = ", ".join(f"{name} {values[name]:.1f}" for name in wrong) or None
    details = {"wire": repr(recording.wire), "turns": len(asked)}
    return Trial(21, seed, "jitter ± 50 ms, reordering, 200 ppm", values, recording, None, failed, details=details)


def media_drift_ms(recording: Recording) -> float:
    """By how much the agent's media time ran away from its wall time over the call: |last third − first third|, ms.

    Events of the ``duplex.`` kind carry both: ``at_ms`` counts what was heard, ``at_s`` is the session's clock.
    """
    told = [
        float(e.event["at_ms"]) - 1000.0 * float(e.event["at_s"])
        for e in recording.events
        if "at_s" in e.event and "at_ms" in e.event and e.at_ms > 2000.0
    ]
    return abs(drift(told))


def drift(values: Sequence[float]) -> float:
    """Median of the last third less the median of the first; 0 with fewer than three."""
    third = len(values) // 3
    return float(np.median(values[-third:]) - np.median(values[:third])) if third else 0.0


async def jitters(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """21: ten minutes on a line with jitter and reordering, and a sound card that runs 200 ppm fast."""
    _needs_a_network(bench)
    async for trial in side_by_side(bench, 21, trials, _jitter, 1):
        yield trial


# --- 22: an outage ---------------------------------------------------------------------------------------------


async def _outage(bench: Bench, number: int) -> Trial:
    """Even trials lose the line in silence, odd ones while the agent is speaking."""
    first = await made(bench.material.follow_up, number)
    second = await made(bench.material.follow_up, number + 1)
    async with called(bench) as call:
        await call.wait_ms(500.0)
        voiced = await say(call, first)
        await let_it_answer(call, voiced.end_ms)
        item_id = _an_item(call)
        if number % 2:
            await begin_story(call, number)
            await in_mid_speech(call, 1000.0)
        cut_ms = call.now_ms
        await call.outage(sizes_of(bench).outage_s)
        back_ms = call.now_ms
        spoken = await _spoken_by(call, back_ms) if number % 2 else False
        if spoken:
            await call.wait_ms(_HEARD_AGAIN_MS)
            call.send({"type": "response.cancel"})
            await call.wait_quiet(500.0, timeout_s=10.0)
        asked = await say(call, second)
        await let_it_answer(call, asked.end_ms)
        kept = await _still_there(call, item_id)
    recording = await recording_of(call)
    answer_ms = starts_ms(recording.agent, asked.end_ms - 200.0, recording.sample_rate_hz)
    values = {
        "answered": float(answer_ms is not None and answer_ms <= asked.end_ms + ANSWER_WITHIN_MS),
        "context_kept": float(kept),
        "stale_ms": stale_ms(recording, back_ms),
    }
    again_ms = None if answer_ms is None else answer_ms - asked.end_ms
    if spoken:
        heard_ms = starts_ms(recording.agent, back_ms, recording.sample_rate_hz)
        again_ms = None if heard_ms is None else heard_ms - back_ms
    if again_ms is not None:
        values["again_ms"] = again_ms
    values["again_in_time"] = float(again_ms is not None and again_ms <= AGAIN_WITHIN_MS)
    wrong = [name for name in ("again_in_time", "context_kept") if not values[name]]
    wrong += ["stale audio"] if values["stale_ms"] > 300.0 else []
    span = Span(cut_ms - 2000.0, recording.duration_ms)
    name = f"{second.name}, {'speaking' if number % 2 else 'silent'}"
    failed = f"failed: {', '.join(wrong)}" if wrong else None
    noticed = [(round(e.at_ms), e.type) for e in recording.events if e.type.startswith("duplex.line.")]
    details = {"cut_ms": round(cut_ms), "back_ms": round(back_ms), "line": noticed}
    return Trial(22, seed_of(bench, 22, number), name, values, recording, span, failed, details=details)


async def _spoken_by(call: Call, back_ms: float) -> bool:
    """Whether the agent is audible again by itself within two seconds."""
    try:
        await call.wait_audible(timeout_s=(back_ms + AGAIN_WITHIN_MS - call.now_ms) / 1000.0)
    except TimeoutError:
        return False
    return True


def _an_item(call: Call) -> str | None:
    """The newest item of the conversation so far."""
    items = [e.event["item"]["id"] for e in call.events if e.type == "conversation.item.done"]
    return str(items[-1]) if items else None


async def _still_there(call: Call, item_id: str | None) -> bool:
    """Whether the server still knows an item from before."""
    if item_id is None:
        return False
    call.send({"type": "conversation.item.retrieve", "item_id": item_id})
    try:
        await call.wait_for("conversation.item.retrieved", timeout_s=3.0)
    except TimeoutError:
        return False
    return True


def outages(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """22: the line is cut for three seconds."""
    _needs_a_network(bench)
    return one_by_one(bench, 22, trials, _outage)


SCENARIOS = (
    Scenario(
        20,
        "packet loss of 1, 5 and 10 %, in bursts of 60 ms",
        (
            *(
                Limit(f"yielded_{percent}", "mean", at_least=share)
                for percent, share in (("1", 0.95), ("5", 0.90), ("10", 0.80))
            ),
            *(
                Limit(f"added_p95_{percent}_ms", "max", at_most=added_ms)
                for percent, added_ms in (("1", 100.0), ("5", 200.0), ("10", 400.0))
            ),
        ),
        losses,
        voice="human",
        minutes=22.0,
    ),
    Scenario(
        21,
        "jitter ± 50 ms, reordering, 200 ppm, ten minutes",
        (Limit("underruns_per_min", "max", at_most=1.0), Limit("av_drift_ms", "max", at_most=40.0)),
        jitters,
        voice="human",
        trials=2,
        minutes=21.0,
    ),
    Scenario(
        22,
        "the line is cut for 3 s",
        (
            Limit("again_in_time", "mean", at_least=0.95),
            Limit("context_kept", "mean", at_least=1.0),
            Limit("stale_ms", "max", at_most=300.0),
        ),
        outages,
        minutes=8.0,
    ),
)
