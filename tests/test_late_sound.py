"""A native reply whose frames are late: the gap is concealed, the delay does not stay. Numbers, and virtual calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_fakes import FRAME, FakeModel, fake_agent

from duplex import events as ev
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.late_sound import MOST_OWED_S, PACKET_S, LateSound
from duplex.testing import VirtualCall, tone

LONG = " ".join(f"word{k}" for k in range(12))


def voice(frames: int, hz: float = 225.0) -> list[Samples]:
    return list(tone(frames * FRAME / SAMPLE_RATE_HZ, hz=hz).reshape(frames, FRAME))


def play(frames: list[Samples], at_s: list[float], seconds: float) -> tuple[Samples, LateSound]:
    """What is heard of frames that come when they come, by a line that takes a packet every 20 ms."""
    late, queue, played = LateSound(), np.zeros(0, np.float32), 0
    heard: list[Samples] = []
    waiting = list(zip(at_s, frames, strict=True))
    for tick in range(round(seconds / PACKET_S)):
        now_s = tick * PACKET_S
        while waiting and waiting[0][0] <= now_s + 1e-9:
            queue = np.concatenate([queue, late.take(waiting.pop(0)[1])])
        if waiting:  # it is not over
            queue = np.concatenate([queue, late.missing(now_s, played + len(queue))])
        if len(queue) >= PACKET_SAMPLES:
            late.sent(now_s)
            heard.append(queue[:PACKET_SAMPLES])
            queue, played = queue[PACKET_SAMPLES:], played + PACKET_SAMPLES
        elif played:
            heard.append(np.zeros(PACKET_SAMPLES, np.float32))
    return np.concatenate(heard), late


def on_time(n: int, first_s: float = 0.0) -> list[float]:
    return [first_s + 0.08 * k for k in range(n)]


def test_what_is_on_time_is_untouched() -> None:
    frames = voice(10)
    heard, late = play(frames, on_time(10), 0.8)
    assert np.array_equal(heard, np.concatenate(frames))
    assert (late.concealed, late.owed_samples) == (0, 0)


@pytest.mark.parametrize("late_s", [0.02, 0.06, 0.08, 0.2, 0.44])
def test_a_late_frame_is_concealed_and_leaves_no_delay(late_s: float) -> None:
    frames, at_s = voice(20), on_time(20)
    at_s[5:] = [max(at, 0.4 + late_s) for at in at_s[5:]]
    heard, late = play(frames, at_s, 1.6)
    right = np.concatenate(frames)
    assert late.concealed == 1
    assert late.owed_samples == 0
    gap, over = 5 * FRAME, 5 * FRAME + round(late_s * SAMPLE_RATE_HZ)
    assert np.array_equal(heard[:gap], right[:gap])
    blend = PACKET_SAMPLES  # what came is blended in, then it is where it would have been
    assert np.array_equal(heard[over + blend :], right[over + blend :])
    assert np.abs(np.diff(heard)).max() < 1.5 * np.abs(np.diff(right)).max()  # no click at either end
    if late_s <= 0.02:
        assert np.sqrt(np.mean((heard - right)[gap:over] ** 2)) < 0.1 * np.sqrt(np.mean(right**2))  # its pitch goes on


def test_beyond_what_can_be_pretended_the_reply_pauses_and_goes_on() -> None:
    frames, at_s = voice(20), on_time(20)
    for k in range(5, 20):
        at_s[k] += 2.0  # the device stood still, and every frame is there in the end
    heard, late = play(frames, at_s, 4.0)
    assert late.owed_samples == 0
    loud = np.abs(heard).reshape(-1, PACKET_SAMPLES).max(axis=1) > 0.01
    assert np.count_nonzero(loud) >= 20 * FRAME / PACKET_SAMPLES  # nothing is lost of what was said
    assert np.count_nonzero(~loud[: np.flatnonzero(loud)[-1]]) * PACKET_S == pytest.approx(2.0, abs=0.1)
    right = np.concatenate(frames)[6 * FRAME :]
    ended = np.flatnonzero(np.abs(heard) > 1e-6)[-1] + 1
    assert np.array_equal(heard[ended - len(right) : ended], right)


@given(st.lists(st.integers(0, 15), min_size=8, max_size=30))
def test_for_any_lateness_sound_is_whole_and_nothing_is_owed_for_long(late_packets: list[int]) -> None:
    at_s, frames = [], voice(len(late_packets))
    for k, late in enumerate(late_packets):
        at_s.append(max(at_s[-1] if at_s else 0.0, 0.08 * k + late * PACKET_S))
    heard, late_sound = play(frames, at_s, 0.08 * len(frames) + 1.0)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() <= 1.05 * np.abs(np.concatenate(frames)).max()
    assert 0 <= late_sound.owed_samples <= round(MOST_OWED_S * SAMPLE_RATE_HZ)


def test_a_machine_that_slept_does_not_make_up_for_it() -> None:
    late = LateSound()
    frames = voice(3)
    late.take(frames[0])
    late.sent(10.0)
    assert not len(late.missing(10.0, FRAME))
    assert not len(late.missing(70.0, FRAME))  # the wire starts counting afresh, too


# --- a whole call ---------------------------------------------------------------------------------


def reply_of(compute_s: tuple[float, ...] | float, **line: Any) -> tuple[Samples, VirtualCall]:
    """What the wire carried from a reply's first packet to its last."""
    agent, _ = fake_agent(FakeModel(answers=(LONG,), compute_s=compute_s))
    with VirtualCall(agent, **line) as call:
        call.say(speech_s=1.0)
        [finished] = [event for event in call.events if isinstance(event, ev.ReplyFinished)]
        assert (finished.status, finished.text) == ("completed", LONG)
        mine = [k for k, packet in enumerate(call.line.played) if packet.reply_id == finished.reply_id]
        return np.concatenate([p.samples for p in call.line.played[mine[0] : mine[-1] + 1]]), call


def hiccup(at: int, late_s: float) -> tuple[float, ...]:
    """Frame ``at`` takes so much longer, and those behind it come when it does."""
    return tuple(0.03 + (max(0.0, late_s - 0.08 * (k - at)) + 1e-6 * (k - at) if k >= at else 0.0) for k in range(400))


@pytest.mark.parametrize("late_s", [0.1, 0.3])
def test_in_a_call_a_late_frame_leaves_the_rest_where_it_was(late_s: float) -> None:
    right, undisturbed = reply_of(0.03)
    heard, call = reply_of(hiccup(40, late_s))
    assert undisturbed.session._metrics.underruns._value.get() == 0
    # What is missing is due 40 ms (the pre-roll) after the frame was, to the packet.
    underruns = call.session._metrics.underruns._value.get()
    assert underruns == pytest.approx((late_s - 0.04) / PACKET_S, abs=1)
    assert len(heard) == len(right)
    differs = np.flatnonzero(np.abs(heard - right) > 1e-6)
    assert len(differs)
    assert differs[-1] - differs[0] <= (underruns + 1) * PACKET_SAMPLES
    words = [word.text for event in call.events if isinstance(event, ev.ReplyWords) for word in event.words]
    assert words == LONG.split()
