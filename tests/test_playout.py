"""Playout: nothing lost, nothing twice, no clicks, and a resume from the same sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.errors import AgentFaultError
from duplex.frames import PACKET_SAMPLES
from duplex.playout import Playout, State


def ramp(n: int) -> np.ndarray:
    return (np.arange(n) / n).astype(np.float32)


def drain(playout: Playout) -> np.ndarray:
    out = []
    while not playout.drained:
        out.append(playout.take().samples)
    return np.concatenate(out) if out else np.zeros(0, np.float32)


@given(st.lists(st.integers(0, 1500), max_size=8))
def test_however_it_is_appended_it_comes_out_the_same(lengths: list[int]) -> None:
    audio = ramp(max(sum(lengths), 1))[: sum(lengths)]
    playout = Playout()
    playout.begin()
    for piece in np.split(audio, np.cumsum(lengths)[:-1]) if lengths else []:
        playout.append(piece)
    playout.complete()
    playout.release()
    out = drain(playout)
    np.testing.assert_array_equal(out[: len(audio)], audio)
    assert not out[len(audio) :].any()


def test_nothing_comes_out_before_release() -> None:
    playout = Playout()
    playout.begin()
    playout.append(ramp(4800))
    assert playout.audible
    assert not playout.take().samples.any()
    playout.release()
    assert playout.take().end_samples == PACKET_SAMPLES


@given(hold_at=st.integers(0, 8), quiet=st.integers(0, 5))
def test_a_hold_loses_nothing_and_resumes_from_the_same_sample(hold_at: int, quiet: int) -> None:
    audio = np.full(10 * PACKET_SAMPLES, 0.5, dtype=np.float32)
    playout = Playout()
    playout.begin()
    playout.append(audio)
    playout.complete()
    playout.release()
    before = [playout.take() for _ in range(hold_at)]
    playout.hold()
    fade = playout.take()
    assert fade.start_samples == fade.end_samples == hold_at * PACKET_SAMPLES
    assert fade.samples[0] == pytest.approx(0.5, abs=1e-3)
    assert fade.samples[-1] == pytest.approx(0.0, abs=1e-3)
    assert all(not playout.take().samples.any() for _ in range(quiet))
    playout.resume()
    first = playout.take()
    assert first.start_samples == hold_at * PACKET_SAMPLES
    assert first.samples[0] == pytest.approx(0.0, abs=1e-3)
    rest = drain(playout)
    assert len(before) * PACKET_SAMPLES + PACKET_SAMPLES + len(rest) == len(audio)
    assert (rest == 0.5).all()


def test_resuming_before_the_fade_went_out_changes_nothing() -> None:
    playout = Playout()
    playout.begin()
    playout.append(ramp(4 * PACKET_SAMPLES))
    playout.complete()
    playout.release()
    playout.hold()
    playout.resume()
    np.testing.assert_array_equal(drain(playout), ramp(4 * PACKET_SAMPLES))


def test_an_underrun_is_told_and_costs_no_audio() -> None:
    playout = Playout()
    playout.begin()
    playout.append(ramp(100))
    playout.release()
    taken = playout.take()
    assert taken.underrun
    assert taken.end_samples == 0
    playout.append(ramp(380))
    assert playout.take().end_samples == PACKET_SAMPLES


def test_rewound_audio_is_played_again() -> None:
    playout = Playout()
    playout.begin()
    audio = ramp(3 * PACKET_SAMPLES)
    playout.append(audio)
    playout.complete()
    playout.release()
    playout.take()
    second = playout.take()
    playout.rewind(second.samples)
    np.testing.assert_array_equal(drain(playout), audio[PACKET_SAMPLES:])


def test_a_talker_that_never_stops_is_stopped() -> None:
    playout = Playout(max_reply_s=1.0)
    playout.begin()
    playout.append(ramp(24_000))
    with pytest.raises(AgentFaultError, match="1 s"):
        playout.append(ramp(1))


def test_reset_empties_it() -> None:
    playout = Playout()
    playout.begin()
    playout.append(ramp(4800))
    playout.reset()
    assert playout.state is State.EMPTY
    assert playout.queued_samples == 0


def test_a_pause_of_its_own_passes_while_it_is_held_and_no_word_does() -> None:
    quiet, voice = np.zeros(PACKET_SAMPLES, np.float32), np.full(PACKET_SAMPLES, 0.1, np.float32)
    playout = Playout()
    playout.begin()
    playout.append(np.concatenate([voice, quiet, quiet, quiet, voice, voice]))
    playout.complete()
    playout.release()
    playout.take()
    playout.hold()
    fade, first = playout.take(), playout.take()
    assert (fade.end_samples, first.start_samples) == (PACKET_SAMPLES, PACKET_SAMPLES)
    held = [playout.take() for _ in range(5)]
    assert [taken.end_samples // PACKET_SAMPLES for taken in held] == [3, 4, 4, 4, 4]
    assert not any(taken.samples.any() for taken in held)
    playout.resume()
    assert playout.take().start_samples == 4 * PACKET_SAMPLES


@pytest.mark.parametrize(("faint_packets", "passed"), [(3, 13), (0, 10)])
def test_the_faint_end_of_a_word_passes_if_a_pause_follows_and_the_faint_beginning_of_one_does_not(
    faint_packets: int, passed: int
) -> None:
    quiet, faint, voice = (np.full(PACKET_SAMPLES, level, np.float32) for level in (0.0, 0.008, 0.1))
    playout = Playout()
    playout.begin()
    playout.append(np.concatenate([voice, *[faint] * faint_packets, *[quiet] * 10, faint, voice, voice]))
    playout.complete()
    playout.release()
    playout.take()
    playout.hold()
    held = [playout.take() for _ in range(30)]
    assert held[-1].end_samples == (1 + passed) * PACKET_SAMPLES
    assert not any(taken.samples.any() for taken in held[1:]), "who holds is silent"
    playout.resume()
    assert playout.take().samples.any()


def test_a_held_reply_does_not_run_out_in_its_last_pause() -> None:
    playout = Playout()
    playout.begin()
    playout.append(np.concatenate([np.full(PACKET_SAMPLES, 0.1, np.float32), np.zeros(5 * PACKET_SAMPLES, np.float32)]))
    playout.complete()
    playout.release()
    playout.take()
    playout.hold()
    for _ in range(20):
        playout.take()
    assert not playout.drained
    playout.resume()
    playout.take()
    assert playout.drained
