"""Callers in a process of their own: real clients that ask, listen, hang up and call again.

    python -c "from duplex.benchmarks.load.client import main; main()" < plan.json

What became of each call and each turn is written to standard output, a line of JSON each, as it happens.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duplex.benchmarks.turns.doors import door_of
from duplex.clock import Clock, MonotonicClock
from duplex.errors import AgentFullError, DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Span, turn_heard
from duplex.transport.client_call import CallBase

ANSWER_TIMEOUT_S = 10.0
_REPLY_LIMIT_S = 20.0
_AFTER_REFUSAL_S = 2.0

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process does. ``doors``: of its callers, in turn. ``sounds``: an ``.npz`` of float32[n] at 24 kHz.

    ``hold_s``: how long callers go on calling; ``call_s``: how long a call lasts; ``pause_s``: between turns, random
    between these; ``stagger_s``: callers begin spread over it; ``again``: who is turned away calls again.
    ``first``: the number of its first caller, which its luck follows from.
    """

    url: str
    doors: tuple[str, ...]
    callers: int
    sounds: str
    hold_s: float
    call_s: float = 60.0
    pause_s: tuple[float, float] = (0.4, 1.2)
    stagger_s: float = 2.0
    again: bool = True
    seed: int = 1
    first: int = 0

    @classmethod
    def from_json(cls, text: str) -> Plan:
        fields = json.loads(text)
        return cls(**{**fields, "doors": tuple(fields["doors"]), "pause_s": tuple(fields["pause_s"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn at the client. ``at_s``: when it was said, since the process began. ``wait_ms`` None: not answered."""

    at_s: float
    wait_ms: float | None
    took_over: bool


async def run(plan: Plan, tell: Tell, clock: Clock | None = None) -> None:
    """Every caller of the plan, until its time is over."""
    clock = clock or MonotonicClock()
    with np.load(plan.sounds) as file:
        sounds = [np.asarray(file[name], np.float32) for name in file.files]
    until_s = clock.now() + plan.hold_s
    await asyncio.gather(*(_caller(plan, plan.first + k, sounds, until_s, tell, clock) for k in range(plan.callers)))


async def _caller(plan: Plan, number: int, sounds: list[Samples], until_s: float, tell: Tell, clock: Clock) -> None:
    rng = random.Random(f"{plan.seed}/{number}")
    began_s = until_s - plan.hold_s
    await asyncio.sleep(rng.uniform(0.0, plan.stagger_s))
    calls = itertools.count(number)  # a caller's calls go through one door after the other
    while (left_s := until_s - clock.now()) > min(5.0, plan.hold_s / 2.0):
        door = door_of(plan.url, door=plan.doors[next(calls) % len(plan.doors)])
        told: dict[str, Any] = {"kind": "call", "door": door.name, "caller": number, "at_s": clock.now() - began_s}
        try:
            async with door.call() as call:
                assert isinstance(call, CallBase)
                tell({"kind": "admitted", "door": door.name, "caller": number, "at_s": clock.now() - began_s})
                placed = await _talk(call, plan, sounds, rng, min(plan.call_s, left_s))
            recording = await asyncio.to_thread(call.recording)
        except AgentFullError as error:
            tell({**told, "refused": True})
            if not plan.again:
                return
            await asyncio.sleep(rng.uniform(0.5, 1.5) * min(error.retry_after_s, _AFTER_REFUSAL_S))
            continue
        except (DuplexError, TimeoutError) as error:
            tell({**told, "broken": str(error) or type(error).__name__})
            await asyncio.sleep(1.0)
            continue
        begins_s = float(told["at_s"])
        ends = [start_ms for start_ms, _ in placed[1:]] + [recording.duration_ms]
        for (start_ms, _span), until_ms in zip(placed, ends, strict=True):
            heard = turn_heard(recording, start_ms, until_ms)
            took_over = heard is not None and heard.took_over
            wait_ms = None if heard is None or took_over else heard.voice_to_voice_ms
            turn = Turn(begins_s + start_ms / 1000.0, wait_ms, took_over)
            tell({"kind": "turn", "door": door.name, "caller": number, **asdict(turn)})
        tell(
            {
                **told,
                "seconds": recording.duration_ms / 1000.0,
                "turns": len(placed),
                "connected_in_s": call.connected_in_s,
                **asdict(recording.wire),
            }
        )


async def _talk(
    call: CallBase, plan: Plan, sounds: list[Samples], rng: random.Random, call_s: float
) -> list[tuple[float, Span]]:
    """Turns until the call is long enough: when each began on the call's time line, and where it lies."""
    placed: list[tuple[float, Span]] = []
    while call.now_ms < call_s * 1000.0:
        await call.wait_ms(1000.0 * rng.uniform(*plan.pause_s))
        start_ms = call.now_ms
        span = await call.play(rng.choice(sounds))
        placed.append((start_ms, span))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S + _REPLY_LIMIT_S):
                await call.wait_settled(span.end_ms, answer_timeout_s=ANSWER_TIMEOUT_S, quiet_ms=400.0)
        except TimeoutError:
            call.send({"type": "response.cancel"})
            await call.wait_quiet(400.0, timeout_s=10.0)
    return placed


def save_sounds(sounds: list[Samples], path: Path) -> None:
    """What callers say, where their processes find it."""
    np.savez(path, *sounds)


def beeps(count: int = 4) -> list[Samples]:
    """What is said where nobody understands it: tones of 0.8 to 1.4 s at −20 dBFS, with silence around."""
    rng = np.random.default_rng(0)
    made: list[Samples] = []
    for k in range(count):
        t = np.arange(round((0.8 + 0.2 * k) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        sound = 0.1414 * np.sin(2.0 * np.pi * (200.0 + 40.0 * k) * t) + 1e-4 * rng.standard_normal(len(t))
        made.append(np.pad(sound, (1440, 2880)).astype(np.float32))
    return made


def main() -> None:
    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    asyncio.run(run(Plan.from_json(sys.stdin.readline()), tell))


if __name__ == "__main__":
    main()
