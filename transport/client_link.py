"""A bad line, simulated at the client: which datagrams pass, and when they arrive.

Theory of operation
-------------------
:class:`LinkModel` is one direction, as pure logic: given when a packet was sent it says when it is delivered,
or that it is lost. Loss is Gilbert's model (E. N. Gilbert, "Capacity of a burst-noise channel", 1960) in slots
of 20 ms: a line is either good or bad, everything sent in a bad slot is lost, and the chances of changing are
such that a share ``loss`` of the slots is bad, in stretches of ``burst_ms`` on average. The line is a function
of time and seed alone, so what else is sent meanwhile changes nothing. Delay is uniform in ``±jitter_ms``
around ``jitter_ms``, since nothing can arrive before it was sent; without ``reorder`` a packet waits for those
before it, as in a router's queue.

:class:`BadNetwork` puts two of them between a WebRTC connection and its UDP socket. It uses only what asyncio
offers, a datagram transport and its ``set_protocol``, so everything is subject to the line alike: sound, events,
reports and ICE's own checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np

from duplex.clock import Clock
from duplex.errors import TransportError

SLOT_S = 0.02
_IN_ORDER_S = 1e-4  # between two packets that would arrive at once: timers of one moment have no order
_CHUNK = 1024


class EchoLike(Protocol):
    """See :class:`duplex.transport.client_echo.EchoPath`."""

    @property
    def level_db(self) -> float: ...

    @property
    def delay_ms(self) -> float: ...


class LinkLike(Protocol):
    """A bad line. ``loss``: share of packets lost, in bursts of ``burst_ms``. ``jitter_ms``: extra delay in ±.

    ``skew_ppm``: the client's sound clock runs that much fast. Any object with these attributes will do.
    """

    @property
    def loss(self) -> float: ...

    @property
    def burst_ms(self) -> float: ...

    @property
    def jitter_ms(self) -> float: ...

    @property
    def reorder(self) -> bool: ...

    @property
    def skew_ppm(self) -> float: ...

    @property
    def echo(self) -> EchoLike | None: ...

    @property
    def seed(self) -> int: ...


class LinkModel:
    """One direction of a line. Times are seconds of any clock, and must not go back.

    ``direction`` gives the two directions of one line different luck. Raises ``TransportError`` for a line that
    cannot be: with that much loss, the good stretches between bursts would be shorter than a packet.
    """

    def __init__(
        self,
        *,
        loss: float = 0.0,
        burst_ms: float = 20.0,
        jitter_ms: float = 0.0,
        reorder: bool = False,
        seed: int = 0,
        direction: int = 0,
    ) -> None:
        if not 0.0 <= loss < 1.0 or burst_ms < SLOT_S * 1000.0 or jitter_ms < 0.0:
            raise TransportError(
                f"loss must be in [0, 1), burst_ms at least {SLOT_S * 1000.0:g} and jitter_ms at least 0; got "
                f"loss = {loss:g}, burst_ms = {burst_ms:g}, jitter_ms = {jitter_ms:g}."
            )
        self._recover = SLOT_S * 1000.0 / burst_ms  # chance that a bad slot is followed by a good one
        self._worsen = self._recover * loss / (1.0 - loss)
        if self._worsen > 1.0:
            raise TransportError(
                f"A line cannot lose {loss:.0%} in bursts of only {burst_ms:g} ms: make them longer than "
                f"{SLOT_S * 1000.0 * loss / (1.0 - loss):.0f} ms."
            )
        self._loss, self._jitter_s, self._reorder = loss, jitter_ms / 1000.0, reorder
        self._seed = (seed, direction)
        self.reset()

    def reset(self) -> None:
        """The same line again, from its first packet."""
        losses, self._delays = (np.random.default_rng((*self._seed, purpose)) for purpose in (0, 1))
        self._losses = losses
        self._bad: list[bool] = [bool(losses.random() < self._loss)]
        self._origin_s: float | None = None
        self._last_s = -np.inf

    def delivery(self, sent_s: float) -> float | None:
        """When a packet sent at ``sent_s`` arrives; None if it is lost."""
        delay_s = float(self._delays.uniform(0.0, 2.0 * self._jitter_s)) if self._jitter_s else 0.0
        if self._is_bad(sent_s):
            return None
        arrives_s = sent_s + delay_s
        if not self._reorder:
            arrives_s = max(arrives_s, self._last_s + _IN_ORDER_S)
            self._last_s = arrives_s
        return arrives_s

    def _is_bad(self, at_s: float) -> bool:
        if not self._loss:
            return False
        if self._origin_s is None:
            self._origin_s = at_s - SLOT_S / 2  # a stream of packets then lies in the middle of the slots
        slot = int((at_s - self._origin_s) / SLOT_S)
        while len(self._bad) <= slot:
            bad = self._bad[-1]
            for chance in self._losses.random(_CHUNK):
                bad = bool(chance >= self._recover) if bad else bool(chance < self._worsen)
                self._bad.append(bad)
        return self._bad[slot]


def models_of(link: LinkLike) -> tuple[LinkModel, LinkModel]:
    """Both directions of a line: out and in."""
    out, back = (
        LinkModel(
            loss=link.loss,
            burst_ms=link.burst_ms,
            jitter_ms=link.jitter_ms,
            reorder=link.reorder,
            seed=link.seed,
            direction=direction,
        )
        for direction in (0, 1)
    )
    return out, back


class BadNetwork:
    """A line between a datagram protocol and its socket: ``attach`` it, then ``begin`` and ``cut`` it at will.

    Until it begins everything passes, so that a bad line tests the conversation and not its setting up.
    """

    def __init__(self, clock: Clock, link: LinkLike | None) -> None:
        self._clock = clock
        self._models = None if link is None or not (link.loss or link.jitter_ms) else models_of(link)
        self._begun = False
        self.cut = False
        """While true nothing passes, in either direction."""

    def begin(self) -> None:
        self._begun = True

    def attach(self, protocol: Any) -> None:
        """Puts the line under ``protocol``, an ``asyncio.DatagramProtocol`` that keeps its ``transport``."""
        socket = cast(asyncio.DatagramTransport, protocol.transport)
        protocol.transport = _Outgoing(socket, self)
        socket.set_protocol(_Incoming(protocol, self))

    def carry(self, direction: int, deliver: Callable[[], None]) -> None:
        """Calls ``deliver`` when the datagram that was sent now arrives, if it does. 0: out, 1: in."""
        if self.cut:
            return
        if self._models is None or not self._begun:
            deliver()
            return
        now_s = self._clock.now()
        arrives_s = self._models[direction].delivery(now_s)
        if arrives_s is None:
            return
        if arrives_s <= now_s:
            deliver()
        else:
            self._clock.call_at(arrives_s, lambda: None if self.cut else deliver())


class _Outgoing:
    """Stands in for the socket's transport."""

    def __init__(self, socket: asyncio.DatagramTransport, network: BadNetwork) -> None:
        self._socket, self._network = socket, network

    def sendto(self, data: bytes, addr: Any = None) -> None:
        self._network.carry(0, lambda: None if self._socket.is_closing() else self._socket.sendto(data, addr))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Incoming(asyncio.DatagramProtocol):
    """Stands in for the protocol that the socket hands its datagrams to."""

    def __init__(self, protocol: asyncio.DatagramProtocol, network: BadNetwork) -> None:
        self._protocol, self._network = protocol, network

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._network.carry(1, lambda: self._protocol.datagram_received(data, addr))

    def error_received(self, exc: Exception) -> None:
        self._protocol.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
