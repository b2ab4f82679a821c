"""What happened on a call is told as it was, and drawn so that it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import RecordedEvent, Recording
from duplex.story import tell
from duplex.timeline import WIDTH_PX, draw_timeline, save_timeline


def sound(total_ms: int, *spans: tuple[int, int]) -> Samples:
    out = np.zeros(total_ms * SAMPLE_RATE_HZ // 1000, np.float32)
    for start, end in spans:
        n = (end - start) * SAMPLE_RATE_HZ // 1000
        first = start * SAMPLE_RATE_HZ // 1000
        out[first : first + n] = 0.2 * np.sin(2 * np.pi * 220 * np.arange(n) / SAMPLE_RATE_HZ)
    return out


def event(at_ms: float, kind: str, **fields: Any) -> RecordedEvent:
    return RecordedEvent(at_ms, {"type": kind, **fields})


def words(text: str, step_ms: float = 250.0) -> list[dict[str, Any]]:
    return [
        {"text": word, "start_ms": k * step_ms, "end_ms": (k + 1) * step_ms, "estimated": False}
        for k, word in enumerate(text.split())
    ]


def trace(at_ms: float, voice_to_voice_ms: float) -> RecordedEvent:
    names = ("end_of_turn", "listener", "thinker", "talker", "first_packet")
    spans = [{"name": name, "start_ms": 50.0 * k, "end_ms": 50.0 * k + 90.0} for k, name in enumerate(names)]
    return event(at_ms, "duplex.trace", voice_to_voice_ms=voice_to_voice_ms, spans=spans, speculative=True)


def a_call(question: str = "What is it?", answer: str = "It is a clock on the wall.", at_ms: int = 0) -> list[Any]:
    """User 1000-2000 ms, agent 2400-4200 ms: sound spans and events, all moved by ``at_ms``."""
    n = str(at_ms)
    events = [
        event(at_ms + 1200, "input_audio_buffer.speech_started", item_id=f"u{n}"),
        event(at_ms + 2300, "duplex.floor", floor="thinking", user="turn-complete"),
        event(
            at_ms + 2310,
            "conversation.item.input_audio_transcription.completed",
            item_id=f"u{n}",
            transcript=question,
        ),
        event(at_ms + 2380, "duplex.floor", floor="speaking", user="idle"),
        event(at_ms + 2381, "output_audio_buffer.started", response_id=f"r{n}"),
        trace(at_ms + 2382, 380.0),
        event(at_ms + 2390, "duplex.words", item_id=f"a{n}", response_id=f"r{n}", words=words(answer)),
        event(at_ms + 4200, "duplex.floor", floor="listening", user="idle"),
        event(at_ms + 4201, "output_audio_buffer.stopped", response_id=f"r{n}"),
    ]
    return [(at_ms + 1000, at_ms + 2000), (at_ms + 2400, at_ms + 4200), events]


def recorded(total_ms: int, *calls: list[Any], events: list[RecordedEvent] | None = None) -> Recording:
    user = sound(total_ms, *(call[0] for call in calls))
    agent = sound(total_ms, *(call[1] for call in calls))
    told = sorted([e for call in calls for e in call[2]] + (events or []), key=lambda e: e.at_ms)
    return Recording(np.stack([user, agent], axis=1), 20.0, tuple(told))


# --- the story ---------------------------------------------------------------------------------------


def test_a_turn_is_told_from_the_sound_not_from_when_events_came() -> None:
    story = tell(recorded(5000, a_call()))
    (turn,) = story.turns
    assert (turn.asked_ms, turn.answered_ms) == (2000, 2400)
    assert turn.voice_to_voice_ms == 400
    assert [name for name, _, _ in turn.spans] == ["end_of_turn", "listener", "thinker", "talker", "first_packet"]
    user, agent = story.utterances
    assert (user.who, user.text) == ("user", "What is it?")
    assert user.words[0].start_ms == 1000
    assert user.words[-1].end_ms == 2000
    assert (agent.who, agent.text) == ("agent", "It is a clock on the wall.")
    assert (agent.words[0].start_ms, agent.words[1].start_ms) == (2400, 2650)


def test_the_floor_is_told_without_gaps() -> None:
    floors = tell(recorded(5000, a_call())).floors
    assert [(span.floor, span.start_ms, span.end_ms) for span in floors] == [
        ("listening", 0, 2300),
        ("thinking", 2300, 2380),
        ("speaking", 2380, 4200),
        ("listening", 4200, 5000),
    ]


def test_words_after_the_cut_were_not_heard() -> None:
    cut = [
        event(3500, "conversation.item.truncated", item_id="a0", audio_end_ms=760),
        event(3501, "output_audio_buffer.cleared", response_id="r0"),
    ]
    story = tell(recorded(6000, a_call(), [(3000, 3900), (2400, 3200), []], events=cut))
    agent = next(said for said in story.utterances if said.who == "agent")
    assert [word.text for word in agent.words if word.heard] == ["It", "is", "a", "clock"]
    assert {word.start_ms for word in agent.words if not word.heard} == {2400 + 760}


def test_an_interruption_is_told_from_first_voice_to_silence() -> None:
    call = a_call()
    call[1] = (2400, 3180)
    cut = [event(3500, "output_audio_buffer.cleared", response_id="r0")]
    (stop,) = tell(recorded(6000, call, [(3000, 4000), (0, 0), []], events=cut)).stops
    assert (stop.said_ms, stop.silent_ms) == (3000, 3180)


def test_talking_over_without_a_cut_is_no_stop() -> None:
    assert not tell(recorded(6000, a_call(), [(3000, 3300), (0, 0), []])).stops


def test_words_wait_where_the_reply_was_held() -> None:
    held = [
        event(2900, "duplex.reply.held", response_id="r0"),
        event(3400, "duplex.reply.resumed", response_id="r0"),
    ]
    story = tell(recorded(6000, a_call(), events=held))
    agent = next(said for said in story.utterances if said.who == "agent")
    assert [word.start_ms for word in agent.words[:4]] == [2400, 2650, 2900, 3650]


def test_a_server_without_word_timings_still_gets_captions() -> None:
    span, reply, events = a_call()
    events = [e for e in events if e.type != "duplex.words"]
    for k, delta in enumerate(["It is ", "a clock."]):
        events.append(
            event(2385 + k, "response.output_audio_transcript.delta", item_id="a0", response_id="r0", delta=delta)
        )
    agent = tell(recorded(5000, [span, reply, events])).utterances[1]
    assert agent.text == "It is a clock."
    assert agent.words[0].start_ms == 2400
    assert agent.words[-1].end_ms == pytest.approx(4201)


def test_nothing_but_sound_is_a_story_too() -> None:
    story = tell(recorded(3000, [(1000, 2000), (0, 0), []]))
    assert (story.utterances, story.turns, story.stops) == ((), (), ())
    assert [span.floor for span in story.floors] == ["listening"]


# --- the picture -----------------------------------------------------------------------------------------


def texts(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Each text with its box in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for artist in figure.axes[0].texts:
        if artist.get_text():
            yield artist.get_text(), artist.get_window_extent(renderer)


def assert_legible(figure: Figure) -> None:
    """Every text lies on the page and on no other text."""
    found = list(texts(figure))
    for text, box in found:
        assert box.x0 >= 0, text
        assert box.x1 <= WIDTH_PX, text
    for k, (text, box) in enumerate(found):
        for other, other_box in found[k + 1 :]:
            apart = (
                box.x1 <= other_box.x0 + 1
                or other_box.x1 <= box.x0 + 1
                or box.y1 <= other_box.y0 + 3  # a descender may reach into the line below
                or other_box.y1 <= box.y0 + 3
            )
            assert apart, f"{text!r} lies on {other!r}"


def test_the_picture_says_what_happened() -> None:
    figure = draw_timeline(recorded(5000, a_call()), title="question.wav", subtitle="http://127.0.0.1:8998")
    shown = [text for text, _ in texts(figure)]
    for wanted in ("question.wav", "user", "agent", "What is it?", "It is a clock on the wall.", "400 ms", "turn 1"):
        assert wanted in shown
    for stage in ("end of turn", "listener", "thinker", "talker", "first packet"):
        assert stage in shown
    assert shown.count("90 ms") == 5
    assert all(floor in shown for floor in ("listening", "thinking", "speaking", "holding", "yielding"))
    assert_legible(figure)


def test_a_minute_is_cut_into_rows_and_stays_legible() -> None:
    long = "A rather long answer that takes many words to say very little, as such answers do. " * 2
    calls = [a_call("And what about this one, then, my dear?", long, at_ms=k * 5000) for k in range(12)]
    figure = draw_timeline(recorded(60_000, *calls))
    assert_legible(figure)
    assert sum(text == "floor" for text, _ in texts(figure)) == 4
    assert sum(text.startswith("turn ") for text, _ in texts(figure)) == 12


def test_turns_in_quick_succession_have_their_cards_side_by_side() -> None:
    quick = [[(t + 100, t + 500), (t + 700, t + 1100), [trace(t + 690, 190)]] for t in range(0, 13_000, 1300)]
    figure = draw_timeline(recorded(14_000, *quick))
    assert sum(text.startswith("turn ") for text, _ in texts(figure)) == 10
    assert_legible(figure)


@pytest.mark.parametrize(
    "question", ["", "Pneumonoultramicroscopicsilicovolcanoconiosis" * 3, "$x^2$ _a_ \\frac <b> 你好 %", "a " * 400]
)
def test_any_words_can_be_drawn(question: str, tmp_path: Path) -> None:
    save_timeline(recorded(5000, a_call(question)), tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 10_000


def test_a_latency_longer_than_a_row_is_drawn_across_rows() -> None:
    slow = [(1000, 2000), (18_400, 19_000), [trace(18_380, 16_380)]]
    figure = draw_timeline(recorded(20_000, slow))
    assert "16400 ms" in [text for text, _ in texts(figure)]
    assert_legible(figure)


@pytest.mark.parametrize("duration_ms", [20, 700, 14_990, 15_010])
def test_calls_of_any_length_are_drawn(duration_ms: int) -> None:
    FigureCanvasAgg(draw_timeline(recorded(duration_ms))).draw()  # type: ignore[no-untyped-call]


def test_the_file_is_a_png_of_the_promised_width(tmp_path: Path) -> None:
    save_timeline(recorded(5000, a_call()), tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as image:
        assert image.format == "PNG"
        assert image.width == WIDTH_PX
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20
