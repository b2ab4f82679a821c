"""Delays put where they are wanted: seeded distributions, and an agent one stage of which is slower.

``slowed(agent, thinker=80)`` wraps any agent and adds 80 ms to its thinker, on the session's own clock. It works
from the marks an agent reports (``duplex/stages.py`` has their names): from the end of that stage on, everything
the agent says about the reply comes that much later, just as if the stage had taken longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    Fault,
    FinalTranscript,
    Heard,
    Mark,
    ReplyAudio,
    ReplyEnd,
    ReplyText,
    UserState,
)
from duplex.clock import Clock, Timer
from duplex.errors import ConfigError
from duplex.stages import STAGE_MARKS
from duplex.turn import Floor, User

DelayMs = float | Callable[[int], float]
"""Milliseconds, or a function from the number of the turn or reply in its session (0, 1, …) to milliseconds."""

SLOWABLE: tuple[str, ...] = ("endpointing", "speculation", "listener", "thinker", "talker", "reply")


@dataclass(frozen=True, slots=True)
class Jitter:
    """A seeded normal distribution, cut at zero: the same seed and number give the same milliseconds."""

    mean_ms: float
    sd_ms: float
    seed: int = 0

    def __call__(self, number: int) -> float:
        return max(0.0, float(np.random.default_rng([self.seed, number]).normal(self.mean_ms, self.sd_ms)))


def delay_ms(delay: DelayMs, number: int) -> float:
    """What ``delay`` is for the reply of that number. Raises ``ConfigError`` for less than nothing."""
    ms = float(delay(number) if callable(delay) else delay)
    if not ms >= 0:
        raise ConfigError(f"A delay is {ms:g} ms. Give zero or more: work can be put off, not brought forward.")
    return ms


def slowed(agent: Agent, **delays: DelayMs) -> Agent:
    """``agent`` with milliseconds added to some of its stages.

    Stages: ``endpointing``, ``speculation``, ``listener``, ``thinker``, ``talker``, ``reply`` (``duplex/stages.py``
    defines them). Raises ``ConfigError`` for any other name. A stage the agent never reports ends the session with
    a ``ConfigError``: a delay that has no effect would make a test pass for no reason.
    """
    for name, delay in delays.items():
        if name not in SLOWABLE:
            raise ConfigError(f"There is no stage {name!r} to slow down. Known: {', '.join(SLOWABLE)}.")
        if not callable(delay):
            delay_ms(delay, 0)
    return _SlowedAgent(agent, delays)


class _SlowedAgent:
    def __init__(self, agent: Agent, delays: Mapping[str, DelayMs]) -> None:
        self._agent, self._delays = agent, delays

    @property
    def info(self) -> AgentInfo:
        return self._agent.info

    async def start(self) -> None:
        await self._agent.start()

    def open(self, settings: AgentSettings, clock: Clock, wake: Callable[[], None]) -> AgentSession:
        return _SlowedSession(self._agent.open(settings, clock, wake), self._delays, clock, wake)

    async def close(self) -> None:
        await self._agent.close()


@dataclass(slots=True)
class _Reply:
    """A reply on its way. ``shift_s`` only grows, so what is held leaves in order."""

    number: int
    shift_s: float
    checks: bool
    seen: set[str] = field(default_factory=set)
    held: deque[tuple[float, AgentEvent]] = field(default_factory=deque)  # (due, event), in order


class _SlowedSession:
    """Holds an agent session's events back. Nothing is reordered within one reply."""

    def __init__(
        self, inner: AgentSession, delays: Mapping[str, DelayMs], clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._inner, self._delays, self._clock, self._wake = inner, delays, clock, wake
        self._replies: dict[str, _Reply] = {}
        self._loose: deque[tuple[float, AgentEvent]] = deque()  # of the listener: it belongs to no reply
        self._timers: list[Timer] = []
        self._n_turns = self._n_replies = 0
        self._floor = Floor.LISTENING
        self._listener_ready_s = float("-inf")
        self._paused_since_s: float | None = None
        self._complete_since_s: float | None = None

    def hears(self, text: str) -> None:
        """Passes on the words a test is about to say, if the agent underneath takes them."""
        if (hears := getattr(self._inner, "hears", None)) is None:
            raise ConfigError("This agent takes no words from a test: its session has no method hears(text).")
        hears(text)

    def step(self, heard: Heard) -> None:
        self._floor = heard.floor
        self._inner.step(heard)

    def command(self, command: AgentCommand) -> None:
        match command:
            case BeginReply(reply_id=reply_id, to_open_turn=to_open_turn):
                shift_s = self._delay_s("reply", self._n_replies)
                self._replies[reply_id] = _Reply(self._n_replies, shift_s, checks=to_open_turn)
                self._n_replies += 1
            case CommitTurn():
                self._n_turns += 1
            case DropReply(reply_id=reply_id):
                self._replies.pop(reply_id, None)
            case _:
                pass
        self._inner.command(command)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._inner.close()

    def collect(self) -> Sequence[AgentEvent]:
        now_s = self._clock.now()
        out: list[AgentEvent] = []
        for event in self._inner.collect():
            self._take(event, now_s, out)
        self._release(now_s, out)
        return out

    # --- what is held back -----------------------------------------------------------------------

    def _take(self, event: AgentEvent, now_s: float, out: list[AgentEvent]) -> None:
        match event:
            case UserState():
                out.append(self._later(event, now_s))
            case Mark(name="listener_done", reply_id=None, at_s=at_s):
                self._listener_ready_s = at_s + self._delay_s("listener", self._n_turns)
                self._loose.append((self._listener_ready_s, replace(event, at_s=self._listener_ready_s)))
                self._call_at(self._listener_ready_s, now_s)
            case FinalTranscript() if self._listener_ready_s > now_s:
                self._loose.append((self._listener_ready_s, event))
            case Mark(reply_id=str(reply_id)) | ReplyText(reply_id) | ReplyAudio(reply_id) | ReplyEnd(reply_id):
                if (reply := self._replies.get(reply_id)) is not None:
                    self._hold(reply, event, now_s, out)
            case _:
                out.append(event)

    def _hold(self, reply: _Reply, event: AgentEvent, now_s: float, out: list[AgentEvent]) -> None:
        at_s = event.at_s if isinstance(event, Mark) else now_s
        if not reply.seen:  # its first sign of life: not before the listener is done
            reply.shift_s = max(reply.shift_s, self._listener_ready_s - at_s)
            reply.seen.add("")
        if isinstance(event, Mark):
            for stage, (_, end) in STAGE_MARKS.items():
                if event.name == end and stage not in reply.seen:
                    reply.seen.add(stage)
                    reply.shift_s += self._delay_s(stage, reply.number)
            event = replace(event, at_s=event.at_s + reply.shift_s)
        elif isinstance(event, ReplyAudio) and reply.checks:
            self._check(reply, out)
        elif isinstance(event, ReplyEnd):
            reply.seen.add("end")
        reply.held.append((at_s + reply.shift_s, event))
        self._call_at(at_s + reply.shift_s, now_s)

    def _check(self, reply: _Reply, out: list[AgentEvent]) -> None:
        for stage in ("listener", "thinker", "talker"):
            silent = self._listener_ready_s == float("-inf") if stage == "listener" else stage not in reply.seen
            if stage in self._delays and silent:
                message = f"The agent reports no mark {STAGE_MARKS[stage][1]!r}, so its {stage} cannot be slowed down."
                out.append(Fault(ConfigError(message), fatal=True))
        reply.checks = False

    def _later(self, state: UserState, now_s: float) -> UserState:
        """The predictor's view with its pauses and its completed turns noticed later."""
        if state.user is not User.TURN_COMPLETE:
            self._complete_since_s = None
        elif self._complete_since_s is None:
            self._complete_since_s = now_s
        if state.user not in (User.TURN_COMPLETE, User.PAUSED_INCOMPLETE):
            self._paused_since_s = None
        elif self._paused_since_s is None:
            self._paused_since_s = now_s
        if self._floor is not Floor.LISTENING:
            return state
        if self._complete_since_s is not None and self._early(self._complete_since_s, "endpointing", now_s):
            state = replace(state, user=User.PAUSED_INCOMPLETE)
        paused = state.user is User.PAUSED_INCOMPLETE and self._paused_since_s is not None
        if paused and self._early(self._paused_since_s or 0.0, "speculation", now_s):
            state = replace(state, user=User.SPEAKING)
        return state

    def _early(self, since_s: float, stage: str, now_s: float) -> bool:
        return now_s - since_s < self._delay_s(stage, self._n_turns) - 1e-9

    def _release(self, now_s: float, out: list[AgentEvent]) -> None:
        queues = [self._loose, *(reply.held for reply in self._replies.values())]
        for queue in queues:
            while queue and queue[0][0] <= now_s + 1e-9:
                out.append(queue.popleft()[1])
        for reply_id in [key for key, reply in self._replies.items() if not reply.held and "end" in reply.seen]:
            del self._replies[reply_id]

    def _call_at(self, due_s: float, now_s: float) -> None:
        if due_s > now_s:
            self._timers = [*self._timers[-32:], self._clock.call_at(due_s, self._wake)]

    def _delay_s(self, stage: str, number: int) -> float:
        return delay_ms(self._delays.get(stage, 0.0), number) / 1000.0
