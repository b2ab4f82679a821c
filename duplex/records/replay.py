"""Running a recorded session again, on the clock of the recording.

Theory of operation
-------------------
A fresh :class:`~duplex.session.Session` with a turn machine, floor keeper, playout and ledger of its own is
driven entry by entry (:mod:`duplex.records.journal`): the clock reads what it read then, the line hears what it heard
then, and the session ticks, is woken and is asked for things in the order of then. A tap on it makes entries
of what it does, which are compared with the recorded ones as they come. No time passes: an hour takes a minute.

The agent is one of two. ``recorded``: what the models said then is said again, so the decisions of the session
are what is tried; works for any agent. ``anew``: a fresh agent hears the recorded microphone; for agents that
give the same output for the same input (``AgentInfo.deterministic``, or those that settle: ``replay_inputs``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from duplex.agent import Agent, AgentInfo, AgentSettings
from duplex.config import Config, SessionConfig, assign, validated
from duplex.errors import DuplexError, RecordingError
from duplex.events import Event
from duplex.frames import PACKET_SAMPLES, Image
from duplex.metrics import Metrics
from duplex.records.archive import Archive
from duplex.records.journal import START, STOP, Entry, Pcm, Reader, Writer
from duplex.records.replay_compare import Comparison, Outcome
from duplex.records.replay_inputs import HeldAgent, ReplayClock, ReplayLine
from duplex.records.replay_mind import RecordedAgent, RecordedMind, tasks_of
from duplex.records.replay_sound import Track
from duplex.records.tap import Tap, TappedSession
from duplex.session import Session
from duplex.testing import run_virtual

Mode = Literal["recorded", "anew"]

_MANY_TURNS = 10_000  # of the loop; a session that has not come to rest by then waits for something else


@dataclass(slots=True, repr=False)  # asyncio prints what a task returned, at a price
class Replayed:
    """What came of it. ``events``: everything the client would have been told; ``user``, ``voice``: the sound.

    ``moved``: requests to the models that came at another moment than then; ``unanswered``: those that the
    recording has no answer to. ``sound_same``: whether every sample to the line was the same; None if it was
    not kept, or not exactly.
    """

    session_id: str
    mode: Mode
    origin_s: float
    comparison: Comparison
    sound_same: bool | None = None
    events: list[Event] = field(default_factory=list)
    user: Track = field(default_factory=Track)
    voice: Track = field(default_factory=Track)
    moved: int = 0
    unanswered: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Every decision was taken as it was then."""
        return self.comparison.same

    @property
    def outcomes(self) -> tuple[Outcome, Outcome]:
        """Of the recording, and of the replay."""
        return self.comparison.recorded, self.comparison.replayed


def replay(
    archive: Archive,
    *,
    session: SessionConfig | None = None,
    agent: Agent | None = None,
) -> Replayed:
    """Runs ``archive`` again. ``session``: other settings than then; ``agent``: to hear the microphone anew.

    Without ``agent`` the recorded outputs of the models are used. Raises ``RecordingError``.
    """
    return run_virtual(_Driver(archive, session or recorded_config(archive).session, agent).run())


def recorded_config(archive: Archive, assignments: Sequence[str] = ()) -> Config:
    """The configuration of then, with ``assignments`` ("session.commit_wait_s=0.2") in place of some of it.

    What was secret in it is not there any more. Raises ``ConfigError``.
    """
    table: dict[str, Any] = json.loads(json.dumps({**archive.manifest.config, "session": archive.manifest.session}))
    assign(table, assignments)
    return validated(Config, table)


@contextlib.contextmanager
def _reading(archive: Archive, what: str) -> Iterator[None]:
    """``RecordingError`` for whatever goes wrong because ``what`` is not as it is written."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordingError(
            f"{archive.directory}, {what} cannot be read: {str(error)[:200]}. "
            f"It was recorded by duplex {archive.manifest.duplex}."
        ) from error


class _Driver:
    def __init__(self, archive: Archive, config: SessionConfig, agent: Agent | None) -> None:
        if agent is not None and not archive.manifest.keeps_sound:
            raise RecordingError(
                f"This recording holds no sound (redact = {archive.manifest.redact}), so no agent can hear it again. "
                "Replay what the models said then instead: --agent recorded."
            )
        archive.rewind()
        self._archive, self._config, self._fresh = archive, config, agent
        manifest = archive.manifest
        self._reader = Reader(archive)
        with _reading(archive, "the manifest's line"):
            self._clock, self._line = ReplayClock(), ReplayLine(int(manifest.line["lead_packets"]))
        self._mind = RecordedMind(tasks_of(archive.lines()) if agent is None else (), self._reader)
        self._recorded: deque[tuple[int, dict[str, Any]]] = deque()
        self._writer = Writer(_Unstored(), mask_text=not manifest.keeps_text)
        self._replayed: deque[Entry] = deque()
        self._spoken: list[Pcm] = []
        self.result = Replayed(
            manifest.session_id,
            "recorded" if agent is None else "anew",
            0.0,
            Comparison(within_ids=f"_{manifest.session_id.removeprefix('sess_')}_"),
            notes=list(archive.notes),
        )

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        """The recorded entries. A recording that was cut off ends where its sound does."""
        for number, line in self._archive.lines():
            entry = self._read(number, line)
            # Silence in place of a microphone's last moments will do unless somebody has to hear them.
            if entry is None or (self._fresh is not None and "heard" in self._archive.padded):
                self.result.notes.append(f"Replayed up to entry {number}: the sound after that was not written.")
                return
            self._recorded.append((number, line))
            yield number, entry

    def _read(self, number: int, line: dict[str, Any]) -> Entry | None:
        try:
            with _reading(self._archive, f"journal line {number}"):
                return self._reader.entry(line)
        except EOFError:
            return None

    async def run(self) -> Replayed:
        manifest, result = self._archive.manifest, self.result
        entries = self._entries()
        number, first = next(entries, (0, None))
        if first is None or first.kind != START or not first.readings_us:
            raise RecordingError(f"The journal of {self._archive.directory} does not begin with the session's start.")
        result.origin_s = first.readings_us[0] / 1e6
        with _reading(self._archive, "the manifest's agent"):
            inner = self._fresh if self._fresh is not None else RecordedAgent(_info(manifest.agent), self._mind, first)
        agent = self._agent = HeldAgent(inner, self._clock)
        await agent.start()
        try:
            session = TappedSession(
                Tap(self._replayed.append),
                session_id=manifest.session_id,
                line=self._line,
                agent=agent,
                clock=self._clock,
                config=self._config,
                settings=self._settings(),
                metrics=Metrics(),
            )
            self._load(number, first)
            if first.stop is not None:
                session.stop(first.stop)
            task = asyncio.create_task(session.run())
            await self._settle(task)
            for number, entry in entries:
                self._load(number, entry)
                await self._perform(entry, session, agent, task)
                self._compare()
            await self._end(task)
            self._compare()
        finally:
            await agent.close()
        self._judge()
        return result

    def _settings(self) -> AgentSettings:
        with _reading(self._archive, "the manifest's settings"):
            settings: AgentSettings = self._reader.dataclass(AgentSettings, self._archive.manifest.settings)
        return settings

    def _load(self, number: int, entry: Entry) -> None:
        self._clock.load(entry.readings_us)
        self._line.load(entry)
        self._mind.load(number, entry)
        self._agent.load(entry)
        if entry.heard and entry.readings_us:
            at_s = entry.readings_us[0] / 1e6 - self.result.origin_s
            self.result.user.put_heard(entry.heard, at_s)

    async def _perform(self, entry: Entry, session: Session, agent: HeldAgent, task: asyncio.Task[None]) -> None:
        if entry.kind == STOP:
            session.stop(entry.stop or "")
            return
        if task.done():
            return  # it ended sooner than it did then; the comparison says so
        match entry.kind:
            case "tick":
                self._clock.wake_up()
                await asyncio.sleep(0)
                await self._settle(task)
            case "wake":
                agent.wake()
                await asyncio.sleep(0)
            case "request" if entry.request is not None:
                with contextlib.suppress(DuplexError):  # the answer is in its entry
                    session.request(entry.request, entry.event_id)
            case "cancel":
                task.cancel()
                await asyncio.wait([task])
            case _:
                raise RecordingError(f"There is a second {entry.kind} in the journal.")

    async def _settle(self, task: asyncio.Task[None]) -> None:
        """Returns once the session sleeps or has ended."""
        for _ in range(_MANY_TURNS):
            if self._clock.asleep or task.done():
                return
            await asyncio.sleep(0)
        raise RecordingError("The session waits for something that is not in the recording.")

    async def _end(self, task: asyncio.Task[None]) -> None:
        """Where the recording ends before the session did, the rest is not looked at."""
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # --- what it did ----------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Whatever entries of the replay are complete. It may have more of them than the recording."""
        while self._replayed and self._recorded:
            self._take(self._replayed.popleft())

    def _take(self, entry: Entry) -> None:
        number, recorded = self._recorded.popleft()
        self.result.events += entry.told
        at_s = (entry.readings_us[0] / 1e6 - self.result.origin_s) if entry.readings_us else None
        if entry.sent and at_s is not None:
            for packet, pcm in zip(entry.sent, self.result.voice.put_sent(entry.sent, at_s), strict=True):
                del self._spoken[packet.pts // PACKET_SAMPLES :]
                self._spoken.append(pcm)
        with _reading(self._archive, f"journal line {number}"):
            self.result.comparison.take(number, at_s, recorded, self._writer.entry(entry))

    def _judge(self) -> None:
        result = self.result
        result.moved, result.unanswered = self._mind.moved, self._mind.unanswered
        for number, recorded in self._recorded:
            with _reading(self._archive, f"journal line {number}"):
                result.comparison.missing(number, recorded)
        manifest = self._archive.manifest
        if "made" in self._archive.padded:
            result.notes.append("The last sound the agent made was not written; silence stands in for it.")
        elif manifest.keeps_sound and manifest.audio == "flac":
            then = self._archive.sound("spoken")
            now = np.concatenate(self._spoken) if self._spoken else np.zeros(0, dtype=np.int16)
            if not self._archive.whole:
                then, now = then[: len(now)], now[: len(then)]
            result.sound_same = bool(np.array_equal(then, now))


class _Unstored:
    """A sink for entries that are only compared."""

    def put_sound(self, samples: Any) -> Any:
        return {"n": len(samples)}

    def put_image(self, image: Image) -> Any:
        return {"pts": image.pts, "width": image.width, "height": image.height}


def _info(written: Mapping[str, Any]) -> AgentInfo:
    known = {f.name for f in fields(AgentInfo)}
    table: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in written.items() if name in known
    }
    return AgentInfo(**table)
