"""Limits: buckets and accounts as arithmetic, and sessions that are told and ended on virtual time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.rtcsctptransport import DataChunk
from hypothesis import given
from hypothesis import strategies as st

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import Config, LimitsConfig, ServerConfig
from duplex.conversation import Role
from duplex.errors import ConfigError, LimitError, ProtocolError
from duplex.exposure import is_loopback, key_file_of, limits_in_force
from duplex.hub import SessionHub
from duplex.limits import Accounts, Allowance, Place, TokenBucket
from duplex.metrics import Metrics
from duplex.requests import AddMessage, UpdateSettings
from duplex.session import Session
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, ScriptedTiming, run_virtual, tone
from duplex.transport.data_channel import unread_limit_passed
from duplex.transport.locks.caller import Caller, Meter, Visit, begin_visit
from duplex.transport.locks.metered_codec import MAX_REFUSED, MeteredCodec
from duplex.transport.locks.metered_tap import MeteredTap
from duplex.transport.locks.watched_line import WatchedLine, watched
from duplex.transport.realtime import RealtimeCodec, SessionDefaults

# --- buckets ---------------------------------------------------------------------------------------------


def test_a_bucket_gives_what_it_holds_and_then_says_when() -> None:
    bucket = TokenBucket(3, 0.5, now_s=10)
    assert [bucket.take(1, 10) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(1, 10) == 2
    assert bucket.take(1, 11) == 1
    assert bucket.take(1, 12) == 0
    assert bucket.take(4, 1000) == math.inf
    assert bucket.take(3, 1000) == 0, "what did not fit took nothing"
    assert bucket.take(1, 500) == 2, "time that goes back stands still"


def test_a_debt_is_paid_in_time() -> None:
    bucket = TokenBucket(10, 2, now_s=0)
    assert bucket.borrow(10, 0) == 0
    assert bucket.borrow(6, 0) == 3
    assert bucket.borrow(0, 2) == 1
    assert bucket.take(1, 3) == 0.5


@given(
    st.floats(1, 100),
    st.floats(0.1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), max_size=30),
)
def test_no_stretch_of_time_gets_more_than_its_share(
    capacity: float, per_s: float, asked: list[tuple[float, float]]
) -> None:
    bucket, now_s, granted = TokenBucket(capacity, per_s, 0), 0.0, 0.0
    for passed_s, amount in asked:
        now_s += passed_s
        wait_s = bucket.take(amount, now_s)
        if wait_s == 0:
            granted += amount
        elif wait_s < math.inf:
            assert bucket.take(amount, now_s + wait_s * (1 + 1e-9) + 1e-9) == 0, "after the wait it is there"
            granted, now_s = granted + amount, now_s + wait_s * (1 + 1e-9) + 1e-9
        assert granted <= (capacity + per_s * now_s) * (1 + 1e-6)


@pytest.mark.parametrize(("capacity", "per_s"), [(0, 1), (1, 0), (-1, 1)])
def test_a_bucket_that_never_gives_is_a_mistake(capacity: float, per_s: float) -> None:
    with pytest.raises(ValueError, match="never gives"):
        TokenBucket(capacity, per_s, 0)


# --- accounts ---------------------------------------------------------------------------------------------


def test_sessions_at_a_time() -> None:
    accounts = Accounts()
    mine = accounts.account("me", Allowance("this key", sessions=2), 0)
    first, second = accounts.enter([mine], 0), accounts.enter([mine], 0)
    with pytest.raises(LimitError, match="This key has 2 calls up"):
        accounts.enter([mine], 0)
    first.begin()
    first.begin()
    second.end()
    second.end()
    third = accounts.enter([mine], 0)
    with pytest.raises(LimitError):
        accounts.enter([mine], 0)
    first.end()
    first.end()
    third.begin()
    assert mine.held(0) == 1
    third.end()
    third.begin()
    assert mine.held(0) == 0


def test_a_call_that_never_comes_up_gives_its_place_back() -> None:
    accounts = Accounts()
    mine = accounts.account("me", Allowance("this key", sessions=1), 0)
    place = accounts.enter([mine], 0)
    with pytest.raises(LimitError):
        accounts.enter([mine], Place.SETUP_S - 0.1)
    other = accounts.enter([mine], Place.SETUP_S)
    other.begin()
    place.begin()  # it came after all; it is counted, and nothing breaks
    assert mine.held(100) == 2
    place.end()
    other.end()
    assert mine.held(100) == 0


def test_calls_a_minute_and_what_one_account_refuses_another_does_not_pay_for_in_places() -> None:
    accounts = Accounts()
    key = accounts.account("key", Allowance("this key", calls_per_minute=600), 0)
    address = accounts.account("address", Allowance("your address (192.0.2.1)", calls_per_minute=2), 0)
    for _ in range(2):
        accounts.enter([key, address], 0).end()
    with pytest.raises(LimitError, match=r"Your address \(192\.0\.2\.1\) may open 2 calls a minute") as refused:
        accounts.enter([key, address], 0)
    assert refused.value.retry_after_s == pytest.approx(30)
    assert key.held(0) == address.held(0) == 0
    accounts.enter([key, address], 30).end()


def test_changed_limits_hold_at_once_and_who_is_there_stays() -> None:
    accounts = Accounts()
    accounts.enter([accounts.account("me", Allowance("this key", sessions=2), 0)], 0).begin()
    smaller = accounts.account("me", Allowance("this key", sessions=1), 0)
    with pytest.raises(LimitError, match="1 calls up"):
        accounts.enter([smaller], 0)


def test_accounts_are_bounded_and_those_in_use_stay() -> None:
    accounts = Accounts(max_accounts=10)
    mine = accounts.account("me", Allowance("this key", sessions=1), 0)
    accounts.enter([mine], 0).begin()
    for n in range(100):
        accounts.account(f"passer-by {n}", Allowance("your address"), 0)
    assert len(accounts) == 10
    with pytest.raises(LimitError):
        accounts.enter([accounts.account("me", Allowance("this key", sessions=1), 0)], 0)


# --- which limits hold where ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        *[("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
        *[("::", False), ("192.0.2.1", False), ("example.org", False), ("", False)],
    ],
)
def test_what_is_loopback(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


def test_on_loopback_nothing_is_limited_that_was_not_asked_for() -> None:
    quiet = limits_in_force(Config())
    assert quiet.session_s is quiet.idle_s is quiet.calls_per_minute_per_address is quiet.sessions_per_address is None
    out = ServerConfig(host="0.0.0.0")
    assumed = limits_in_force(Config(server=out))
    assert (assumed.session_s, assumed.idle_s, assumed.sessions_per_address) == (3600, 300, 4)
    chosen = limits_in_force(Config(server=out, limits=LimitsConfig(session_s=0, idle_s=7)))
    assert (chosen.session_s, chosen.idle_s, chosen.sessions_per_address) == (None, 7, 4)


def test_keys_are_asked_for_beyond_loopback_and_where_they_are_named(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert key_file_of(Config()) is None
    out = Config.model_validate({"server": {"host": "0.0.0.0"}})
    with pytest.raises(ConfigError, match=r"duplex keys add NAME.*--host 127\.0\.0\.1.*--insecure"):
        key_file_of(out)
    assert key_file_of(Config.model_validate({"server": {"host": "0.0.0.0"}, "security": {"insecure": True}})) is None
    named = Config.model_validate({"security": {"keys_file": "/etc/duplex/keys.json"}})
    assert str(key_file_of(named)) == "/etc/duplex/keys.json"
    with pytest.raises(ConfigError, match="Leave one of them out"):
        key_file_of(Config.model_validate({"security": {"keys_file": "/x", "insecure": True}}))


# --- a session that is over its time --------------------------------------------------------------------------


def visit(**limits: float) -> Visit:
    meter = Meter(limits.get("bytes_per_s", 1e6), limits.get("events_per_s", 100), (), 0.0)
    return Visit(Caller("192.0.2.1"), meter)


class Call:
    """A session of the scripted agent on a line in memory, with limits. ``welcome``: see ``WatchedLine``."""

    def __init__(self, limits: LimitsConfig, guest: Visit | None = None) -> None:
        self.clock, self.line = VirtualClock(), LoopbackLine()
        self.welcome: str | None = None
        make = watched(Session, limits, lambda visit: self.welcome)
        agent = ScriptedAgent((ScriptedReply(duration_s=1.0),), ScriptedTiming(complete_s=0.3))
        self.hub = SessionHub(agent, self.clock, Config().session, max_sessions=1, make_session=make)
        if guest is not None:
            begin_visit(guest)

    async def lasts(self, limit_s: float, *at: tuple[float, Callable[[Session], None]]) -> float:
        """How long the session goes on, ``limit_s`` at most, when at some times something is done to it."""
        async with self.hub:
            began_s, waiting = self.clock.now(), deque(at)
            session = self.hub.open(self.line, AgentSettings())
            while self.hub.live and self.clock.now() < began_s + limit_s:
                if waiting and self.clock.now() - began_s >= waiting[0][0]:
                    waiting.popleft()[1](session)
                await self.clock.sleep_until(self.clock.now() + 0.05)
            return self.clock.now() - began_s

    def told(self) -> tuple[list[str], list[str]]:
        """The codes of errors, and the reasons of the end."""
        return [e.code for e in self.line.of(ev.ErrorRaised)], [e.reason for e in self.line.of(ev.SessionClosed)]


def test_a_session_that_is_too_long_is_told_and_ended() -> None:
    async def main() -> None:
        call = Call(LimitsConfig(session_s=120))
        # All that time somebody talks.
        talk = [(float(at_s), lambda _: call.line.say(tone(0.5))) for at_s in range(0, 150, 10)]
        assert await call.lasts(150, *talk) == pytest.approx(120, abs=1.2)
        assert call.told() == (["session_expired"], ["Your session hit the maximum duration of 2 minutes."])
        assert call.line.closed

    run_virtual(main())


def test_an_idle_session_is_told_and_ended_and_whoever_says_or_types_something_is_not_idle() -> None:
    async def main() -> None:
        call = Call(LimitsConfig(idle_s=20))
        assert await call.lasts(30) == pytest.approx(20, abs=1.2)
        assert call.told() == (["session_idle"], ["Nothing was said for 20 s."])
        call = Call(LimitsConfig(idle_s=20))
        spoken = (15.0, lambda session: call.line.say(tone(0.5)))
        typed = (30.0, lambda session: session.request(AddMessage(Role.USER, "hello")))
        # What is only set, or goes wrong, keeps no session up.
        nothing = (40.0, lambda session: session.request(UpdateSettings(AgentSettings(instructions="x"))))
        assert await call.lasts(60, spoken, typed, nothing) == pytest.approx(50, abs=1.5)

    run_virtual(main())


def test_without_limits_a_session_goes_on() -> None:
    async def main() -> None:
        call = Call(LimitsConfig())
        assert await call.lasts(60) == pytest.approx(60, abs=0.1)
        assert call.told() == ([], ["the server is stopping"])

    run_virtual(main())


def test_a_session_whose_key_is_revoked_or_that_floods_us_ends() -> None:
    async def main() -> None:
        guest = visit()
        call = Call(LimitsConfig(), guest)

        def revoke(session: Session) -> None:
            call.welcome = "The key of this call was revoked."

        assert await call.lasts(60, (10.0, revoke)) == pytest.approx(10, abs=1.2)
        assert call.told() == (["invalid_api_key"], ["The key of this call was revoked."])
        call = Call(LimitsConfig(), guest)

        def flood(session: Session) -> None:
            guest.expelled = "far too much"

        assert await call.lasts(60, (5.0, flood)) == pytest.approx(5, abs=1.2)
        assert call.told() == (["rate_limit_exceeded"], ["far too much"])

    run_virtual(main())


def test_a_session_holds_its_callers_place_until_it_ends() -> None:
    async def main() -> None:
        accounts, guest = Accounts(), visit()
        mine = accounts.account("me", Allowance("this key", sessions=1), 0)
        guest.place = accounts.enter([mine], 0)
        call = Call(LimitsConfig(session_s=60), guest)
        held: list[int] = []
        await call.lasts(100, (Place.SETUP_S + 5, lambda session: held.append(mine.held(call.clock.now()))))
        assert held == [1], "it is live, and not waiting"
        assert mine.held(call.clock.now()) == 0

    run_virtual(main())


def test_a_watched_line_is_the_line() -> None:
    async def main() -> None:
        line = LoopbackLine()
        watch = WatchedLine(line, VirtualClock(), LimitsConfig())
        line.say(tone(0.02))
        assert [packet.pts for packet in watch.receive()] == [0]
        assert watch.lead_packets == line.lead_packets
        assert (watch.take_image(), watch.flush(), watch.playout(), watch.closed) == (None, 0, None, False)
        await watch.close("enough")
        assert watch.closed
        assert line.closed

    run_virtual(main())


# --- what one connection may send -----------------------------------------------------------------------------


def test_events_on_a_data_channel_are_refused_beyond_the_rate_and_told_once_a_second() -> None:
    guest, now_s = visit(events_per_s=10), 0.0
    codec = MeteredCodec(RealtimeCodec(SessionDefaults(), audio_deltas=False), guest, lambda: now_s)
    codec.encode(ev.SessionStarted(ev.At(0, 0.0), "sess_1", "scripted", AgentSettings()))
    told: list[dict[str, Any]] = []

    def send(count: int) -> int:
        refused = 0
        for _ in range(count):
            try:
                assert codec.decode('{"type": "input_audio_buffer.clear"}') is not None
            except ProtocolError as error:
                refused += 1
                told.extend(codec.refusal(error, ev.At(0, now_s)))
        return refused

    assert send(50) == 0
    assert send(20) == 20
    [event] = told
    assert event["error"]["code"] == "rate_limit_exceeded"
    assert "send none for 0.1 s" in event["error"]["message"]
    now_s = 10.0
    assert send(1) == 0
    assert guest.expelled is None
    send(100 + MAX_REFUSED)
    assert guest.expelled is not None
    now_s = 1e6
    with pytest.raises(ProtocolError) as wrong:
        codec.decode('{"type": "nonsense"}')
    assert codec.refusal(wrong.value, ev.At(0, now_s))[0]["error"]["code"] == "invalid_event"


def test_bytes_count_for_the_connection_and_for_the_account() -> None:
    accounts = Accounts()
    mine = accounts.account("me", Allowance("this key", bytes_per_minute=6000), 0)
    meters = [Meter(1000, 1e6, [mine], 0.0) for _ in range(2)]
    assert meters[0].wait_s(6000, 0.0) == 0
    assert meters[1].wait_s(100, 0.0) == pytest.approx(1.0), "another connection of the same key"
    alone = Meter(1000, 1e6, (), 0.0)
    assert alone.wait_s(int(1000 * Meter.BURST_S), 0.0) == 0
    assert alone.wait_s(500, 0.0) == pytest.approx(0.5)


def test_packets_are_counted_and_those_too_many_dropped_until_the_debt_is_paid() -> None:
    now_s = 0.0
    mine = Accounts().account("me", Allowance("this key", bytes_per_minute=6000), 0)
    taken: list[Any] = []

    class Taker:
        def add(self, packet: Any) -> tuple[bool, None]:
            taken.append(packet)
            return True, None

    metrics = Metrics()
    tap = MeteredTap(Taker(), Meter(1000, 1e6, [mine], 0.0), lambda: now_s, metrics)
    packet = SimpleNamespace(payload=bytes(100))
    asked = [tap.add(packet) for _ in range(100)]
    assert len(taken) == 61, "a minute's worth, and the packet that goes over it"
    assert asked == [(True, None)] * 61 + [(False, None)] * 39
    assert metrics.queue_drops.labels("rtp")._value.get() == 39
    now_s = 0.9
    assert tap.add(packet) == (False, None), "what was dropped is no debt, but the last that was taken is"
    now_s = 1.01
    assert tap.add(packet) == (True, None)


async def test_half_messages_are_held_only_so_long() -> None:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.createDataChannel("oai-events")
    sctp = peer.sctp
    assert sctp is not None
    assert not unread_limit_passed(sctp)
    assert not unread_limit_passed(None)
    sctp._last_received_tsn, sent = 0, 0
    while not unread_limit_passed(sctp):
        sent += 1
        part = DataChunk(flags=0)  # neither a first nor a last fragment
        part.tsn, part.stream_id, part.user_data = sent, 0, bytes(10_000)
        await sctp._receive_data_chunk(part)
        assert sent < 300, "it would be held for ever"
    assert sent > 200, "what was offered is taken"
    await peer.close()
