"""The native agent by its name, on a tiny random model: codec, backbone, scheduler and session, as they are served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from duplex.agent import (
    AgentEvent,
    AgentSettings,
    BeginReply,
    DropReply,
    Heard,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    UserState,
)
from duplex.clock import MonotonicClock
from duplex.errors import AgentFullError, ConfigError
from duplex.frames import Frame, Samples, silence
from duplex.registry import create_agent
from duplex.thinker_talker.native.agent import NativeAgent
from duplex.thinker_talker.native.checkpoints.text_tokens import ByteTokens
from duplex.thinker_talker.native.native_session import NativeSession
from duplex.turn import Floor

FRAME, FRAME_S = 1920, 0.08
FRAMES = 40
OPTIONS = {"preset": "tiny", "device": "cpu", "seed": 11, "max_sessions": 4, "scheduler": {"calibrate_ticks": 1}}


@pytest.fixture(scope="module")
def agent() -> Iterator[NativeAgent]:
    torch.set_num_threads(1)
    agent = create_agent("moshi", OPTIONS)
    assert isinstance(agent, NativeAgent)
    asyncio.run(agent.start())
    yield agent
    asyncio.run(agent.close())


def voice(call: int) -> list[Samples]:
    """Something like speech with pauses, different for each call."""
    rng = np.random.default_rng(call)
    t = np.arange(FRAMES * FRAME) / 24_000
    sound = 0.2 * np.sin(2 * np.pi * (110 + 37 * call) * t) * (np.sin(2 * np.pi * (1 + call) * t) > 0)
    return list((sound + 0.002 * rng.standard_normal(len(t))).astype(np.float32).reshape(FRAMES, FRAME))


@dataclass(eq=False)
class Caller:
    """One call, stepped by hand; ``events``: all it was told."""

    mind: NativeSession
    events: list[AgentEvent]
    k: int = 0

    @classmethod
    def of(cls, agent: NativeAgent, **settings: Any) -> Caller:
        mind = agent.open(AgentSettings(**settings), MonotonicClock(), lambda: None)
        assert isinstance(mind, NativeSession)
        asyncio.run(asyncio.wait_for(mind.wait_ready(), 30))
        return cls(mind, [])

    def begin(self, samples: Samples) -> None:
        frame = Frame(self.k * FRAME, samples)
        self.mind.step(Heard(frame, silence(FRAME), Floor.LISTENING, 0.0, self.k * FRAME_S))
        self.events += self.mind.collect()
        self.k += 1

    def end(self) -> None:
        self.mind.settle()
        self.events += self.mind.collect()

    def told(self) -> list[Any]:
        """Comparable."""
        return [(e.samples.tobytes(), e.words) if isinstance(e, ReplyAudio) else e for e in self.events]

    def text(self) -> str:
        return "".join(event.delta for event in self.events if isinstance(event, ReplyText))


def test_four_calls_that_join_and_leave_say_what_each_says_alone(agent: NativeAgent) -> None:
    together: list[Caller] = []
    sounds = [voice(call) for call in range(4)]
    for now in range(FRAMES + 4 * 7):
        if now % 7 == 0 and len(together) < 4:
            together.append(Caller.of(agent))
        stepped = [caller for caller in together if caller.k < FRAMES]
        for caller in stepped:
            caller.begin(sounds[together.index(caller)][caller.k])
        for caller in stepped:
            caller.end()
            if caller.k == FRAMES:
                caller.mind.close()
    for call, caller in enumerate(together):
        alone = Caller.of(agent)
        for frame in sounds[call]:
            alone.begin(frame)
            alone.end()
        alone.mind.close()
        assert alone.told() == caller.told()
        assert caller.text()
    assert len({caller.text() for caller in together}) == 4  # each heard something else


def test_words_that_are_given_are_said_and_silence_is_kept(agent: NativeAgent) -> None:
    caller = Caller.of(agent)
    caller.mind.command(BeginReply("resp_1", (), say="Good day"))
    for _ in range(12):
        caller.begin(silence(FRAME))
        caller.end()
    assert caller.text().startswith("Good day")
    assert {event.reply_id for event in caller.events if isinstance(event, ReplyAudio)} == {"resp_1"}
    caller.mind.command(DropReply("resp_1", "Good"))
    caller.events.clear()
    for _ in range(10):  # 0.8 s
        caller.begin(silence(FRAME))
        caller.end()
    assert {type(event) for event in caller.events} == {UserState}
    caller.mind.close()


def test_a_reply_of_a_model_that_never_rests_ends_all_the_same() -> None:
    agent = create_agent("moshi", {**OPTIONS, "max_sessions": 1, "turn": {"longest_reply_s": 1.2}})
    assert isinstance(agent, NativeAgent)
    asyncio.run(agent.start())
    caller = Caller.of(agent)
    with pytest.raises(AgentFullError):
        Caller.of(agent)
    for frame in voice(0):
        caller.begin(frame)
        caller.end()
    ends = [event for event in caller.events if isinstance(event, ReplyEnd)]
    assert len(ends) == 2
    assert all(end.error is None for end in ends)
    caller.mind.close()
    asyncio.run(agent.close())


def test_a_text_stream_of_bytes_is_whole_characters() -> None:
    from duplex.thinker_talker.native.spoken_text import SpokenText

    tokens = ByteTokens(260)
    text = SpokenText(tokens, FRAME, 1)
    deltas, words = "", []
    for token in [*tokens.encode("Voilà é"), 3]:
        delta, whole = text.push(token)
        deltas += delta
        words += whole
    assert deltas == "Voilà é"
    assert [word.text for word in words] == ["Voilà", "é"]


def test_options_that_cannot_work_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "ada.wav").touch()
    assert create_agent("moshi", {"voices_dir": str(tmp_path)}).info.voices == ("ada",)
    with pytest.raises(ConfigError, match="no directory"):
        create_agent("moshi", {"voices_dir": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"agent\.options\.turn\.interupt_s"):
        create_agent("moshi", {"turn": {"interupt_s": 1}})
    with pytest.raises(ConfigError, match="inject_template"):
        create_agent("moshi", {"inject_template": "no place for it"})
