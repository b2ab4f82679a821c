"""The number of codebooks over time: scripted ticks and link reports, and what must hold for any of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from duplex.bitrate import (
    BitrateOptions,
    BitratePolicy,
    CallBitrate,
    DeadlineOptions,
    LinkOptions,
    LinkReport,
    bits_per_second,
)

WIDE = BitrateOptions(fewest=1, most=32)
GOOD = LinkReport(loss=0.0, rtt_ms=50.0)


def ticks(policy: BitratePolicy, *headrooms: float, missed: bool = False) -> list[int]:
    return [policy.tick(headroom, missed) for headroom in headrooms]


def reports(call: CallBitrate, *links: LinkReport) -> list[int]:
    return [call.report(link) for link in links]


def plant(policy: BitratePolicy, headroom_at: Callable[[int], float], n_ticks: int) -> list[int]:
    """The ceilings when the headroom follows from the ceiling before."""
    found = []
    for _ in range(n_ticks):
        found.append(policy.ceiling)
        policy.tick(headroom_at(policy.ceiling))
    return found


def changes(values: Iterable[int]) -> int:
    values = list(values)
    return sum(a != b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(("codebooks", "bits"), [(1, 137.5), (8, 1100.0), (16, 2200.0), (32, 4400.0)])
def test_bit_rates_are_mimis(codebooks: int, bits: float) -> None:
    assert bits_per_second(codebooks) == bits


def test_bit_rates_of_other_codecs() -> None:
    assert bits_per_second(3, frame_rate_hz=50.0, codebook_bits=8.0) == 1200.0


def test_with_nothing_known_a_call_gets_everything() -> None:
    frame = BitratePolicy().call().frame()
    assert (frame.n_codebooks, frame.limited_by, frame.bits_per_second) == (8, "nothing", 1100.0)


# -- deadline -----------------------------------------------------------------------------------------------


def test_a_missed_deadline_halves_at_once_and_again() -> None:
    policy = BitratePolicy(WIDE)
    assert ticks(policy, *[-0.2] * 7) == [16, 8, 4, 2, 1, 1, 1]
    policy.reset()
    assert ticks(policy, 0.9, 0.9, missed=True) == [16, 8], "missed for another reason than this tick's own time"


def test_a_few_short_ticks_in_a_row_take_a_quarter_and_scattered_ones_nothing() -> None:
    policy = BitratePolicy(WIDE)
    assert ticks(policy, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05) == [32, 32, 24, 24, 24, 18]
    policy.reset()
    assert set(ticks(policy, *[0.05, 0.05, 0.2] * 50)) == {32}


def test_it_rises_one_at_a_time_after_two_seconds_of_ample_ticks() -> None:
    policy = BitratePolicy(WIDE)
    ticks(policy, -0.1)
    found = ticks(policy, *[0.8] * 100)
    assert found == [16] * 24 + [17] * 25 + [18] * 25 + [19] * 25 + [20]


def test_between_short_and_ample_nothing_changes() -> None:
    policy = BitratePolicy(WIDE)
    ticks(policy, -0.1)
    assert set(ticks(policy, *[0.11, 0.34] * 500)) == {16}


def test_one_tick_in_between_starts_the_wait_again() -> None:
    policy = BitratePolicy(WIDE)
    ticks(policy, -0.1)
    assert set(ticks(policy, *([0.8] * 24 + [0.2]) * 20)) == {16}


def test_a_load_that_grows_with_the_codebooks_settles() -> None:
    policy = BitratePolicy(WIDE)
    found = plant(policy, lambda codebooks: 1.0 - 0.05 * codebooks, 2000)
    assert changes(found[-1000:]) == 0
    assert 10 <= found[-1] <= 18, "between ample (13 at 0.35) and short (18 at 0.10)"


def test_what_cannot_be_carried_is_tried_less_and_less_often() -> None:
    policy = BitratePolicy(BitrateOptions(fewest=1, most=8))
    cliff = plant(policy, lambda codebooks: 0.05 if codebooks == 8 else 0.6, 12_000)
    tries = [at for at, (a, b) in enumerate(itertools.pairwise(cliff)) if (a, b) == (7, 8)]
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps[0] < 120
    assert gaps[-1] > 700
    assert gaps == sorted(gaps)
    assert sum(value == 8 for value in cliff) < 100
    # And when it can be carried again, it is, and the long wait is forgotten.
    assert set(plant(policy, lambda codebooks: 0.6, 3000)[-1000:]) == {8}
    ticks(policy, -0.1)
    assert ticks(policy, *[0.6] * 100)[-1] == 8


def test_exhausted_means_nothing_left_to_take_and_still_short() -> None:
    policy = BitratePolicy(BitrateOptions(fewest=4, most=8))
    ticks(policy, -0.1)
    assert (policy.ceiling, policy.exhausted) == (4, False)
    ticks(policy, -0.1, -0.1)
    assert policy.exhausted
    ticks(policy, 0.5)
    assert not policy.exhausted


# -- link ---------------------------------------------------------------------------------------------------


def test_loss_takes_a_quarter_and_heavy_loss_half_once_for_each_report() -> None:
    call = BitratePolicy(WIDE).call()
    assert reports(call, LinkReport(loss=0.05)) == [24]
    assert {call.frame().n_codebooks for _ in range(50)} == {24}, "one report is judged once"
    assert reports(call, LinkReport(loss=0.2), LinkReport(loss=0.2)) == [12, 6]
    assert call.frame().limited_by == "link"


def test_it_rises_after_three_good_reports_and_not_after_middling_ones() -> None:
    call = BitratePolicy(WIDE).call()
    reports(call, LinkReport(loss=0.2))
    assert reports(call, *[LinkReport(loss=0.02)] * 20)[-1] == 16
    assert reports(call, *[GOOD] * 6) == [16, 16, 17, 17, 17, 18]


def test_a_round_trip_that_grows_is_a_queue_and_a_long_one_is_not() -> None:
    far = BitratePolicy(WIDE).call()
    assert set(reports(far, *[LinkReport(rtt_ms=600.0)] * 10)) == {32}
    queue = BitratePolicy(WIDE).call()
    assert reports(queue, LinkReport(rtt_ms=40.0), LinkReport(rtt_ms=200.0), LinkReport(rtt_ms=500.0)) == [32, 24, 12]


def test_a_call_that_moves_to_a_longer_path_is_not_held_down_for_good() -> None:
    call = BitratePolicy(WIDE).call()
    reports(call, LinkReport(rtt_ms=40.0))
    found = reports(call, *[LinkReport(rtt_ms=170.0)] * 600)
    assert min(found) == 1
    assert found[-1] > 16


def test_bandwidth_caps_at_once_and_a_rise_needs_room_to_spare() -> None:
    call = BitratePolicy(WIDE).call()
    # 80 % of 2750 bit/s are 2200: 16 codebooks. 65 % of it are 13: no rise until there is more.
    assert reports(call, LinkReport(loss=0.0, bandwidth_bps=2750.0)) == [16]
    assert set(reports(call, *[LinkReport(loss=0.0, bandwidth_bps=2750.0)] * 30)) == {16}
    assert set(reports(call, *[LinkReport(loss=0.0, bandwidth_bps=3000.0)] * 30)) == {16}, "65 % are 14"
    assert reports(call, *[LinkReport(loss=0.0, bandwidth_bps=4000.0)] * 30)[-1] == 18, "65 % are 18"
    assert reports(call, LinkReport(loss=0.0, bandwidth_bps=10.0)) == [1], "a call keeps its fewest"


def test_overhead_is_taken_off_the_bandwidth() -> None:
    call = BitratePolicy(BitrateOptions(fewest=1, most=32, link=LinkOptions(overhead_bps=1100.0))).call()
    assert reports(call, LinkReport(bandwidth_bps=2750.0)) == [8]


def test_the_lower_ceiling_holds_and_calls_do_not_share_their_links() -> None:
    policy = BitratePolicy(WIDE)
    one, other = policy.call(), policy.call()
    one.report(LinkReport(loss=0.2))
    assert [call.frame().n_codebooks for call in (one, other)] == [16, 32]
    ticks(policy, -0.1, -0.1)
    assert [call.frame().n_codebooks for call in (one, other)] == [8, 8]
    assert one.frame().limited_by == "deadline"
    one.reset()
    policy.reset()
    assert one.frame().n_codebooks == 32


# -- any input ----------------------------------------------------------------------------------------------

share = st.one_of(st.none(), st.floats(0, 1))
ms = st.one_of(st.none(), st.floats(0, 5000))
bps = st.one_of(st.none(), st.floats(0, 1e6))
links = st.builds(LinkReport, loss=share, rtt_ms=ms, bandwidth_bps=bps)


@given(
    bounds=st.tuples(st.integers(1, 32), st.integers(1, 32)).map(sorted),
    inputs=st.lists(st.one_of(st.tuples(st.floats(-5, 1), st.booleans()), links), max_size=150),
)
def test_it_stays_in_bounds_falls_only_with_cause_and_rises_by_one(
    bounds: list[int], inputs: list[tuple[float, bool] | LinkReport]
) -> None:
    policy = BitratePolicy(BitrateOptions(fewest=bounds[0], most=bounds[1]))
    call = policy.call()
    for given_ in inputs:
        before = call.frame().n_codebooks
        if isinstance(given_, LinkReport):
            call.report(given_)
        else:
            policy.tick(*given_)
        after = call.frame().n_codebooks
        assert bounds[0] <= after <= bounds[1]
        assert after <= before + 1
        if isinstance(given_, tuple) and given_[0] >= 0.1 and not given_[1]:
            assert after >= before, "a tick with time left takes nothing away"


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="hysteresis"):
        DeadlineOptions(short_below=0.4, ample_above=0.3)
    with pytest.raises(ValidationError, match="thresholds of loss must rise"):
        LinkOptions(loss_ample=0.05)
    with pytest.raises(ValidationError, match="more than most"):
        BitrateOptions(fewest=9, most=8)
