"""Scenarios 9 and 10: what an interruption leaves behind, in the conversation and in the turns after it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from duplex.benchmarks.turns.contract import Bench, Call, CallOptions, Limit, Scenario, Trial
from duplex.benchmarks.turns.overlap import unjudged, until_answered
from duplex.benchmarks.turns.play import STORYTELLER, begin_story, in_mid_speech, let_it_answer, made, say
from duplex.benchmarks.turns.told import replies, reply_spoken_at
from duplex.benchmarks.turns.trials import called, one_by_one, recording_of, rng_of, seed_of
from duplex.benchmarks.turns.verdicts import ANSWER_WITHIN_MS, MemoryHeard, memory_heard, stop_heard
from duplex.recording import Recording, Span, first_audible_ms, starts_ms, stops_ms

_EARLY_MS = 300.0
_EARLIER_MS = 60.0  # the first packet arrives a little before it is heard


async def _memory(bench: Bench, number: int) -> Trial:
    """A story, an interruption, and a new question."""
    rng = rng_of(bench, 9, number)
    interruption = await made(bench.material.interruption, number)
    question = await made(bench.material.follow_up, number)
    asked: Span | None = None
    async with called(bench, CallOptions(instructions=STORYTELLER)) as call:
        await call.wait_ms(300.0)
        began_ms = call.now_ms
        if not await begin_story(call, number) or not await in_mid_speech(call, rng.uniform(1500.0, 3500.0)):
            return unjudged(9, bench, number, interruption, call.recording(), "the story was over too early")
        voiced = await say(call, interruption)
        await until_answered(call, 1000.0)
        await _silence(call)
        asked_ms = call.now_ms
        asked = await say(call, question)
        await let_it_answer(call, asked.end_ms)
    recording = await recording_of(call)
    span = Span(began_ms, recording.duration_ms)
    heard = stop_heard(recording, voiced.start_ms - 50.0, asked_ms)
    if heard is None or not heard.valid or not heard.yielded or heard.stop_ms is None:
        return unjudged(9, bench, number, interruption, recording, "it was not interrupted", span)
    answer_ms = starts_ms(recording.agent, asked.end_ms - 200.0, recording.sample_rate_hz)
    answered = answer_ms is not None and answer_ms <= asked.end_ms + ANSWER_WITHIN_MS
    values = {"answered": float(answered)}
    kept = memory_of(recording, voiced.start_ms, heard.user.start_ms + heard.stop_ms)
    details: dict[str, object] = {"said": [interruption.text, question.text]}
    failed = None if answered else "the question after it was not answered"
    if kept is not None:
        values["wrong_words"] = float(kept.wrong_words)
        details |= {"audible": " ".join(kept.audible), "kept": " ".join(kept.kept)}
        if kept.wrong_words > 1:
            failed = failed or f"memory is {kept.wrong_words} words off what was audible"
    seed = seed_of(bench, 9, number)
    return Trial(9, seed, interruption.name, values, recording, span, failed, details=details)


async def _silence(call: Call) -> None:
    """Makes the agent fall silent, so that a question can follow."""
    if any(reply.done_ms is None for reply in replies(call.events)):
        call.send({"type": "response.cancel"})
    try:
        await call.wait_quiet(700.0, timeout_s=8.0)
    except TimeoutError:
        pass  # it goes on; the question is asked all the same


def memory_of(recording: Recording, at_ms: float, cut_ms: float) -> MemoryHeard | None:
    """Memory of the reply that was spoken at ``at_ms`` and fell silent at ``cut_ms``."""
    reply = reply_spoken_at(recording, at_ms)
    if reply is None:
        return None
    item_id = next(
        (
            str(recorded.event.get("item_id"))
            for recorded in recording.events
            if recorded.type in {"duplex.words", "response.output_audio_transcript.delta"}
            and recorded.event.get("response_id") == reply.reply_id
        ),
        None,
    )
    return None if item_id is None else memory_heard(recording, reply.reply_id, item_id, cut_ms)


def memories(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """9: after an interruption, a new question."""
    return one_by_one(bench, 9, trials, _memory)


async def _early(bench: Bench, number: int) -> Trial:
    """A question, an interruption as its answer begins, and another question after that."""
    first = await made(bench.material.follow_up, number)
    interruption = await made(bench.material.interruption, number)
    last = await made(bench.material.follow_up, number + 3)
    async with called(bench) as call:
        await call.wait_ms(500.0)
        voiced = await say(call, first)
        try:
            await call.wait_audible(timeout_s=10.0)
        except TimeoutError:
            return unjudged(10, bench, number, interruption, call.recording(), "the question was not answered", voiced)
        lead = max(0, round((interruption.voiced.start_ms - 10.0) * 24.0))
        played = await call.play(interruption.samples[lead:])
        over_ms = played.start_ms + interruption.voiced.start_ms - lead / 24.0
        over_end_ms = played.start_ms + (interruption.voiced.end_ms - lead / 24.0)
        await let_it_answer(call, over_end_ms)
        asked_ms = call.now_ms
        asked = await say(call, last)
        await let_it_answer(call, asked.end_ms)
    recording = await recording_of(call)
    rate = recording.sample_rate_hz
    span = Span(voiced.start_ms, recording.duration_ms)
    began_ms = first_audible_ms(recording.agent, voiced.end_ms, rate)  # it may be held before it counts as a start
    if began_ms is None or not -_EARLIER_MS <= over_ms - began_ms <= _EARLY_MS:
        why = f"{over_ms:.0f} ms is not within 300 ms of the reply's start, {began_ms or 0.0:.0f} ms"
        return unjudged(10, bench, number, interruption, recording, why, span)
    spoken = [
        reply
        for reply in replies(recording.events)
        if reply.audible_ms is not None
        and reply.created_ms < asked_ms
        and (reply.done_ms is None or reply.done_ms > over_end_ms)
        and reply.audible_ms < asked_ms
    ]
    stopped_ms = stops_ms(recording.agent, over_end_ms, rate)
    free = stopped_ms is not None and stopped_ms <= over_end_ms + 35_000.0
    after_ms = starts_ms(recording.agent, asked.end_ms - 200.0, rate)
    answered = after_ms is not None and after_ms <= asked.end_ms + ANSWER_WITHIN_MS
    values = {
        "one_reply": float(len(spoken) == 1),
        "next_answered": float(answered),
        "no_deadlock": float(free and answered),
    }
    failed = None if len(spoken) == 1 else f"{len(spoken)} replies to it"
    failed = failed if answered else "the next turn was not answered"
    details = {"said": [first.text, interruption.text, last.text]}
    return Trial(10, seed_of(bench, 10, number), interruption.name, values, recording, span, failed, details=details)


def early_interruptions(bench: Bench, trials: int) -> AsyncIterator[Trial]:
    """10: an interruption in the first 300 ms of a reply."""
    return one_by_one(bench, 10, trials, _early)


SCENARIOS = (
    Scenario(
        9,
        "after an interruption, a new question",
        (Limit("answered", "mean", at_least=0.95), Limit("wrong_words", "p95", at_most=1.0)),
        memories,
        voice="both",
        minutes=6.0,
    ),
    Scenario(
        10,
        "interruption within 300 ms of a reply's start",
        (Limit("no_deadlock", "mean", at_least=1.0), Limit("one_reply", "mean", at_least=0.95)),
        early_interruptions,
        voice="both",
        minutes=6.0,
    ),
)
