"""What is measured on a recording is what lies in it, to the window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import (
    Arrival,
    Recording,
    Span,
    interruption_heard,
    is_audible_within,
    level_dbfs,
    normalised,
    play_out,
    starts_ms,
    stops_ms,
    turn_heard,
    voiced_extent,
    voiced_level_dbfs,
    voiced_spans,
)

RATE = 48_000
PACKET = 960


def sound(total_ms: int, *spans: tuple[int, int], dbfs: float = -20.0) -> Samples:
    """A square wave of exactly ``dbfs`` inside the spans (ms), nothing outside."""
    out = np.zeros(total_ms * SAMPLE_RATE_HZ // 1000, np.float32)
    wave = np.where(np.arange(len(out)) % 100 < 50, 1.0, -1.0) * 10 ** (dbfs / 20)
    for start, end in spans:
        part = slice(start * SAMPLE_RATE_HZ // 1000, end * SAMPLE_RATE_HZ // 1000)
        out[part] = wave[part]
    return out


def recorded(user: Samples, agent: Samples) -> Recording:
    return Recording(np.stack([user, agent], axis=1), playout_ms=20.0)


# --- levels and voice --------------------------------------------------------------------------------


def test_full_scale_is_a_square_wave_at_one() -> None:
    assert level_dbfs(np.ones(100, np.float32)) == pytest.approx(0.0)
    assert level_dbfs(np.full(100, 0.1, np.float32)) == pytest.approx(-20.0, abs=1e-4)
    assert level_dbfs(np.zeros(100, np.float32)) == -120.0
    assert level_dbfs(np.zeros(0, np.float32)) == -120.0


@pytest.mark.parametrize(("dbfs", "heard"), [(-39.9, True), (-40.1, False)])
def test_audible_means_forty_below_full_scale(dbfs: float, heard: bool) -> None:
    assert is_audible_within(sound(500, (100, 400), dbfs=dbfs), 0, 500) is heard


def test_a_click_is_not_voice_and_gaps_are_bridged_on_request() -> None:
    said = sound(3000, (100, 120), (500, 900), (1000, 1400))
    assert voiced_spans(said) == [Span(500, 900), Span(1000, 1400)]
    assert voiced_spans(said, bridge_ms=200) == [Span(500, 1400)]
    assert voiced_extent(said) == Span(500, 1400)
    assert voiced_extent(sound(1000)) is None


def test_normalising_sets_the_level_of_the_speech_not_of_its_pauses() -> None:
    loud = normalised(sound(5000, (1000, 1500), (3000, 3200), dbfs=-33.0))
    assert voiced_level_dbfs(loud) == pytest.approx(-20.0, abs=0.01)


def test_normalising_never_clips() -> None:
    peaky = sound(1000, (0, 1000), dbfs=-40.0)
    peaky[::4000] = 0.5
    assert np.max(np.abs(normalised(peaky))) <= 0.99
    assert not np.any(normalised(sound(500)))


# --- when the agent starts and stops -----------------------------------------------------------------


def test_starting_takes_a_tenth_of_a_second_of_sound() -> None:
    agent = sound(3000, (200, 250), (1000, 1090), (2000, 2600))
    assert starts_ms(agent, 0) == 1000  # 90 of 100 ms
    assert starts_ms(agent, 1100) == 2000
    assert starts_ms(agent, 2700) is None
    assert starts_ms(sound(3000, (1000, 1070)), 0) is None


def test_stopping_takes_300_ms_without_sound() -> None:
    agent = sound(4000, (0, 1000), (1200, 1500), (1900, 2500))
    assert stops_ms(agent, 500) == 1500  # the gap of 200 ms is a pause between words
    assert stops_ms(agent, 2000) == 2500
    assert stops_ms(agent, 3000) == 3000
    assert stops_ms(sound(1000, (0, 900)), 500) is None


@given(start=st.integers(5, 200), length=st.integers(10, 100), loudness=st.floats(-35, 0))
def test_voice_is_found_where_it_was_put(start: int, length: int, loudness: float) -> None:
    said = sound(4000, (start * 10, (start + length) * 10), dbfs=loudness)
    assert voiced_extent(said) == Span(start * 10, (start + length) * 10)
    assert starts_ms(said, 0) == start * 10
    assert stops_ms(said, start * 10) == (start + length) * 10


# --- turns and interruptions ---------------------------------------------------------------------------


def test_voice_to_voice_runs_from_last_voiced_to_first_audible() -> None:
    turn = turn_heard(recorded(sound(5000, (1000, 2000)), sound(5000, (2430, 3000))), 500)
    assert turn is not None
    assert turn.user == Span(1000, 2000)
    assert turn.voice_to_voice_ms == 430
    assert not turn.took_over


def test_an_agent_that_speaks_into_the_turn_took_over_and_has_no_latency() -> None:
    turn = turn_heard(recorded(sound(5000, (1000, 1500), (2200, 3000)), sound(5000, (1900, 4000))), 500)
    assert turn is not None
    assert turn.took_over
    assert turn.voice_to_voice_ms is None


def test_a_reply_to_the_next_turn_does_not_answer_this_one() -> None:
    call = recorded(sound(9000, (1000, 2000), (5000, 6000)), sound(9000, (6400, 7000)))
    first, second = turn_heard(call, 0, 4000), turn_heard(call, 4000)
    assert first is not None
    assert first.voice_to_voice_ms is None
    assert second is not None
    assert second.voice_to_voice_ms == 400
    assert turn_heard(call, 2500, 4000) is None


def test_an_interruption_that_works() -> None:
    call = recorded(sound(6000, (2000, 3500)), sound(6000, (500, 2180), (4000, 5000)))
    heard = interruption_heard(call, 1900)
    assert heard is not None
    assert (heard.valid, heard.stop_ms, heard.yielded) == (True, 180, True)


def test_pausing_and_going_on_is_not_yielding() -> None:
    call = recorded(sound(6000, (2000, 4000)), sound(6000, (500, 2180), (2800, 5000)))
    heard = interruption_heard(call, 1900)
    assert heard is not None
    assert (heard.stop_ms, heard.yielded) == (180, False)


def test_talking_on_is_not_yielding_and_silence_is_nothing_to_interrupt() -> None:
    deaf = interruption_heard(recorded(sound(6000, (2000, 4000)), sound(6000, (500, 6000))), 1900)
    assert deaf is not None
    assert (deaf.valid, deaf.stop_ms, deaf.yielded) == (True, None, False)
    silent = interruption_heard(recorded(sound(6000, (2000, 4000)), sound(6000, (500, 1500))), 1900)
    assert silent is not None
    assert not silent.valid
    between = interruption_heard(recorded(sound(6000, (2000, 4000)), sound(6000, (500, 1900), (4500, 6000))), 1900)
    assert between is not None
    assert not between.valid  # it had just paused by itself


# --- the listener ----------------------------------------------------------------------------------------


def packet(k: int, at_ms: float, *, timestamp: int | None = None, loud: bool = True) -> Arrival:
    samples = np.full(PACKET, 8000 + k if loud else 0, np.int16)
    return Arrival(at_ms / 1000, k, k * PACKET if timestamp is None else timestamp, samples)


def heard_at(out: Samples, k: int) -> float | None:
    """When packet ``k`` was first heard, ms."""
    found = np.flatnonzero(np.round(out * 32768) == 8000 + k)
    return found[0] / 48 if len(found) else None


def listen(arrivals: list[Arrival]) -> tuple[Samples, object]:
    return play_out(arrivals, rate_hz=RATE, origin_s=0.0, n_samples=RATE * 3, playout_s=0.02)


def test_steady_packets_are_heard_a_playout_after_they_came() -> None:
    out, stats = play_out(
        [packet(k, 100 + 20 * k) for k in range(10)], rate_hz=RATE, origin_s=0, n_samples=RATE, playout_s=0.02
    )
    assert heard_at(out, 0) == 120
    assert heard_at(out, 9) == 300
    assert np.count_nonzero(out) == 10 * PACKET
    assert (stats.received, stats.lost, stats.late, stats.stalled_ms) == (10, 0, 0, 0)


def test_jitter_within_the_playout_leaves_no_trace() -> None:
    even, _ = listen([packet(k, 100 + 20 * k) for k in range(20)])
    shaken, _ = listen([packet(k, 100 + 20 * k + (19 if k % 3 == 1 else 0)) for k in range(20)])
    assert np.array_equal(even, shaken)


def test_a_late_packet_is_heard_late_and_speech_waits_for_a_pause_to_catch_up() -> None:
    times = [100 + 20 * k + (70 if k >= 5 else 0) for k in range(10)]
    out, stats = play_out(
        [packet(k, at) for k, at in enumerate(times)], rate_hz=RATE, origin_s=0, n_samples=RATE, playout_s=0.02
    )
    assert heard_at(out, 4) == 200
    assert heard_at(out, 5) == 270  # at once, 50 ms after its moment
    assert (stats.late, stats.stalled_ms) == (1, 50)
    recovered = [packet(k, 100 + 20 * k + (70 if k == 5 else 0), loud=k < 8 or k > 15) for k in range(20)]
    out, _ = listen(recovered)
    assert heard_at(out, 7) == 310
    assert heard_at(out, 19) == 500  # the silence between gave the 50 ms back


def test_a_lost_packet_is_a_gap_and_costs_no_delay() -> None:
    out, stats = listen([packet(k, 100 + 20 * k) for k in range(10) if k != 4])
    assert heard_at(out, 3) == 180
    assert heard_at(out, 4) is None
    assert heard_at(out, 5) == 220
    assert stats.lost == 1  # type: ignore[attr-defined]


def test_a_sender_may_pause_and_each_stretch_starts_afresh() -> None:
    resumed = [packet(k, 1007 + 20 * k, timestamp=45_000 + k * PACKET) for k in range(5, 8)]
    out, stats = listen([*(packet(k, 100 + 20 * k) for k in range(5)), *resumed])
    assert heard_at(out, 4) == 200
    assert heard_at(out, 5) == 1127
    assert stats.lost == 0  # type: ignore[attr-defined]


def test_a_sender_whose_clock_stood_still_in_the_pause_is_heard_too() -> None:
    out, stats = listen([packet(k, 100 + 20 * k + (900 if k >= 5 else 0)) for k in range(10)])
    assert heard_at(out, 5) == 1120
    assert stats.late == 0  # type: ignore[attr-defined]


def test_a_packet_after_its_successor_is_counted_and_not_heard() -> None:
    arrivals = [packet(0, 100), packet(1, 120), packet(3, 160), packet(2, 161), packet(4, 180)]
    out, stats = listen(arrivals)
    assert heard_at(out, 2) is None
    assert heard_at(out, 4) == 200
    assert (stats.out_of_order, stats.lost) == (1, 0)  # type: ignore[attr-defined]


@given(delays=st.lists(st.floats(0, 90), min_size=1, max_size=60), lost=st.sets(st.integers(0, 59)))
def test_nothing_is_heard_before_it_arrived_or_twice(delays: list[float], lost: set[int]) -> None:
    at = 100.0
    arrivals = []
    for k, delay in enumerate(delays):
        at = max(at, 100 + 20 * k + delay)
        if k not in lost:
            arrivals.append(packet(k, at))
    out, _ = listen(arrivals)
    previous = -1.0
    for arrival in arrivals:
        moment = heard_at(out, arrival.sequence)
        assert moment is not None
        assert moment >= arrival.at_s * 1000 - 0.1
        assert moment > previous
        assert np.count_nonzero(np.round(out * 32768) == 8000 + arrival.sequence) == PACKET
        previous = moment
