"""What the suite's rooms agree on: a call, a door, a scenario, a trial.

The data path reads down: ``material`` (what is said) → a ``Door`` opens a ``Call`` → a ``Scenario`` plays its
part on it and judges the recording → ``Trial`` → ``statistics`` → ``report``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from duplex.frames import Samples
from duplex.recording import RecordedEvent, Recording, Span

if TYPE_CHECKING:
    from duplex.benchmarks.turns.material import Material


@dataclass(frozen=True, slots=True)
class Echo:
    """The agent's own voice in the user's microphone: ``level_db`` below what was played, ``delay_ms`` later."""

    level_db: float
    delay_ms: float


@dataclass(frozen=True, slots=True)
class Link:
    """A bad line, simulated at the client in both directions; the default is a perfect one.

    ``loss``: share of packets lost, in bursts of ``burst_ms``. ``jitter_ms``: uniform extra delay in ±; with
    ``reorder`` packets overtake each other. ``skew_ppm``: the client's sound clock runs that much fast.
    """

    loss: float = 0.0
    burst_ms: float = 20.0
    jitter_ms: float = 0.0
    reorder: bool = False
    skew_ppm: float = 0.0
    echo: Echo | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What a scenario asks of a call. None: the server's default."""

    instructions: str | None = None
    turn_taking: Mapping[str, Any] | None = None
    link: Link = Link()
    max_call_s: float = 900.0


class Call(Protocol):
    """One call, whatever the door. Times are milliseconds of the recording's time line.

    :class:`duplex.transport.client.CallClient` says what each method promises.
    """

    @property
    def now_ms(self) -> float: ...

    @property
    def events(self) -> Sequence[RecordedEvent]: ...

    @property
    def last_audible_ms(self) -> float | None: ...

    async def play(self, samples: Samples) -> Span: ...

    def send(self, event: Mapping[str, Any]) -> None: ...

    async def wait_for(
        self, kind: str, *, timeout_s: float, where: Callable[[Mapping[str, Any]], bool] = ...
    ) -> RecordedEvent: ...

    async def wait_audible(self, *, timeout_s: float) -> float: ...

    async def wait_quiet(self, quiet_ms: float, *, timeout_s: float) -> None: ...

    async def wait_settled(self, after_ms: float, *, answer_timeout_s: float, quiet_ms: float = ...) -> bool: ...

    async def wait_ms(self, duration_ms: float) -> None: ...

    async def outage(self, duration_s: float) -> None:
        """Cuts the line both ways for that long, then reconnects the way this door can.

        Raises ``NotImplementedError`` with a sentence if this door cannot.
        """
        ...

    def recording(self) -> Recording: ...


class Door(Protocol):
    """A way in: ``webrtc``, ``websocket`` or ``in-process``."""

    @property
    def name(self) -> str: ...

    def call(self, options: CallOptions = ...) -> AbstractAsyncContextManager[Call]: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a scenario. ``values``: measure → number (yes and no are 1 and 0); a measure that does not
    apply (no latency without an answer) is left out. ``failed``: why, in a sentence; its audio is kept.
    ``valid`` is False when the trial could not be judged at all (the agent fell silent before it was
    interrupted): it is repeated, counted and reported, but judged by no limit.
    """

    scenario: int
    seed: int
    stimulus: str
    values: Mapping[str, float]
    recording: Recording | None = None
    span: Span | None = None
    failed: str | None = None
    valid: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever helps a reader: what was heard, what was answered, the server's trace."""


Statistic = Literal["p50", "p95", "p99", "mean", "max", "min", "sum"]


@dataclass(frozen=True, slots=True)
class Limit:
    """``measure``'s ``statistic`` must be at most or at least that. Shares are means of 0 and 1, limits in [0, 1]."""

    measure: str
    statistic: Statistic
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What a scenario runs with. ``seed`` differs from trial to trial by their number alone."""

    door: Door
    material: Material
    seed: int
    tell: Callable[[str], None] = lambda _line: None
    server_pid: int | None = None
    """The server's process, if it runs here, for scenarios that weigh it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table. ``run`` yields at least the trials it is asked for, one by one."""

    number: int
    name: str
    limits: tuple[Limit, ...]
    run: Callable[[Bench, int], AsyncIterator[Trial]]
    voice: Literal["human", "synthetic", "both"] = "synthetic"
    trials: int = 20
    minutes: float = 3.0
    """Roughly how long ``trials`` take, for the progress line and for choosing."""
