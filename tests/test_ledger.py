"""The ledger: what became of every sample, and which words were heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.agent import Word
from duplex.errors import InvalidEventError
from duplex.frames import PACKET_SAMPLES, ms_to_samples
from duplex.ledger import Evidence, Ledger
from duplex.line import PlayoutReport

WORDS = tuple(
    Word(t, ms_to_samples(200 * i), ms_to_samples(200 * i + 180)) for i, t in enumerate("one two three".split())
)


def sent(packets: int, *, delay_ms: float = 100.0, queued_ms: int = 1000) -> Ledger:
    """A ledger in which ``packets`` of a reply left, one each 20 ms from time 0, after 50 packets of silence."""
    ledger = Ledger(assumed_delay_ms=delay_ms)
    ledger.begin("r", "i")
    ledger.queue("r", ms_to_samples(queued_ms), WORDS)
    for n in range(packets):
        ledger.send("r", (51 + n) * PACKET_SAMPLES, (n + 1) * PACKET_SAMPLES, PACKET_SAMPLES, n * 0.02)
    return ledger


def test_without_evidence_the_clock_and_the_assumed_delay_decide() -> None:
    ledger = sent(50)
    heard = ledger.heard("r", 0.5)
    assert heard.ms == pytest.approx(400, abs=1)
    assert heard.evidence is Evidence.CLOCK
    assert heard.error_ms == 100.0


def test_a_word_was_heard_when_its_middle_was() -> None:
    ledger = sent(50)
    assert ledger.heard_text("r", 0.1 + 0.280) == "one"
    assert ledger.heard_text("r", 0.1 + 0.300) == "one two"
    assert ledger.heard_text("r", 5.0) == "one two three"


def test_playout_never_runs_past_what_was_sent() -> None:
    assert sent(10).heard("r", 60.0).ms == pytest.approx(200)


def test_an_acknowledgement_beats_the_clock() -> None:
    ledger = sent(50)
    ledger.acknowledge("r", 250.0, 0.5)
    heard = ledger.heard("r", 0.5)
    assert heard.evidence is Evidence.ACK
    assert heard.ms == pytest.approx(250, abs=1)
    assert ledger.heard("r", 0.6).ms == pytest.approx(350, abs=1)


def test_a_client_that_stopped_at_a_hold_heard_no_more_until_it_goes_on() -> None:
    ledger = sent(50)
    ledger.acknowledge("r", 250.0, 0.5)
    ledger.hold("r", 0.55)
    assert ledger.heard("r", 0.6).ms == pytest.approx(350, abs=1), "what it said before the hold says nothing of it"
    ledger.acknowledge("r", 320.0, 0.62)
    assert ledger.heard("r", 2.0).ms == pytest.approx(320)
    ledger.resume("r")
    assert ledger.heard("r", 2.0).ms > 400


@pytest.mark.parametrize("played_ms", [-1.0, 221.0, 1e9])
def test_acknowledging_what_was_never_sent_is_an_error_that_says_how_much_was(played_ms: float) -> None:
    ledger = sent(10)
    with pytest.raises(InvalidEventError, match="200 ms"):
        ledger.acknowledge("r", played_ms, 1.0)
    with pytest.raises(InvalidEventError, match="nobody"):
        ledger.acknowledge("nobody", 0.0, 1.0)


def test_an_acknowledgement_that_crossed_a_take_back_counts_up_to_what_is_left() -> None:
    ledger = sent(20)
    ledger.unsend("r", 5 * PACKET_SAMPLES)
    ledger.acknowledge("r", 390.0, 0.4)
    assert ledger.heard("r", 0.4).ms == pytest.approx(300)


def test_a_report_about_the_wire_is_translated_into_the_reply() -> None:
    ledger = sent(50)
    ledger.report(PlayoutReport(pts=60 * PACKET_SAMPLES, at_s=0.4, error_ms=40.0, grade="rtp"))
    heard = ledger.heard("r", 0.4)
    assert heard.evidence is Evidence.RTP
    assert heard.samples == 10 * PACKET_SAMPLES
    assert ledger.heard("r", 0.44).samples == 12 * PACKET_SAMPLES


def test_what_was_taken_back_was_not_sent() -> None:
    ledger = sent(20)
    ledger.unsend("r", 5 * PACKET_SAMPLES)
    assert ledger.sent_ms("r") == 300
    assert ledger.heard("r", 60.0).ms == pytest.approx(300)


@given(packets=st.integers(0, 50), now_s=st.floats(0, 3), dropped=st.booleans())
def test_fates_add_up(packets: int, now_s: float, dropped: bool) -> None:
    ledger = sent(packets)
    if dropped:
        ledger.drop("r")
    fate = ledger.fate("r", now_s)
    assert fate.queued + fate.sent + fate.heard + fate.dropped == ms_to_samples(1000)
    assert min(fate.queued, fate.sent, fate.heard, fate.dropped) >= 0


@given(st.lists(st.floats(0, 2), min_size=2))
def test_what_was_heard_never_shrinks_as_time_passes(times: list[float]) -> None:
    ledger = sent(50)
    heard = [ledger.heard("r", t).samples for t in sorted(times)]
    assert heard == sorted(heard)


def test_old_replies_are_forgotten() -> None:
    ledger = Ledger(max_replies=2)
    for name in "abc":
        ledger.begin(name, f"item-{name}")
    assert ledger.item("a") is None
    assert ledger.reply_of_item("item-c") == "c"
