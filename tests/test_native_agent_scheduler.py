"""Native calls on the real scheduler and its thread, over an engine without a model: no call knows of the others."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native_fakes import FRAME, FRAME_S, FakeEngine, FakeModel, FakeTokens

from duplex.agent import (
    AgentEvent,
    AgentSettings,
    BeginReply,
    DropReply,
    Fault,
    Heard,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    UserState,
)
from duplex.clock import MonotonicClock
from duplex.errors import AgentBehindError, AgentFullError, ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Frame, Samples, silence
from duplex.scheduler import SchedulerOptions
from duplex.testing import tone
from duplex.thinker_talker.native.agent import NativeAgent
from duplex.thinker_talker.native.native_session import NativeSession
from duplex.thinker_talker.native.options import NativeOptions
from duplex.thinker_talker.native.serving import EngineServing, Loaded
from duplex.turn import Floor

QUIET = silence(FRAME)


class Served:
    """An agent on a started scheduler."""

    def __init__(self, model: FakeModel | None = None, **options: Any) -> None:
        self.engine = FakeEngine(model if model is not None else FakeModel())
        self.woken = threading.Semaphore(0)
        checked = NativeOptions(seed=7, scheduler=SchedulerOptions(calibrate_ticks=0), **options)
        serving = EngineServing(lambda: Loaded(self.engine, FakeTokens()), checked.scheduler)
        self.agent = NativeAgent(checked, serving, ("broken",))
        asyncio.run(self.agent.start())

    def open(self, **settings: Any) -> NativeSession:
        mind = self.agent.open(AgentSettings(**settings), MonotonicClock(), self.woken.release)
        assert isinstance(mind, NativeSession)
        asyncio.run(asyncio.wait_for(mind.wait_ready(), 20))
        return mind

    def close(self) -> None:
        asyncio.run(self.agent.close())


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def heard(k: int, samples: Samples) -> Heard:
    return Heard(Frame(k * FRAME, samples), QUIET, Floor.LISTENING, 0.0, k * FRAME_S)


def step(minds: dict[NativeSession, Samples], k: int) -> dict[NativeSession, list[AgentEvent]]:
    """Frame ``k`` of several calls at once, and all that came of it."""
    for mind, samples in minds.items():
        mind.step(heard(k, samples))
        assert list(mind.collect()) == []  # never in its own tick
    for mind in minds:
        mind.settle()
    return {mind: list(mind.collect()) for mind in minds}


def told(events: list[AgentEvent]) -> list[Any]:
    """Comparable, and without what is said of the user every frame."""
    return [
        (event.reply_id, event.samples.tobytes(), event.words) if isinstance(event, ReplyAudio) else event
        for event in events
        if not isinstance(event, UserState)
    ]


def speech(*voiced: range) -> list[Samples]:
    return [tone(FRAME_S) if any(k in span for span in voiced) else QUIET for k in range(90)]


CALLS = [speech(range(3, 12)), speech(range(5, 9), range(25, 40)), speech(range(2, 6)), speech(range(10, 30))]


def run(served: Served, calls: list[list[Samples]]) -> list[list[AgentEvent]]:
    """Calls at once, the k-th joining k frames later than the first; what each was told."""
    minds: dict[NativeSession, int] = {}
    out: list[list[AgentEvent]] = [[] for _ in calls]
    for now in range(len(calls[0]) + len(calls)):
        if now < len(calls):
            minds[served.open()] = now
        due = {mind: calls[n][now - n] for mind, n in minds.items() if now - n < len(calls[n])}
        for mind, sound in due.items():
            out[minds[mind]] += step({mind: sound}, now - minds[mind])[mind]
        for mind, n in list(minds.items()):
            if now - n == len(calls[n]) - 1:
                mind.close()
    return out


def test_four_calls_that_come_and_go_are_told_what_each_is_told_alone(served: Served) -> None:
    together = run(served, CALLS)
    for events, sound in zip(together, CALLS, strict=True):
        [alone] = run(served, [sound])
        assert told(events) == told(alone)
        assert any(isinstance(event, ReplyEnd) for event in events)
    assert served.engine.brains == {} or served.agent._open == 0


def test_calls_that_step_in_one_tick_are_not_mixed_up(served: Served) -> None:
    first, second = served.open(), served.open()
    texts: dict[NativeSession, str] = {first: "", second: ""}
    for k in range(60):
        sounds = {first: CALLS[0][k], second: CALLS[3][k]}
        for mind, events in step(sounds, k).items():
            texts[mind] += "".join(event.delta for event in events if isinstance(event, ReplyText))
    assert texts[first] == "One two three four five six seven eight"
    assert texts[second].startswith("One two three")
    assert texts[second] != texts[first]
    registry = served.agent.registry
    assert registry is not None
    assert registry.get_sample_value("duplex_scheduler_slots_used") == 2
    first.close()
    second.close()


def test_a_slot_that_fails_is_made_as_new_while_the_other_speaks_on() -> None:
    served = Served(FakeModel(fails_at=frozenset({20})))
    failing = served.open()
    for k in range(10):
        step({failing: CALLS[0][k]}, k)
    other = served.open()
    events: dict[NativeSession, list[AgentEvent]] = {failing: [], other: []}
    for k in range(10, 28):
        for mind, new in step({failing: CALLS[0][k], other: CALLS[0][k - 10]}, k).items():
            events[mind] += new
    [end] = [event for event in events[failing] if isinstance(event, ReplyEnd)]
    assert end.error is not None
    assert "begins anew" in str(end.error)
    assert not [event for event in events[failing] if isinstance(event, Fault)]  # the reply's end says it
    assert not [event for event in events[other] if isinstance(event, ReplyEnd | Fault)]
    assert any(isinstance(event, ReplyAudio) for event in events[other])
    served.close()


def test_words_and_silence_reach_the_engine_frame_by_frame(served: Served) -> None:
    mind = served.open(instructions="Be brief.")
    assert served.engine.settings[0].prompt == "Be brief."
    mind.command(BeginReply("resp_1", (), say="Good day"))
    events: list[AgentEvent] = []
    for k in range(4):
        events += step({mind: QUIET}, k)[mind]
    mind.command(DropReply("resp_1"))
    for k in range(4, 20):
        events += step({mind: QUIET}, k)[mind]
    [brain] = served.engine.brains.values()
    forced = [token for token, _ in brain.seen]
    assert forced[1] == FakeTokens().encode("Good")[0]
    silenced = [k for k, (_, silent) in enumerate(brain.seen) if silent]
    assert silenced == list(range(4, 14))  # 0.8 s
    assert "".join(event.delta for event in events if isinstance(event, ReplyText)) == "Good"
    mind.close()


def test_a_full_engine_and_settings_it_cannot_honour_are_told(served: Served) -> None:
    minds = [served.open() for _ in range(8)]
    with pytest.raises(AgentFullError, match="All 8 slots"):
        served.open()
    minds.pop().close()
    with pytest.raises(ConfigError, match="no voice 'other'"):
        served.open(voice="other")
    with pytest.raises(ConfigError, match="file is no voice"):  # only the engine knows; the call is not answered
        served.open(voice="broken")
    for mind in minds:
        mind.close()


def test_a_scheduler_that_ends_ends_its_calls(served: Served) -> None:
    mind = served.open()
    step({mind: QUIET}, 0)
    served.close()
    [fault] = mind.collect()
    assert isinstance(fault, Fault)
    assert fault.fatal
    mind.step(heard(1, QUIET))
    assert list(mind.collect()) == []
    mind.close()
    assert served.engine.closed
    with pytest.raises(AgentFullError):
        served.agent.open(AgentSettings(), MonotonicClock(), lambda: None)


def test_frames_that_waited_too_long_are_lost_and_told_of_once() -> None:
    held, entered = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def step(self, frames: Any) -> Any:
            if self.settings:
                entered.set()
                held.wait(10)
            return super().step(frames)

    served = Served()
    served.close()
    served.engine = Slow(FakeModel())
    served.agent = NativeAgent(
        served.agent.options,
        EngineServing(lambda: Loaded(served.engine, FakeTokens()), SchedulerOptions(calibrate_ticks=0)),
    )
    asyncio.run(served.agent.start())
    mind = served.open()
    mind.step(heard(0, QUIET))
    assert entered.wait(10)
    for k in range(1, 12):  # one is being stepped, and four may wait
        mind.step(heard(k, QUIET))
        mind.collect()
    held.set()
    mind.settle()
    events = list(mind.collect())
    faults = [event for event in events if isinstance(event, Fault)]
    assert len(faults) == 1
    assert isinstance(faults[0].error, AgentBehindError)  # which a page need not make much of
    assert "fell behind" in str(faults[0].error)
    assert len([event for event in events if isinstance(event, UserState)]) >= 11  # time went by for the user
    assert len(served.engine.brains[1].seen) == 5
    mind.close()
    served.close()


def test_the_sound_of_a_reply_is_the_engines_to_the_sample(served: Served) -> None:
    mind = served.open()
    events: list[AgentEvent] = []
    for k, sound in enumerate(CALLS[0]):
        events += step({mind: sound}, k)[mind]
    made = np.concatenate([event.samples for event in events if isinstance(event, ReplyAudio)])
    assert len(made) % 480 == 0
    loud = np.flatnonzero(made)
    assert loud[-1] - loud[0] + 2 == pytest.approx(33 * FRAME, abs=2)
    assert np.sqrt(np.mean(made[loud[0] : loud[-1]] ** 2)) == pytest.approx(0.1, rel=0.01)
    assert loud[0] / SAMPLE_RATE_HZ < 0.3
    mind.close()


def test_a_call_that_is_over_leaves_nothing_behind(served: Served) -> None:
    mind = served.open()
    for k in range(10):
        step({mind: CALLS[0][k]}, k)
    gone = weakref.ref(mind)
    mind.close()
    other = served.open()  # whose first frame is stepped after the slot was left
    step({other: QUIET}, 0)
    del mind
    gc.collect()
    assert gone() is None
    assert len(served.engine.brains) == 1
    other.close()
