"""A call on virtual time, from a test that need not be async: speak, be answered, interrupt, measure.

Theory of operation
-------------------
The session runs on an event loop of its own whose clock jumps from timer to timer, and that loop runs only while
a method of :class:`VirtualCall` waits for something to happen. So every method is an ordinary function, ten minutes
of call take about a second, and a busy machine changes no figure. Where the test itself runs in an event loop (an
``async def`` test), the loop of the call is run in a helper thread meanwhile.

Time line: as in ``duplex/recording.py``, milliseconds from the first sample heard. The microphone's packet that is
heard at a tick was spoken in the 20 ms before it; the packet that is sent at that tick plays from then on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Self, TypeVar

from duplex import events as ev
from duplex.agent import Agent, AgentSettings
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.conversation import Message, Role
from duplex.errors import ConfigError, DuplexError
from duplex.frames import PACKET_MS, SAMPLE_RATE_HZ, Samples
from duplex.metrics import Metrics
from duplex.recording import AUDIBLE_DBFS, Recording, Span, interruption_heard, turn_heard
from duplex.requests import Request
from duplex.session import Session
from duplex.testing.line import ScriptedUser, VirtualTimeLoop, tone
from duplex.testing.observed import ObservedAgent, RecordedLine
from duplex.testing.turns import Line, Overlap, Turn, UnansweredError
from duplex.turn import Floor

T = TypeVar("T")

SPOKEN_WORD_S = 0.3
_QUIET_MS = 400.0  # longer than the 300 ms of silence that end an utterance
_BEFORE_MS = 1500.0  # of sound looked at before an overlap


class VirtualCall:
    """One call to ``agent``. Use it in a ``with`` block, or through the fixture ``duplex_call``.

    ``config`` and ``settings`` are the session's. ``answer_timeout_s``: how long to wait for an answer before a turn
    counts as unanswered. ``hears`` on the agent's session, if it has it, is told the words that are said next.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        config: SessionConfig | None = None,
        settings: AgentSettings | None = None,
        answer_timeout_s: float = 10.0,
    ) -> None:
        self.turns: list[Turn] = []
        self.overlaps: list[Overlap] = []
        self.line = RecordedLine()
        self._agent = ObservedAgent(agent)
        self._timeout_s = answer_timeout_s
        self._loop = VirtualTimeLoop()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._clock = VirtualClock(self._loop)
        self.session = Session(
            session_id="sess_test",
            line=self.line,
            agent=self._agent,
            clock=self._clock,
            config=config if config is not None else SessionConfig(),
            settings=settings if settings is not None else AgentSettings(),
            metrics=Metrics(),
        )
        try:
            self._run(self._begin())
        except BaseException:
            self.close()
            raise

    # --- talking ---------------------------------------------------------------------------------

    def say(
        self,
        text: str | None = None,
        *,
        speech_s: float | None = None,
        sound: Samples | None = None,
        hear_out: bool = True,
    ) -> Turn:
        """Says something to a silent agent and waits for the answer.

        What is heard is ``sound`` (float32[n] at 24 kHz), or speech-like sound of ``speech_s`` seconds (0.3 s a word
        of ``text``, 1.2 s without). ``text`` is told to agents that cannot understand such sound (``hears``).
        Raises ``ConfigError`` while the agent is speaking: that is :meth:`interrupt`.
        ``hear_out``: return when the answer is over; otherwise as soon as it can be heard, to talk over it.
        """
        return self._run(self._say(text, self._sound(text, speech_s, sound), hear_out))

    def interrupt(
        self,
        text: str | None = None,
        *,
        after_s: float = 1.5,
        speech_s: float | None = None,
        sound: Samples | None = None,
        question: str | None = None,
    ) -> Overlap:
        """Talks over the agent once it has been heard for ``after_s``, and waits for what comes of it.

        If the agent is not speaking, ``question`` is asked first (it counts as a turn too).
        Raises ``UnansweredError`` if there is no such reply, or if it is over before.
        """
        return self._run(self._talk_over(text, self._sound(text, speech_s, sound), after_s, question))

    def backchannel(
        self,
        text: str | None = "uh-huh",
        *,
        after_s: float = 1.5,
        speech_s: float = 0.3,
        sound: Samples | None = None,
        question: str | None = None,
    ) -> Overlap:
        """Encourages the agent while it speaks: like :meth:`interrupt`, with something short by default."""
        return self._run(self._talk_over(text, self._sound(text, speech_s, sound), after_s, question))

    def play(self, user: ScriptedUser, total_s: float) -> None:
        """Plays a whole script of ``total_s`` seconds, and measures nothing: see ``recording`` and ``events``."""
        self.line.say(user.samples(total_s))
        self.wait(total_s)

    def wait(self, seconds: float) -> None:
        """Lets time pass; the microphone is silent."""
        self._run(self._clock.sleep_until(self._clock.now() + seconds))

    def request(self, request: Request) -> None:
        """What a client may ask of a session (``duplex/requests.py``). Raises ``ProtocolError`` when refused."""

        async def ask() -> None:
            self.session.request(request)

        self._run(ask())

    # --- what came of it -------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        """Where the call's time line stands."""
        return len(self.line.heard) * float(PACKET_MS)

    @property
    def transcript(self) -> tuple[Line, ...]:
        """The conversation as the agent remembers it: what the user said, and what the user heard."""
        said = [item for item in self.session.conversation if isinstance(item, Message)]
        return tuple(Line(message.role, message.text, message.cut_off) for message in said)

    @property
    def heard_text(self) -> str:
        """The agent's side of the transcript: the words that were heard, and no others."""
        return " ".join(line.text for line in self.transcript if line.role is Role.ASSISTANT)

    @property
    def measures(self) -> list[Mapping[str, float]]:
        """One row of stages a turn, then one an overlap and its answer: what a baseline is made of."""
        rows: list[Mapping[str, float]] = [turn.measures for turn in self.turns]
        for overlap in self.overlaps:
            rows += [overlap.measures, overlap.turn.measures]
        return rows

    @property
    def events(self) -> Sequence[ev.Event]:
        """Everything the session told its client."""
        return self.line.events

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(event.message for event in self.line.of(ev.ErrorRaised))

    @property
    def recording(self) -> Recording:
        """The whole call as stereo sound, user left, agent right."""
        return self.line.recording(0.0)

    def __str__(self) -> str:
        """The call retold for a failing test: what was remembered, and each turn's waterfall."""
        parts = ["\n".join(map(str, self.transcript)) or "(nothing was said)"]
        parts += [f"{turn!r}\n{turn.waterfall}" for turn in self.turns]
        parts += [repr(overlap) for overlap in self.overlaps]
        parts += [f"error: {message}" for message in self.errors]
        return "\n\n".join(parts)

    def close(self) -> None:
        """Hangs up and closes the agent. Harmless when done before."""
        if not self._closed:
            self._closed = True
            try:
                self._run(self._end())
            finally:
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside the loop -------------------------------------------------------------------------

    async def _begin(self) -> None:
        await self._agent.start()
        self._task = asyncio.create_task(self.session.run())
        await self._until(lambda: len(self.line.heard) >= 10, 10.0)

    async def _end(self) -> None:
        if self._task is not None:
            self.session.stop("the test is over")
            await asyncio.gather(self._task, return_exceptions=True)
        await self._agent.close()

    def _sound(self, text: str | None, speech_s: float | None, sound: Samples | None) -> Samples:
        if sound is not None:
            if speech_s is not None:
                raise ConfigError("Give speech_s or sound, not both.")
            return sound
        if speech_s is None:
            speech_s = SPOKEN_WORD_S * len(text.split()) if text else 1.2
        return tone(speech_s)

    def _speak(self, text: str | None, sound: Samples) -> float:
        """Puts it on the line; returns where on the time line it begins."""
        if text is not None and (hears := getattr(self._agent.session, "hears", None)) is not None:
            hears(text)
        self.line.say(sound)
        return self.now_ms

    async def _say(self, text: str | None, sound: Samples, hear_out: bool) -> Turn:
        if self.session.machine.floor in (Floor.SPEAKING, Floor.HOLDING):
            raise ConfigError("The agent is speaking. Talk over it with interrupt(), or hear it out first.")
        first_event = len(self.line.events)
        start_ms = self._speak(text, sound)
        await self._until(lambda: not self.line.waiting, len(sound) / SAMPLE_RATE_HZ + 1.0)
        await self._answered(start_ms, hear_out=hear_out)
        turn = self._turn(start_ms, first_event)
        self.turns.append(turn)
        return turn

    async def _answered(self, start_ms: float, *, hear_out: bool, other_than: str | None = None) -> None:
        """Until a reply is heard well enough to be measured, and if asked, is over."""

        def audible() -> bool:
            heard_ms = self.line.audible_since(start_ms, other_than)
            return heard_ms is not None and self.now_ms >= heard_ms + 140.0

        if await self._until(audible, self._timeout_s) and hear_out:
            await self._until(self._quiet, 600.0)

    def _quiet(self) -> bool:
        return self.session.machine.floor is Floor.LISTENING and self.now_ms - self.line.last_audible_ms >= _QUIET_MS

    async def _talk_over(self, text: str | None, sound: Samples, after_s: float, question: str | None) -> Overlap:
        if self.session.machine.floor is not Floor.SPEAKING:
            asked = await self._say(question, self._sound(question, None, None), hear_out=False)
            if not asked.answered:
                raise UnansweredError(f"There is no reply to talk over. {asked._why_not()}")
        reply_id = self.line.speaking
        since_ms = self.line.began_ms(reply_id)
        await self._until(lambda: self.now_ms >= since_ms + after_s * 1000.0 or self._over(reply_id), after_s + 1.0)
        if self._over(reply_id) or reply_id is None:
            spoke_s = (self.line.last_audible_ms - since_ms) / 1000.0
            raise UnansweredError(
                f"The reply was over after {spoke_s:.1f} s, so nobody can talk over it {after_s:g} s in. "
                "Choose a smaller after_s, or let the agent say more."
            )
        first_event = len(self.line.events)
        start_ms = self._speak(text, sound)
        await self._until(lambda: not self.line.waiting, len(sound) / SAMPLE_RATE_HZ + 1.0)
        await self._until(lambda: self._over(reply_id), 600.0)
        if self._cut_off(reply_id):
            await self._answered(start_ms, hear_out=True, other_than=reply_id)
        else:
            await self._clock.sleep_until(self._clock.now() + 1.0)  # it may answer what it did not yield to
        await self._until(self._quiet, self._timeout_s)
        overlap = self._overlap(start_ms, reply_id, first_event)
        self.overlaps.append(overlap)
        return overlap

    def _over(self, reply_id: str | None) -> bool:
        return any(event.reply_id == reply_id for event in self.line.of(ev.ReplyFinished))

    def _cut_off(self, reply_id: str) -> bool:
        return any(e.reply_id == reply_id and e.status != "completed" for e in self.line.of(ev.ReplyFinished))

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Lets packets go by until ``done``. Raises the session's own error if it ended meanwhile."""
        deadline_s = self._clock.now() + timeout_s
        while not done():
            if self._clock.now() >= deadline_s:
                return False
            if self._task is not None and self._task.done():
                self._task.result()
                errors = " ".join(self.errors) or self.line.closed_because or "no reason was given"
                raise DuplexError(f"The session ended in the middle of the call: {errors}")
            await self._clock.sleep_until(self._clock.now() + PACKET_MS / 1000.0)
        return True

    # --- measuring -------------------------------------------------------------------------------

    def _turn(self, start_ms: float, first_event: int, other_than: str | None = None) -> Turn:
        heard = turn_heard(self.line.recording(start_ms, only_replies=True, other_than=other_than), 0.0)
        if heard is None:
            raise ConfigError(f"What was said is not audible: a voice is at least {AUDIBLE_DBFS:.0f} dBFS for 30 ms.")
        since = self.line.events[first_event:]
        reply_ms = None if heard.reply_ms is None else start_ms + heard.reply_ms
        user = _moved(heard.user, start_ms)
        traces = [e for e in since if isinstance(e, ev.TurnTraced) and e.reply_id != other_than]
        trace = traces[-1] if traces else None
        marks = dict(trace.marks) if trace is not None else {}
        lead_in_ms = None
        if trace is not None and reply_ms is not None and not heard.took_over:
            lead_in_ms = max(0.0, reply_ms - user.end_ms - trace.voice_to_voice_ms)
        said = [e.text for e in since if isinstance(e, ev.UserTranscriptFinal) and e.text]
        spoken = [e.delta for e in since if isinstance(e, ev.ReplyTextAdded) and e.reply_id != other_than]
        return Turn(
            user=user,
            reply_ms=reply_ms,
            took_over=heard.took_over,
            marks=marks,
            lead_in_ms=lead_in_ms,
            speculative=trace is not None and trace.speculative,
            text=said[-1] if said else "",
            reply_text="".join(spoken).strip(),
            waited_ms=self.now_ms - user.end_ms,
            errors=tuple(e.message for e in since if isinstance(e, ev.ErrorRaised)),
        )

    def _overlap(self, start_ms: float, reply_id: str, first_event: int) -> Overlap:
        origin_ms = max(0.0, start_ms - _BEFORE_MS)
        heard = interruption_heard(self.line.recording(origin_ms, only_replies=True), start_ms - origin_ms)
        if heard is None:
            raise ConfigError(f"What was said is not audible: a voice is at least {AUDIBLE_DBFS:.0f} dBFS for 30 ms.")
        user = _moved(heard.user, origin_ms)
        packets = self.line.audible_of(reply_id)
        went_on = bool(packets) and packets[-1] * PACKET_MS > user.end_ms
        gaps = [(a, b) for a, b in pairwise(packets) if b - a > 1 and b * PACKET_MS > user.start_ms]
        paused = any(isinstance(e, ev.ReplyHeld) and e.reply_id == reply_id for e in self.line.events[first_event:])
        item_id = self.line.item_of(reply_id)
        message = None if item_id is None else self.session.conversation.get(item_id)
        finished = [e for e in self.line.of(ev.ReplyFinished) if e.reply_id == reply_id]
        return Overlap(
            user=user,
            valid=heard.valid,
            yielded=heard.yielded and not went_on,
            resumed=paused and went_on,
            stopped_ms=heard.stop_ms,
            resume_gap_ms=float((gaps[0][1] - gaps[0][0] - 1) * PACKET_MS) if paused and went_on and gaps else None,
            reply_text=finished[0].text.strip() if finished else "",
            heard_text=message.text if isinstance(message, Message) else "",
            turn=self._turn(start_ms, first_event, reply_id),
        )

    # --- the loop --------------------------------------------------------------------------------

    def _run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs the call's loop until ``main`` returns; in a thread where another loop runs already."""
        if not _in_a_loop():
            return self._loop.run_until_complete(main)
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(self._loop.run_until_complete(main))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, name="duplex virtual time")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]


def _moved(span: Span, by_ms: float) -> Span:
    return Span(span.start_ms + by_ms, span.end_ms + by_ms)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
