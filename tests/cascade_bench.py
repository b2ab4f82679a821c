"""A cascade session on a bench: engines that answer when the test says so, no models, no threads, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from duplex.agent import (
    AgentEvent,
    AgentSettings,
    Heard,
    Tool,
    UserState,
)
from duplex.frames import PACKET_SAMPLES, Frame, Image
from duplex.testing import tone
from duplex.thinker_talker import cascade as c
from duplex.thinker_talker.cascade_options import CascadeOptions
from duplex.thinker_talker.ear import WINDOW_PTS, Window
from duplex.thinker_talker.engines import Engines
from duplex.thinker_talker.listener import Transcript
from duplex.thinker_talker.talker import Speech, TalkSink
from duplex.thinker_talker.thinker import ThinkRequest, ThinkSink, Thought
from duplex.turn import Floor, User


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s


@dataclass
class FakeEar:
    on_window: Callable[[Window], None]
    pending: list[np.ndarray] = field(default_factory=list)
    pts: int = 0

    def hear(self, pts: int, samples: np.ndarray, reference: np.ndarray) -> None:
        self.pending.append(samples)
        audio = np.concatenate(self.pending)
        while len(audio) >= WINDOW_PTS:
            window, audio = audio[:WINDOW_PTS], audio[WINDOW_PTS:]
            self.pts += WINDOW_PTS
            voiced = np.abs(window).max() > 0.01
            self.on_window(Window(self.pts, window[:512], *((0.95, -20.0) if voiced else (0.01, -60.0))))
        self.pending = [audio]

    def close(self) -> None: ...


@dataclass
class FakeStream:
    on_result: Callable[[Transcript], None]
    asked: list[tuple[str, int]] = field(default_factory=list)
    pushed: int = 0

    def push(self, samples: np.ndarray) -> None:
        self.pushed += len(samples)

    def request(self, kind: str, request_id: int, *, commands: bool = False) -> None:
        self.asked.append((kind, request_id))

    def answer(self, text: str, **more: Any) -> None:
        kind, request_id = self.asked.pop()
        self.on_result(Transcript(request_id, cast(Any, kind), text, self.pushed, 1.0, 0.9, **more))

    def reset(self) -> None:
        self.pushed = 0
        self.asked.clear()

    def close(self) -> None: ...


@dataclass
class FakeThinker:
    takes_images: bool = False
    calls_tools: bool = True
    expectation: Any = None
    thoughts: list[tuple[ThinkRequest, Thought]] = field(default_factory=list)
    prefills: list[tuple[Sequence[Any], tuple[Tool, ...]]] = field(default_factory=list)

    beside: int = 0

    def open(self) -> FakeThinker:
        return self

    def open_beside(self) -> FakeThinker:
        self.beside += 1
        return replace(self)  # another place; what is asked there lands in the same list

    def think(self, request: ThinkRequest, sink: ThinkSink) -> Thought:
        self.thoughts.append((request, Thought(sink)))
        return self.thoughts[-1][1]

    def prefill(self, messages: Sequence[Any], tools: tuple[Tool, ...] = ()) -> None:
        self.prefills.append((messages, tools))

    def close(self) -> None: ...


@dataclass
class FakeUtterance:
    sink: TalkSink
    clauses: list[str] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False

    def say(self, clause: str) -> None:
        self.clauses.append(clause)

    def end(self) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = True

    def speak(self) -> None:
        self.sink.on_speech(Speech(tone(0.2), 0, (), "".join(self.clauses)))
        self.sink.on_done()


@dataclass
class FakeTalker:
    utterances: list[FakeUtterance] = field(default_factory=list)

    def begin(self, sink: TalkSink) -> FakeUtterance:
        self.utterances.append(FakeUtterance(sink))
        return self.utterances[-1]


class Bench:
    """A cascade session on a bench, with every engine in hand."""

    def __init__(self, options: CascadeOptions | None = None) -> None:
        self.thinker, self.talker, self.prosody_asked = FakeThinker(), FakeTalker(), []
        bench = self

        class Opening:
            def __init__(self, kind: Callable[..., Any]) -> None:
                self.kind = kind
                self.made: list[Any] = []

            def open(self, callback: Any) -> Any:
                self.made.append(self.kind(callback))
                return self.made[-1]

        class Prosody:
            def ask(self, samples: np.ndarray, answer: Callable[[float], None]) -> None:
                bench.prosody_asked.append((len(samples), answer))

        ears, listener = Opening(FakeEar), Opening(FakeStream)
        self.other_talker = FakeTalker()
        talkers = {"joe": self.talker, "amy": self.other_talker}
        engines = Engines(
            cast(Any, ears), cast(Any, Prosody()), cast(Any, listener), cast(Any, self.thinker), cast(Any, talkers)
        )
        self.woken = 0
        self.closed = 0
        self.clock = FakeClock()
        self.session = c.CascadeSession(
            engines, options or CascadeOptions(), AgentSettings(), cast(Any, self.clock), self._wake, self._close
        )
        self.stream: FakeStream = listener.made[0]
        self.pts = 0
        self.floor = Floor.LISTENING
        self.reply_left_s: float | None = None
        self.events: list[AgentEvent] = []

    def _wake(self) -> None:
        self.woken += 1

    def _close(self) -> None:
        self.closed += 1

    def hear(self, seconds: float, *, voice: bool, image: Image | None = None) -> Bench:
        for _ in range(round(seconds / 0.02)):
            samples = tone(0.02) if voice else np.zeros(PACKET_SAMPLES, np.float32)
            frame = Frame(self.pts, samples)
            now_s = self.clock.now_s
            self.session.step(Heard(frame, np.zeros_like(samples), self.floor, 0.0, now_s, image, self.reply_left_s))
            self.pts += PACKET_SAMPLES
            self.clock.now_s += 0.02
            self.collect()
        return self

    def collect(self) -> list[AgentEvent]:
        new = list(self.session.collect())
        self.events += new
        return new

    def command(self, command: Any) -> list[AgentEvent]:
        self.session.command(command)
        return self.collect()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def user(self) -> User:
        return self.of(UserState)[-1].user


def question(bench: Bench, text: str = "What is it?") -> None:
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    bench.stream.answer(text)
    bench.collect()
