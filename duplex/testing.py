"""Public fakes: what you need to test a bot, a line or an agent without waiting for real time.

``VirtualTimeLoop``   an asyncio loop whose clock jumps to the next timer instead of sleeping
``LoopbackLine``      a line in memory: say something into it, read what was played and told
``ScriptedUser``      speech-like audio at given times, for a ``LoopbackLine``
``ScriptedAgent``     an agent without models: hears energy, answers from a script, after exact delays
``load_echo_agent``   the entry point ``echo``: answers each turn with its own sound
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from duplex.agent import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentInfo,
    AgentSession,
    AgentSettings,
    BeginReply,
    CommitTurn,
    DropReply,
    FinalTranscript,
    ForgetTurn,
    Heard,
    ReopenTurn,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    ResumeReply,
    SpeechStarted,
    SpeechStopped,
    UserState,
    Word,
)
from duplex.clock import Clock
from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Image, Origin, Packet, Samples, silence
from duplex.line import OutPacket, PlayoutReport
from duplex.turn import Floor, User

T = TypeVar("T")
E = TypeVar("E")


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: tells the loop by how much time would have passed."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # Only another thread or a socket could go on from here. Give it a moment of real time.
            ready = super().select(5.0)
            if not ready:
                raise RuntimeError("Virtual time stands still: nothing is scheduled and nothing arrived for 5 s.")
            return ready
        self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: an hour of timers takes as long as the work in it."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def _advance(self, seconds: float) -> None:
        self._virtual_s += seconds

    def time(self) -> float:
        return self._virtual_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@dataclass(slots=True)
class LoopbackLine:
    """A line in memory. ``say`` queues what the person says; ``played`` and ``events`` are what came of it.

    ``endless``: after what was queued comes silence (a microphone), otherwise nothing (a file).
    """

    lead_packets: int = 1
    closed: bool = False
    endless: bool = True
    played: list[OutPacket] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    image: Image | None = None
    report: PlayoutReport | None = None
    closed_because: str | None = None
    _mic: deque[Samples] = field(default_factory=deque)
    _pts: int = 0

    def say(self, samples: Samples) -> None:
        """Queues float32[n] at 24 kHz; n is padded to whole packets."""
        padded = np.pad(samples.astype(np.float32), (0, -len(samples) % PACKET_SAMPLES))
        self._mic.extend(padded.reshape(-1, PACKET_SAMPLES))

    def receive(self) -> Sequence[Packet]:
        if self._mic:
            packet = Packet(self._pts, self._mic.popleft())
        elif self.endless:
            packet = Packet(self._pts, silence(), Origin.SILENCE)
        else:
            return ()
        self._pts += PACKET_SAMPLES
        return (packet,)

    def take_image(self) -> Image | None:
        image, self.image = self.image, None
        return image

    def send(self, packet: OutPacket) -> None:
        self.played.append(packet)

    def flush(self) -> int:
        return 0

    def playout(self) -> PlayoutReport | None:
        return self.report

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def close(self, reason: str) -> None:
        self.closed = True
        self.closed_because = reason

    def audio(self) -> Samples:
        """Everything played, float32[n] at 24 kHz."""
        return np.concatenate([packet.samples for packet in self.played]) if self.played else silence(0)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def tone(duration_s: float, hz: float = 220.0, level_dbfs: float = -20.0) -> Samples:
    """A sine at an RMS of ``level_dbfs``: float32[duration_s * 24000]."""
    t = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    amplitude = 10 ** (level_dbfs / 20) * np.sqrt(2.0)
    return np.asarray(amplitude * np.sin(2 * np.pi * hz * t), dtype=np.float32)


@dataclass(slots=True)
class ScriptedUser:
    """What the person does, as (start_s, duration_s) stretches of speech on an otherwise silent line."""

    speech: Sequence[tuple[float, float]]
    hz: float = 220.0

    def samples(self, total_s: float) -> Samples:
        audio = np.zeros(round(total_s * SAMPLE_RATE_HZ), dtype=np.float32)
        for start_s, duration_s in self.speech:
            start = round(start_s * SAMPLE_RATE_HZ)
            stretch = tone(duration_s, self.hz)[: max(0, len(audio) - start)]
            audio[start : start + len(stretch)] = stretch
        return audio


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """``audio_after_s``: from being asked to the first audio. ``duration_s`` of tone; words share it evenly."""

    text: str = "All right, here is my answer."
    audio_after_s: float = 0.1
    duration_s: float = 2.0


@dataclass(frozen=True, slots=True)
class ScriptedTiming:
    """The scripted ear: energy and silence only.

    A pause of ``pause_s`` starts speculation, one of ``complete_s`` ends the turn. Over our own speech,
    ``interrupt_s`` of voice interrupts, and less than that followed by ``backchannel_s`` of quiet was a
    backchannel.
    """

    pause_s: float = 0.1
    complete_s: float = 0.3
    interrupt_s: float = 0.6
    backchannel_s: float = 0.2


class ScriptedAgent:
    """An agent without models, exact to the frame. Opens any number of sessions; keeps them in ``sessions``."""

    def __init__(
        self,
        replies: Sequence[ScriptedReply] = (ScriptedReply(),),
        timing: ScriptedTiming = ScriptedTiming(),
        *,
        echo: bool = False,
    ) -> None:
        self.replies, self.timing, self.echo = tuple(replies), timing, echo
        self.sessions: list[ScriptedSession] = []

    @property
    def info(self) -> AgentInfo:
        return AgentInfo("echo" if self.echo else "scripted")

    async def start(self) -> None: ...

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        session = ScriptedSession(self)
        self.sessions.append(session)
        return session

    async def close(self) -> None: ...


class ScriptedSession:
    """One session of a :class:`ScriptedAgent`; ``commands`` keeps every command it was given."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self._agent = agent
        self.commands: list[AgentCommand] = []
        self.closed = False
        self._out: list[AgentEvent] = []
        self._now_s = 0.0
        self._voiced_s = 0.0  # length of the running stretch of speech
        self._quiet_s = 0.0
        self._in_speech = False
        self._had_speech = False
        self._recording: list[Samples] = []
        self._committed: list[Samples] = []  # the last turn's sound, for a reply that was not begun before
        self._due: list[tuple[float, ScriptedReply, str]] = []
        self._n_replies = 0

    def step(self, heard: Heard) -> None:
        self._now_s = heard.now_s
        frame = heard.frame
        seconds = len(frame.samples) / SAMPLE_RATE_HZ
        voiced = float(np.sqrt(np.mean(frame.samples**2))) > 10 ** (-40 / 20)
        if voiced:
            if not self._in_speech:
                self._in_speech, self._voiced_s = True, 0.0
                self._out.append(SpeechStarted(frame.pts))
            self._had_speech = True
            self._voiced_s += seconds
            self._quiet_s = 0.0
        else:
            if self._in_speech:
                self._in_speech = False
                self._out.append(SpeechStopped(frame.pts))
            self._quiet_s += seconds
        if self._had_speech and self._agent.echo:
            self._recording.append(frame.samples)
            del self._recording[: max(0, len(self._recording) - 1500)]
        self._out.append(UserState(frame.end_pts, self._predict(voiced, heard.floor)))
        self._play_due()

    def _predict(self, voiced: bool, floor: Floor) -> User:
        timing = self._agent.timing
        if not self._had_speech:
            return User.IDLE
        if floor in (Floor.SPEAKING, Floor.HOLDING):
            if voiced:
                return User.INTERRUPTING if self._voiced_s >= timing.interrupt_s - 1e-9 else User.SPEAKING
            if self._quiet_s >= timing.backchannel_s - 1e-9:
                self._forget()
                return User.BACKCHANNEL
            return User.PAUSED_INCOMPLETE
        if voiced:
            return User.SPEAKING
        if self._quiet_s >= timing.complete_s - 1e-9:
            return User.TURN_COMPLETE
        return User.PAUSED_INCOMPLETE if self._quiet_s >= timing.pause_s - 1e-9 else User.SPEAKING

    def _forget(self) -> None:
        self._had_speech = False
        self._recording = []

    def _play_due(self) -> None:
        for due in [due for due in self._due if due[0] <= self._now_s + 1e-9]:
            self._due.remove(due)
            _, script, reply_id = due
            sound = self._recording or self._committed
            audio = np.concatenate(sound) if self._agent.echo and sound else tone(script.duration_s)
            texts = script.text.split()
            edges = np.linspace(0, len(audio), len(texts) + 1).astype(int)
            words = tuple(Word(t, int(a), int(b)) for t, a, b in zip(texts, edges[:-1], edges[1:], strict=True))
            self._out += [ReplyText(reply_id, script.text), ReplyAudio(reply_id, audio, words), ReplyEnd(reply_id)]

    def collect(self) -> Sequence[AgentEvent]:
        out, self._out = self._out, []
        return out

    def command(self, command: AgentCommand) -> None:
        self.commands.append(command)
        match command:
            case BeginReply(reply_id=reply_id):
                script = self._agent.replies[self._n_replies % len(self._agent.replies)]
                self._n_replies += 1
                self._due.append((self._now_s + script.audio_after_s, script, reply_id))
            case DropReply(reply_id=reply_id):
                self._due = [due for due in self._due if due[2] != reply_id]
            case CommitTurn(turn_id=turn_id):
                self._out.append(FinalTranscript(turn_id, "(speech)"))
                self._had_speech = False
                self._committed, self._recording = self._recording, []
            case ReopenTurn():
                self._had_speech = True
            case ResumeReply() | ForgetTurn():
                self._forget()
            case _:
                pass

    def close(self) -> None:
        self.closed = True


def load_echo_agent(options: Mapping[str, Any]) -> Agent:
    """Entry point ``echo``: hears a turn by its energy and answers with the same sound. Needs no models."""
    return ScriptedAgent((ScriptedReply(text="(echo)", audio_after_s=0.0),), ScriptedTiming(**options), echo=True)
