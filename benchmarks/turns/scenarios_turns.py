"""Scenarios 1 to 5: turns, and pauses inside them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from duplex.benchmarks.turns.contract import Bench, Limit, Scenario, Trial
from duplex.benchmarks.turns.play import Build, Said, several, share_calls, transcripts
from duplex.benchmarks.turns.told import traces, turns_committed
from duplex.benchmarks.turns.trials import CannotRunError, seed_of
from duplex.benchmarks.turns.verdicts import ANSWER_WITHIN_MS, without_asides
from duplex.recording import Recording, Span, starts_ms, turn_heard

SLOW_MS = 900.0  # slower than this is kept for a look
_STAGES = ("end_of_turn", "listener", "thinker", "talker", "first_packet")


def judge_turn(scenario: int, bench: Bench, recording: Recording, said: Said) -> Trial:
    """One turn: was it answered, was it taken over, and how long did that take?

    Values: ``answered`` (after its end, within 10 s: speaking into a turn is no answer to it), ``took_over``,
    ``voice_to_voice_ms`` if it was answered, and the server's own ``first_packet_ms``, ``end_of_turn_ms`` and stages.
    """
    heard = turn_heard(without_asides(recording), said.start_ms, said.until_ms)
    took_over = heard is not None and heard.took_over
    wait_ms = heard.voice_to_voice_ms if heard is not None else None
    answered = wait_ms is not None and wait_ms <= ANSWER_WITHIN_MS
    values = {"answered": float(answered), "took_over": float(took_over)}
    if answered and wait_ms is not None:
        values["voice_to_voice_ms"] = wait_ms
    part = recording.between(said.start_ms, said.until_ms)
    values |= {f"{name}_ms": found for name, found in _first_trace(part).items()}
    failed = None
    if took_over:
        failed = "the agent spoke before the user had finished"
    elif not answered:
        failed = "not answered within 10 s"
    elif wait_ms is not None and wait_ms > SLOW_MS:
        failed = f"answered after {wait_ms:.0f} ms"
    return _trial(scenario, bench, recording, said, values, failed)


def _first_trace(part: Recording) -> dict[str, float]:
    """The trace of the reply that answered: the last one, if the turn was reopened."""
    found = traces(part)
    last = found[-1] if found else {}
    return {name: last[name] for name in _STAGES if last.get(name, -1.0) >= 0.0}


def _trial(
    scenario: int, bench: Bench, recording: Recording, said: Said, values: dict[str, float], failed: str | None
) -> Trial:
    details: dict[str, Any] = {
        "said": said.what.text,
        "voiced_ms": [said.voiced.start_ms, said.voiced.end_ms],
        **transcripts(recording, said.start_ms, said.until_ms),
    }
    part = recording.between(said.start_ms, said.until_ms)
    details["trace"] = next((e.event for e in reversed(part.events) if e.type == "duplex.trace"), None)
    return Trial(
        scenario,
        seed_of(bench, scenario, said.number),
        said.what.name,
        values,
        recording,
        Span(said.start_ms, said.until_ms),
        failed,
        details=details,
    )


async def plain_questions(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """1: human voices, ten turns to a call."""
    chosen = await several(bench.material.question, trials)
    async for trial in share_calls(bench, 1, chosen, lambda recording, said: judge_turn(1, bench, recording, said)):
        yield trial


async def commit_to_packet(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """2: a synthetic voice; from the decision that the turn is over to the first packet."""

    def judge(recording: Recording, said: Said) -> Trial:
        if not recording.events:
            raise CannotRunError(f"{bench.door.name}: nothing on this door tells when a turn was committed.")
        part = recording.between(said.start_ms, said.until_ms)
        values: dict[str, float] = {}
        if (packet_ms := _first_trace(part).get("first_packet")) is not None:
            values["first_packet_ms"] = packet_ms
        committed = [e.at_ms for e in part.events if e.type == "input_audio_buffer.committed"]
        heard_ms = starts_ms(part.agent, committed[-1] - 40.0, part.sample_rate_hz) if committed else None
        if heard_ms is not None:
            values["commit_to_audible_ms"] = heard_ms - committed[-1]
        values["answered"] = float(heard_ms is not None)
        slow = values.get("first_packet_ms", 0.0) > 200.0
        failed = "not answered" if heard_ms is None else f"{values['first_packet_ms']:.0f} ms" if slow else None
        return _trial(2, bench, recording, said, values, failed)

    chosen = await several(bench.material.follow_up, trials)
    async for trial in share_calls(bench, 2, chosen, judge):
        yield trial


async def _pauses(bench: Bench, scenario: int, build: Build, trials: int) -> AsyncIterator[Trial]:
    """Turns with pauses in them; the agent should neither speak into one nor take it for the end."""

    def judge(recording: Recording, said: Said) -> Trial:
        trial = judge_turn(scenario, bench, recording, said)
        turns = turns_committed(recording, said.start_ms, said.until_ms)
        values = {
            "takeover": trial.values["took_over"],
            "answered": trial.values["answered"],
        }
        if recording.events:  # a telephone tells nothing of turns
            values["one_turn"] = float(turns <= 1)
        if "voice_to_voice_ms" in trial.values:
            values["voice_to_voice_ms"] = trial.values["voice_to_voice_ms"]
        failed = trial.failed if values["takeover"] or not values["answered"] else None
        failed = failed or (f"{turns} turns were made of it" if turns > 1 else None)
        return _trial(scenario, bench, recording, said, values, failed)

    chosen = await several(build, trials)
    async for trial in share_calls(bench, scenario, chosen, judge):
        yield trial


async def short_pauses(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """3: human sentences with a pause of 0.4 to 1.0 s inside."""
    async for trial in _pauses(bench, 3, bench.material.paused, trials):
        yield trial


async def pauses_after_um(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """4: 1.5 s of silence after an "um"."""
    async for trial in _pauses(bench, 4, bench.material.um_pause, trials):
        yield trial


async def digits(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """5: a number in groups of digits, 0.7 s between them."""
    async for trial in _pauses(bench, 5, bench.material.digits, trials):
        yield trial


SCENARIOS = (
    Scenario(
        1,
        "plain question",
        (
            Limit("answered", "mean", at_least=0.95),
            Limit("voice_to_voice_ms", "p50", at_most=450.0),
            Limit("voice_to_voice_ms", "p95", at_most=900.0),
        ),
        plain_questions,
        voice="human",
        minutes=3.0,
    ),
    Scenario(
        2,
        "commit to first packet",
        (Limit("first_packet_ms", "p50", at_most=60.0), Limit("first_packet_ms", "p95", at_most=200.0)),
        commit_to_packet,
        minutes=2.5,
    ),
    Scenario(
        3,
        "pause in mid-sentence, 0.4 to 1.0 s",
        (Limit("takeover", "mean", at_most=0.10),),
        short_pauses,
        voice="human",
        minutes=3.5,
    ),
    Scenario(
        4,
        "pause of 1.5 s after “um”",
        (Limit("takeover", "mean", at_most=0.25),),
        pauses_after_um,
        voice="both",
        minutes=3.5,
    ),
    Scenario(
        5,
        "digits in groups, 0.7 s apart",
        (Limit("takeover", "mean", at_most=0.10), Limit("one_turn", "mean", at_least=0.90)),
        digits,
        voice="human",
        minutes=4.0,
    ),
)
