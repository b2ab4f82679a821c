"""What callers and the engine's thread share: the calls' frames, the commands, and what decides admission.

Everything here is guarded by one lock, which nobody holds while an engine works: whoever calls from an event loop
waits for microseconds, never for a tick.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from duplex.bitrate import CallBitrate, LinkReport
from duplex.clock import Clock
from duplex.errors import AgentError, AgentFaultError, AgentFullError, DuplexError
from duplex.frames import Samples

from .admission import TickTimes, no_room
from .contract import Memory, SlotSettings
from .deliveries import Deliver
from .metrics import SchedulerMetrics
from .options import SchedulerOptions
from .shedding import Shedder
from .ticks import Lane, WaitingFrame


class Phase(Enum):
    JOINING = "joining"  # has no slot yet
    READING = "reading"  # its prompt, in slices
    READY = "ready"


@dataclass(slots=True, eq=False)
class Call(Lane):
    """One call: its lane, and where it stands. ``bitrate``: how many codebooks it gets. ``commands``: about its state,
    asked for and not done; it stands still until then. ``gone``: it left or was ended; it is told nothing more."""

    bitrate: CallBitrate = field(kw_only=True)
    deliver: Deliver = lambda delivery: None
    asked_s: float = 0.0
    phase: Phase = Phase.JOINING
    key: int = -1
    commands: int = 0
    gone: bool = False

    def hold_or_not(self) -> None:
        self.held = self.gone or self.commands > 0 or self.phase is not Phase.READY


class Kind(Enum):
    JOIN = "join"
    LEAVE = "leave"
    RESET = "reset"
    SNAPSHOT = "snapshot"
    RESTORE = "restore"
    FORK = "fork"


@dataclass(slots=True, eq=False)
class Command:
    """``call``: whom it is about (for a fork, the new one). ``payload``: settings, a snapshot, or the call to fork."""

    kind: Kind
    call: Call
    payload: Any = None
    future: Future[Any] = field(default_factory=Future)


class Board:
    """``changed`` is the lock, and what the engine's thread waits on; ``signal`` says that it has something to do."""

    def __init__(
        self,
        options: SchedulerOptions,
        clock: Clock,
        metrics: SchedulerMetrics,
        *,
        frame_s: float,
        frame_samples: int,
        max_slots: int,
        codebooks: int,
        times: TickTimes,
    ) -> None:
        self.options, self.clock, self.metrics = options, clock, metrics
        self.frame_s, self.frame_samples, self.max_slots = frame_s, frame_samples, max_slots
        self.changed = threading.Condition(threading.Lock())
        self.signal = False
        self.closing = False
        self.ended: DuplexError | None = None
        self.commands: deque[Command] = deque()
        self.used = 0  # calls that are in, or asked to be, and did not leave
        self.idle = True  # no frame waited when the thread last looked
        self.awaited = 0  # calls whose frames it waits for
        self.times = times
        self.shedder = Shedder(options.shed, codebooks)
        self.memory: Memory | None = None
        self.used_when_measured = 0
        self.tick_began_s: float | None = None  # of the tick that runs
        metrics.slots_max.set(max_slots)

    # --- from any thread ------------------------------------------------------------------------

    def admit(self) -> None:
        """Raises what ``open`` would raise now."""
        with self.changed:
            self._admit(self.clock.now())

    def open(self, settings: SlotSettings, deliver: Deliver) -> Call:
        return self._new(Kind.JOIN, settings, deliver)

    def restore(self, snapshot: Any, deliver: Deliver) -> Call:
        return self._new(Kind.RESTORE, snapshot, deliver)

    def fork(self, call: Call, deliver: Deliver) -> Call:
        return self._new(Kind.FORK, call, deliver, original=call)

    def _new(self, kind: Kind, payload: Any, deliver: Deliver, original: Call | None = None) -> Call:
        """Decides at once. Raises ``AgentFullError``, or ``AgentFaultError`` when the engine is gone."""
        with self.changed:
            now_s = self.clock.now()
            self._admit(now_s)
            call = Call(
                self.options.queue_frames,
                self.frame_s,
                bitrate=self.shedder.policy.call(),
                deliver=deliver,
                asked_s=now_s,
            )
            self.used += 1
            self.metrics.slots_used.set(self.used)
            if original is not None:
                original.commands += 1
                original.hold_or_not()
            self._ask(Command(kind, call, payload))
        return call

    def _admit(self, now_s: float) -> None:
        if self.closing or self.ended is not None:
            raise AgentFaultError(f"The engine takes no calls: {self.ended or 'it is stopping'}")
        self.shedder.settle(now_s)
        refusal: tuple[str, str] | None
        if self.tick_began_s is not None and now_s - self.tick_began_s > self.options.stall_limit_s:
            refusal = (
                "stalled",
                f"The device has been at one tick for {now_s - self.tick_began_s:.0f} s. Try again later.",
            )
        elif self.shedder.refusing:
            refusal = "overload", "The device is behind with the calls it has. Try again in a moment."
        else:
            refusal = no_room(
                used=self.used,
                max_slots=self.max_slots,
                predicted_s=self.times.predict(self.used + 1, now_s),
                limit_s=self.options.max_utilisation * self.frame_s,
                memory=self.memory,
                used_when_measured=self.used_when_measured,
                reserve_bytes=self.options.memory_reserve_mb * 2**20,
            )
        if refusal is not None:
            reason, sentence = refusal
            self.metrics.refused.labels(reason).inc()
            raise AgentFullError(sentence, self.options.retry_after_s)

    def submit(
        self,
        call: Call,
        samples: Samples,
        forced_text: int | None,
        silent: bool,
        codebooks: int | None,
        link: LinkReport | None,
    ) -> bool:
        with self.changed:
            if call.gone:
                return False
            if link is not None and self.options.shed.follow_link:
                call.bitrate.report(link)
            if call.full and self.options.when_full == "refuse":
                self.metrics.refused_frames.inc()
                return False
            frame = WaitingFrame(call.next_seq, samples, self.clock.now(), forced_text, silent, codebooks)
            if pushed := call.put(frame):
                self.metrics.dropped.labels("full").inc(pushed)
            if call.awaited:
                call.awaited = False
                self.awaited -= 1
                if self.awaited == 0:
                    self.notify()
            elif self.idle and not call.held:
                self.idle = False
                self.notify()
            return True

    def leave(self, call: Call) -> None:
        with self.changed:
            if not call.gone:
                self.remove(call)
                self._ask(Command(Kind.LEAVE, call))

    def ask(self, kind: Kind, call: Call) -> Future[Any]:
        """A reset or a snapshot, done between two ticks."""
        command = Command(kind, call)
        with self.changed:
            if call.gone or self.ended is not None:
                command.future.set_exception(AgentError("This call's slot is gone."))
                return command.future
            if kind is Kind.RESET and (dropped := call.drop_all("reset")):
                self.metrics.dropped.labels("reset").inc(dropped)
            call.commands += 1
            call.hold_or_not()
            self._ask(command)
        return command.future

    # --- with the lock held ---------------------------------------------------------------------

    def _ask(self, command: Command) -> None:
        self.commands.append(command)
        self.notify()

    def notify(self) -> None:
        self.signal = True
        self.changed.notify()

    def remove(self, call: Call) -> None:
        """The call is gone for its owner; the engine hears of it later."""
        call.gone = True
        call.hold_or_not()
        call.frames.clear()
        call.dropped.clear()
        self.used -= 1
        self.metrics.slots_used.set(self.used)

    # --- the engine's thread --------------------------------------------------------------------

    def wait(self, until_s: float) -> None:
        """Returns at ``until_s`` (``inf``: never), or as soon as there is something to do. Spurious returns happen."""
        with self.changed:
            if self.signal or self.closing:
                return
            left_s = until_s - self.clock.now()
            if left_s > 0:
                self.changed.wait(min(left_s, threading.TIMEOUT_MAX))
