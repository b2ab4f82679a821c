"""Scenarios 6 to 11, 16 and 17: speech and sounds over the agent's speech."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from duplex.benchmarks.turns.contract import Bench, CallOptions, Echo, Limit, Link, Scenario, Trial
from duplex.benchmarks.turns.overlap import dismissible, interruption, over_a_story, over_trial, unjudged
from duplex.benchmarks.turns.play import Build, Sayable, Sound, let_it_answer, made, pick, say
from duplex.benchmarks.turns.trials import called, one_by_one, recording_of, rng_of, seed_of
from duplex.benchmarks.turns.verdicts import clash_heard, stop_heard
from duplex.recording import Span

Run = Callable[[Bench, int], AsyncIterator[Trial]]

_SILENT_MS = 2_000.0
_ECHOES = tuple(Echo(level_db, delay_ms) for level_db in (-20.0, -10.0, -30.0) for delay_ms in (120.0, 40.0, 250.0))


def _sounds(scenario: int, build: Callable[[Bench], Build], share: str) -> Run:
    """A scenario that lets something be heard over a story, each on a call of its own; none should stop it."""

    async def one(bench: Bench, number: int) -> Trial:
        told = await over_a_story(bench, scenario, number, build(bench))
        return dismissible(scenario, bench, number, told, share)

    def run(bench: Bench, trials: int) -> AsyncIterator[Trial]:
        return one_by_one(bench, scenario, trials, one)

    return run


def _noise_event(bench: Bench) -> Build:
    def build(number: int) -> Sayable:
        noise = bench.material.noise_event(number)
        return Sound.of(noise.name, noise.samples)

    return build


async def _interrupt(bench: Bench, number: int) -> Trial:
    told = await over_a_story(
        bench, 7, number, bench.material.interruption, wait_ms=(1400.0, 1600.0), after_ms=700.0, to_answer=True
    )
    return interruption(7, bench, number, told)


def interruptions(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """7: a real interruption 1.5 s into the agent's speech."""
    return one_by_one(bench, 7, trials, _interrupt)


async def _stop(bench: Bench, number: int) -> Trial:
    told = await over_a_story(bench, 8, number, bench.material.stop, after_ms=3500.0)
    trial = interruption(8, bench, number, told)
    if not trial.valid or told.voiced is None:
        return trial
    heard = stop_heard(told.recording, told.voiced.start_ms - 50.0, told.recording.duration_ms)
    silent_ms = 0.0 if heard is None else heard.silent_ms
    values = {name: value for name, value in trial.values.items() if name != "answered"}
    values |= {"silent_ms": silent_ms, "stayed_silent": float(silent_ms >= _SILENT_MS)}
    failed = trial.failed or (f"it spoke again after {silent_ms:.0f} ms" if silent_ms < _SILENT_MS else None)
    return over_trial(8, bench, number, told, values, failed)


def stops(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """8: "Stop." and "Wait.": it stops, and waits."""
    return one_by_one(bench, 8, trials, _stop)


async def _echo_and_interruption(bench: Bench, number: int) -> Trial:
    link = Link(echo=pick(_ECHOES, number), seed=seed_of(bench, 16, number))
    told = await over_a_story(
        bench,
        16,
        number,
        bench.material.interruption,
        wait_ms=(1400.0, 2000.0),
        link=link,
        after_ms=700.0,
        to_answer=True,
    )
    return interruption(16, bench, number, told, slow_ms=800.0)


def echo_and_interruptions(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """16: the agent hears itself, and then a person too."""
    return one_by_one(bench, 16, trials, _echo_and_interruption)


async def _clash(bench: Bench, number: int) -> Trial:
    """A question, and at the moment its answer begins, more from the user."""
    first = await made(bench.material.follow_up, number)
    second = await made(bench.material.interruption, number)
    rng = rng_of(bench, 17, number)
    async with called(bench, CallOptions()) as call:
        await call.wait_ms(500.0)
        voiced = await say(call, first)
        try:
            await call.wait_for("input_audio_buffer.committed", timeout_s=5.0)
        except TimeoutError:
            return unjudged(
                17, bench, number, second, call.recording(), "the question was not taken for a turn", voiced
            )
        await call.wait_ms(rng.uniform(0.0, 60.0))
        lead = max(0, round((second.voiced.start_ms - 10.0) * 24.0))
        began_ms = call.now_ms
        await call.play(second.samples[lead:])
        await let_it_answer(call, call.now_ms)
    recording = await recording_of(call)
    heard = clash_heard(recording, began_ms, recording.duration_ms)
    span = Span(voiced.start_ms, recording.duration_ms)
    if heard is None:
        return unjudged(17, bench, number, second, recording, "nothing was said", span)
    values = {"resolved": float(heard.resolved), "both_ms": heard.both_ms, "clashed": float(heard.apart_ms is not None)}
    if heard.apart_ms is not None:
        values["apart_ms"] = heard.apart_ms
    failed = None if heard.resolved else f"both spoke for {heard.both_ms:.0f} ms after 1.5 s"
    details = {"said": [first.text, second.text]}
    return Trial(17, seed_of(bench, 17, number), second.name, values, recording, span, failed, details=details)


def clashes(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """17: both start at once."""
    return one_by_one(bench, 17, trials, _clash)


SCENARIOS = (
    Scenario(
        6,
        "“uh-huh” over the agent",
        (Limit("abandoned", "mean", at_most=0.05), Limit("resume_gap_ms", "p95", at_most=600.0)),
        _sounds(6, lambda bench: bench.material.backchannel, "abandoned"),
        voice="both",
        minutes=4.0,
    ),
    Scenario(
        7,
        "interruption 1.5 s in",
        (
            Limit("stop_ms", "p50", at_most=200.0),
            Limit("stop_ms", "p95", at_most=350.0),
            Limit("yielded", "mean", at_least=0.98),
        ),
        interruptions,
        voice="human",
        minutes=4.0,
    ),
    Scenario(
        8,
        "“Stop.” “Wait.”",
        (Limit("stop_ms", "p95", at_most=350.0), Limit("stayed_silent", "mean", at_least=0.95)),
        stops,
        voice="both",
        minutes=4.0,
    ),
    Scenario(
        11,
        "cough, click, door over the agent",
        (Limit("false_stop", "mean", at_most=0.05),),
        _sounds(11, _noise_event, "false_stop"),
        voice="both",
        minutes=4.0,
    ),
    Scenario(
        16,
        "echo and a real interruption",
        (Limit("yielded", "mean", at_least=0.90), Limit("stop_ms", "p95", at_most=800.0)),
        echo_and_interruptions,
        voice="human",
        minutes=4.0,
    ),
    Scenario(
        17,
        "both start at once",
        (Limit("resolved", "mean", at_least=0.95),),
        clashes,
        minutes=4.5,
    ),
)
