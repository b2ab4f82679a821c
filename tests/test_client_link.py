"""The bad line at the client: its statistics as pure logic, and the line between a protocol and its socket."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duplex.benchmarks.turns.contract import Echo, Link
from duplex.clock import VirtualClock
from duplex.errors import TransportError
from duplex.frames import Samples
from duplex.recording import Arrival, level_dbfs, play_out
from duplex.testing import run_virtual
from duplex.transport.client_call import CallSettings
from duplex.transport.client_echo import EchoPath, Listener
from duplex.transport.client_link import SLOT_S, BadNetwork, LinkModel
from duplex.transport.client_script import Script

RATE_HZ = 24_000


def outcomes(model: LinkModel, n: int = 50_000, pace_s: float = SLOT_S) -> list[float | None]:
    """Delay of each of ``n`` packets, None where it was lost."""
    times = [1000.0 + k * pace_s for k in range(n)]
    return [None if (at := model.delivery(t)) is None else at - t for t in times]


def bursts(lost: list[bool]) -> list[int]:
    """Length of each run of lost packets."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.array(lost, dtype=int), [0]))))
    return [int(length) for length in edges[1::2] - edges[::2]]


# --- loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("loss", "burst_ms"), [(0.01, 20), (0.01, 60), (0.05, 60), (0.1, 60), (0.2, 200)])
def test_so_many_packets_are_lost_in_bursts_so_long(loss: float, burst_ms: float, seed: int) -> None:
    lost = [delay is None for delay in outcomes(LinkModel(loss=loss, burst_ms=burst_ms, seed=seed))]
    runs = bursts(lost)
    spread = 4.0 / np.sqrt(len(runs))  # four standard errors: a run's length varies about as much as it is long
    assert np.mean(lost) == pytest.approx(loss, rel=1.4 * spread)
    assert np.mean(runs) * 20.0 == pytest.approx(burst_ms, rel=spread)


def test_a_perfect_line_is_one() -> None:
    assert set(outcomes(LinkModel(), 100)) == {0.0}


def test_the_line_does_not_depend_on_what_else_is_sent() -> None:
    alone, busy = LinkModel(loss=0.1, burst_ms=60, seed=5), LinkModel(loss=0.1, burst_ms=60, seed=5)
    lost = [delay is None for delay in outcomes(alone, 2000)]
    among_others = [delay is None for delay in outcomes(busy, 8000, SLOT_S / 4)]
    assert among_others[::4] == lost
    assert any(lost)


def test_the_same_seed_is_the_same_line_and_the_two_directions_are_not() -> None:
    def luck(seed: int, direction: int) -> list[float | None]:
        return outcomes(LinkModel(loss=0.1, jitter_ms=30, reorder=True, seed=seed, direction=direction), 500)

    assert luck(3, 0) == luck(3, 0)
    assert luck(3, 0) != luck(3, 1)
    assert luck(3, 0) != luck(4, 0)


def test_a_line_can_be_run_again() -> None:
    model = LinkModel(loss=0.1, burst_ms=60, jitter_ms=30)
    first = outcomes(model, 300)
    model.reset()
    assert outcomes(model, 300) == first


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.0}, {"loss": -0.1}, {"burst_ms": 5.0}, {"jitter_ms": -1.0}, {"loss": 0.8, "burst_ms": 20.0}]
)
def test_a_line_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(TransportError, match=r"loss|longer than"):
        LinkModel(**wrong)  # type: ignore[arg-type]


# --- delay --------------------------------------------------------------------------------------------


def test_jitter_is_uniform_around_its_own_size() -> None:
    delays = np.array(outcomes(LinkModel(jitter_ms=50, reorder=True)), dtype=float) * 1000.0
    assert delays.min() >= 0.0
    assert delays.max() <= 100.0
    assert delays.mean() == pytest.approx(50, abs=1)
    assert delays.std() == pytest.approx(100 / np.sqrt(12), abs=0.5)


@given(jitter_ms=st.floats(0.1, 200), pace_ms=st.floats(0.5, 60), seed=st.integers(0, 10_000), reorder=st.booleans())
@settings(max_examples=40, deadline=None)
def test_packets_overtake_each_other_only_where_they_may(
    jitter_ms: float, pace_ms: float, seed: int, reorder: bool
) -> None:
    model = LinkModel(jitter_ms=jitter_ms, reorder=reorder, seed=seed)
    sent = [k * pace_ms / 1000.0 for k in range(300)]
    arrived = [model.delivery(t) for t in sent]
    assert all(at is not None and at >= t for at, t in zip(arrived, sent, strict=True))
    overtaken = any(b < a for a, b in itertools.pairwise(arrived))  # type: ignore[operator]
    if not reorder:
        assert not overtaken
    elif jitter_ms > 2 * pace_ms:
        assert overtaken


# --- the line under a protocol ------------------------------------------------------------------------


class Wire(asyncio.DatagramTransport):
    """A socket of which one sees what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[float, bytes]] = []
        self.protocol: Any = None
        self.closed = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.sent.append((asyncio.get_running_loop().time(), bytes(data)))

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.protocol.connection_lost(None)


class Far(asyncio.DatagramProtocol):
    def __init__(self, wire: Wire) -> None:
        self.transport: Any = wire
        self.got: list[tuple[float, bytes]] = []
        self.lost = False

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.append((asyncio.get_running_loop().time(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def attached(link: Link | None) -> tuple[BadNetwork, Wire, Far]:
    wire = Wire()
    far = Far(wire)
    network = BadNetwork(VirtualClock(), link)
    network.attach(far)
    return network, wire, far


def test_everything_passes_until_the_line_turns_bad_and_nothing_while_it_is_cut() -> None:
    async def main() -> None:
        network, wire, far = attached(Link(loss=0.99, burst_ms=100_000))
        for k in range(3):
            far.transport.sendto(bytes([k]), ("far", 1))
            wire.protocol.datagram_received(bytes([k]), ("far", 1))
        assert len(wire.sent) == len(far.got) == 3
        network.begin()
        for k in range(20):
            far.transport.sendto(bytes([k]), ("far", 1))
        assert len(wire.sent) == 3
        perfect, wire, far = attached(None)
        perfect.begin()
        for cut in (False, True, False):
            perfect.cut = cut
            far.transport.sendto(b"a", ("far", 1))
            wire.protocol.datagram_received(b"b", ("far", 1))
        assert len(wire.sent) == len(far.got) == 2
        far.transport.close()
        assert far.lost

    run_virtual(main())


def test_what_is_under_way_arrives_later_and_in_order() -> None:
    async def main() -> None:
        network, wire, far = attached(Link(jitter_ms=50))
        network.begin()
        for k in range(50):
            far.transport.sendto(bytes([k]), ("far", 1))
            wire.protocol.datagram_received(bytes([k]), ("far", 1))
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        for arrived in (wire.sent, far.got):
            assert [data[0] for _, data in arrived] == list(range(50))
            delays = [at - k * 0.02 for k, (at, _) in enumerate(arrived)]
            assert 0.02 < np.mean(delays) < 0.12
            assert max(delays) > 0.05
        # What is on its way when the line is cut does not arrive, nor what comes after the socket has closed.
        far.transport.sendto(b"x", ("far", 1))
        network.cut = True
        await asyncio.sleep(1)
        network.cut = False
        far.transport.sendto(b"y", ("far", 1))
        far.transport.close()
        await asyncio.sleep(1)
        assert len(wire.sent) == 50

    run_virtual(main())


# --- the sound clock ----------------------------------------------------------------------------------


@dataclass
class Hand:
    """A clock that is moved by hand."""

    at_s: float = 500.0

    def now(self) -> float:
        return self.at_s


@pytest.mark.parametrize("ppm", [0.0, 200.0, -150.0])
def test_a_fast_sound_clock_sends_more_packets_in_the_same_time(ppm: float) -> None:
    clock = Hand()
    script = Script(clock, rate_hz=RATE_HZ, max_packets=100_000, skew_ppm=ppm)  # type: ignore[arg-type]
    script.start()
    while script.sent < 30_000:  # ten minutes
        clock.at_s = script.due_s
        script.take()
    real_s = clock.at_s - script.origin_s
    assert (600.0 - real_s) * 1000.0 == pytest.approx(600_000 * ppm * 1e-6, abs=0.1)
    assert script.late_s == 0.0
    assert script.at(clock.at_s) == pytest.approx(600.0)


# --- echo ---------------------------------------------------------------------------------------------


def speechlike(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> Samples:
    """Noise with the long-term spectrum of speech at −20 dBFS."""
    n = round(seconds * rate_hz)
    hz = np.fft.rfftfreq(n, 1 / rate_hz)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n)) * (hz > 100) / (1 + hz / 500)
    noise = np.fft.irfft(spectrum, n)
    return (noise * 0.1 / np.sqrt(np.mean(noise**2))).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [24_000, 48_000])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("level_db", [-10.0, -20.0, 30.0])
def test_an_echo_is_as_far_below_as_it_says_and_as_late(level_db: float, seed: int, rate_hz: int) -> None:
    played = speechlike(2.0, seed, rate_hz)
    path = EchoPath(level_db, 120, rate_hz=rate_hz, seed=seed)

    def heard(start: int, n: int) -> Samples:
        out = np.zeros(n, dtype=np.float32)
        first, last = max(0, start), min(len(played), start + n)
        if first < last:
            out[first - start : last - start] = played[first:last]
        return out

    size = rate_hz // 50
    echo = np.concatenate([path.over(k * size, size, heard) for k in range(120)])
    late = round(0.12 * rate_hz)
    assert not echo[:late].any()
    measured = level_dbfs(echo[late : late + len(played)]) - level_dbfs(played)
    assert measured == pytest.approx(-abs(level_db), abs=1.0)
    lags = np.fft.irfft(np.fft.rfft(echo, 2**18) * np.conj(np.fft.rfft(played, 2**18)))
    assert int(np.argmax(lags)) == pytest.approx(late, abs=rate_hz // 1000)


def test_rooms_differ_by_their_seed() -> None:
    def impulse(start: int, n: int) -> Samples:
        return np.array([1.0 if start + k == 0 else 0.0 for k in range(n)], dtype=np.float32)

    first, again, other = (EchoPath(-20, 10, rate_hz=RATE_HZ, seed=s).over(240, 480, impulse) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first[1:], other[1:], atol=1e-4)
    assert np.count_nonzero(first) > 100


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_listener_hears_at_once_what_the_recording_says_later(data: st.DataObject) -> None:
    """Streaming equals batch, with loss, lateness, pauses and silence."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1_000_000)))
    playout_s = data.draw(st.sampled_from([0.0, 0.02, 0.06]))
    arrivals: list[Arrival] = []
    sequence, timestamp, at_s = 7, 99_000, 0.3
    for _ in range(60):
        kind = rng.choice(["next", "lost", "paused"], p=[0.85, 0.1, 0.05])
        if kind == "lost":
            sequence, timestamp, at_s = sequence + 1, timestamp + 480, at_s + 0.02
        elif kind == "paused":
            timestamp, at_s = timestamp + 480 * 20, at_s + 0.4
        level = 0 if rng.random() < 0.3 else 8000
        samples = rng.integers(-level, level + 1, 480).astype(np.int16)
        arrivals.append(Arrival(at_s + float(rng.exponential(0.02)), sequence, timestamp, samples))
        sequence, timestamp, at_s = sequence + 1, timestamp + 480, at_s + 0.02
    n = round((at_s + 1.0) * RATE_HZ)
    expected, _ = play_out(arrivals, rate_hz=RATE_HZ, origin_s=0.0, n_samples=n, playout_s=playout_s)
    listener = Listener(rate_hz=RATE_HZ, playout_s=playout_s)
    heard = np.zeros(n, dtype=np.float32)
    for tick in range(n // 480):
        while arrivals and arrivals[0].at_s * RATE_HZ <= tick * 480 + 480:
            arrival = arrivals.pop(0)
            listener.add(arrival, arrival.at_s)
        heard[tick * 480 : tick * 480 + 480] = listener.played(tick * 480, 480)
    np.testing.assert_array_equal(heard[: n // 480 * 480], expected[: n // 480 * 480])


# --- what a call asks for -----------------------------------------------------------------------------


def test_a_listener_on_a_jittery_line_waits_for_its_whole_spread() -> None:
    assert CallSettings().listening_delay_ms == 20
    assert CallSettings(link=Link(jitter_ms=50)).listening_delay_ms == 120
    assert CallSettings(link=Link(skew_ppm=200, echo=Echo(-20, 100))).skew_ppm == 200


def test_turn_taking_travels_in_the_session() -> None:
    asked = CallSettings(turn_taking={"preset": "patient", "silence_likely_s": 0.25}).session()
    assert asked == {
        "type": "realtime",
        "duplex": {"turn_taking": {"preset": "patient", "silence_likely_s": 0.25}},
    }
    assert CallSettings().session() == {}
