"""The published API, event by event and field by field, in whole conversations on virtual time.

``covers`` names the rows of ``realtime_catalogue.py`` that a test shows; whether it did is checked when it ends.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from openai.types.realtime import RealtimeClientEvent
from openai.types.realtime.realtime_audio_config_input import RealtimeAudioConfigInput
from openai.types.realtime.realtime_audio_config_output import RealtimeAudioConfigOutput
from openai.types.realtime.realtime_audio_input_turn_detection import SemanticVad, ServerVad
from openai.types.realtime.realtime_response_create_params import RealtimeResponseCreateParams
from openai.types.realtime.realtime_session_create_request import RealtimeSessionCreateRequest
from realtime_catalogue import CLIENT_EVENTS, EXTENSIONS, RESPONSE_FIELDS, SERVER_EVENTS, SESSION_FIELDS
from realtime_talk import OFFICIAL, Talk, run_talk

from duplex.agent import FinalTranscript
from duplex.codecs import g711
from duplex.errors import AgentFaultError
from duplex.testing import ScriptedAgent, ScriptedCall, ScriptedReply, ScriptedTiming
from duplex.transport.pcm import from_pcm16
from duplex.transport.realtime_decode import READERS

TOOL = {"type": "function", "name": "find_order", "description": "Finds an order.", "parameters": {"type": "object"}}
CALLING = ScriptedReply("One moment.", duration_s=0.6, calls=(ScriptedCall("find_order", {"number": 7}),))
SHORT = ScriptedReply("All right.", duration_s=0.6)
LONG = ScriptedReply("This is a rather long answer to you.", duration_s=4.0)
COVERED: dict[str, list[str]] = {}
"""Row to the tests that cover it."""


def covers(*rows: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Rows: an event, or a field as ``session.…`` or ``response.…`` with a leading ``@``."""

    def note(test: Callable[..., Any]) -> Callable[..., Any]:
        for row in rows:
            COVERED.setdefault(row, []).append(test.__name__)
        test.rows = rows  # type: ignore[attr-defined]
        return test

    return note


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a conversation; afterwards every row the test covers was sent, or came."""
    talks: list[Talk] = []

    def go(*args: Any, **options: Any) -> Talk:
        talks.append(run_talk(*args, **options))
        return talks[-1]

    yield go
    sent = [event for talk in talks for event in talk.sent]
    seen = {event["type"] for talk in talks for event in talk.events} | {event["type"] for event in sent}
    for row in request.function.rows:
        if row.startswith("@"):
            assert any(_has(event, row[1:].split(".")) for event in sent), f"{row} was never sent"
        else:
            assert row in seen, f"{row} was neither sent nor received"


def _has(value: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def refusals(talk: Talk) -> list[str | None]:
    return [event["error"]["param"] for event in talk.of("error")]


# --- a session ------------------------------------------------------------------------------------------


@covers("session.created", "session.update", "session.updated", "@session.type", "@session.model")
def test_a_session_is_created_and_updated(run: Any) -> None:
    async def script(talk: Talk) -> None:
        updated = await talk.update(type="realtime", model="gpt-realtime", instructions="Be brief.")
        assert (updated["instructions"], updated["model"]) == ("Be brief.", "duplex")
        assert (await talk.update(type="realtime", instructions=None))["instructions"] is None
        created = talk.of("session.created")[0]["session"]
        assert await talk.update(**created) == created  # what it says of itself can be sent back

    run(script)


@covers(
    "error",
    "@session.audio.input.noise_reduction",
    "@session.audio.output.speed",
    "@session.parallel_tool_calls",
    "@session.truncation",
    "@session.include",
    "@session.prompt",
    "@session.reasoning",
    "@session.tracing",
    "@response.audio",
    "@response.parallel_tool_calls",
    "@response.prompt",
    "@response.reasoning",
)
def test_what_cannot_be_honoured_is_refused_by_name_and_changes_nothing(run: Any) -> None:
    session: dict[str, Any] = {
        "audio.input.noise_reduction": {"type": "near_field"},
        "audio.output.speed": 1.2,
        "parallel_tool_calls": False,
        "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
        "include": ["item.input_audio_transcription.logprobs"],
        "prompt": {"id": "pmpt_1"},
        "reasoning": {"effort": "low"},
        "tracing": {"workflow_name": "orders"},
    }
    response: dict[str, Any] = {
        "audio": {"output": {"voice": "marin"}},
        "parallel_tool_calls": False,
        "prompt": {"id": "pmpt_1"},
        "reasoning": {"effort": "low"},
    }

    async def script(talk: Talk) -> None:
        before = talk.of("session.created")[0]["session"]
        for path, value in session.items():
            for name in reversed(path.split(".")):
                value = {name: value}
            await talk.send("session.update", session={"instructions": "Changed.", **value}, event_id=path)
            error = (await talk.until("error"))["error"]
            assert (error["param"], error["event_id"], error["code"]) == (f"session.{path}", path, "unsupported")
        for name, value in response.items():
            await talk.send("response.create", response={name: value})
            assert (await talk.until("error"))["error"]["param"] == f"response.{name}"
        assert await talk.update() == before
        assert not talk.of("response.created")

    run(script)


@covers("@session.audio.output.voice", "@session.instructions")
def test_voices_and_instructions(run: Any) -> None:
    async def script(talk: Talk) -> None:
        assert (await talk.update(audio={"output": {"voice": "marin"}}))["audio"]["output"]["voice"] == "default"
        assert (await talk.update(instructions="Sing."))["instructions"] == "Sing."

    run(script)


# --- turns ----------------------------------------------------------------------------------------------


@covers(
    "input_audio_buffer.append",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.completed",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
    "@session.output_modalities",
)
def test_a_spoken_turn_is_answered_in_the_published_order(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.update(output_modalities=["audio"])
        await talk.speak(0.8)
        await talk.until("response.done")

    talk = run(script, ScriptedAgent([SHORT]))
    assert list(dict.fromkeys(talk.kinds()))[2:] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.done",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    assert len(from_pcm16(talk.sound())) == pytest.approx(0.6 * 24_000, abs=480)


@covers("@session.audio.input.turn_detection", "input_audio_buffer.commit", "response.create")
def test_with_null_the_client_decides(run: Any) -> None:
    async def script(talk: Talk) -> None:
        updated = await talk.update(audio={"input": {"turn_detection": None}})
        assert updated["audio"]["input"]["turn_detection"] is None
        await talk.speak(0.6)
        await talk.wait(2.0)
        assert not talk.of("input_audio_buffer.committed")
        await talk.send("input_audio_buffer.commit")
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        await talk.speak(1.0)  # and interrupts nobody
        done = await talk.until("response.done")
        assert done["response"]["status"] == "completed"
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.done")
        await talk.send("input_audio_buffer.commit", event_id="mine")
        error = (await talk.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")

    talk = run(script, ScriptedAgent([ScriptedReply(duration_s=1.5)]))
    assert not talk.of("input_audio_buffer.speech_started")
    assert len(talk.of("response.created")) == 1


@covers("input_audio_buffer.clear", "input_audio_buffer.cleared")
def test_a_cleared_buffer_is_no_turn(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.speak(0.6)
        await talk.send("input_audio_buffer.clear")
        await talk.until("input_audio_buffer.cleared")
        await talk.wait(2.0)

    assert not run(script).of("input_audio_buffer.committed")


@covers(
    "@session.audio.input.turn_detection.type",
    "@session.audio.input.turn_detection.threshold",
    "@session.audio.input.turn_detection.prefix_padding_ms",
    "@session.audio.input.turn_detection.silence_duration_ms",
    "@session.audio.input.turn_detection.eagerness",
)
def test_turn_detection_is_shown_as_it_is_and_reaches_the_agent(run: Any) -> None:
    agent = ScriptedAgent()
    vad = {"type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 200, "silence_duration_ms": 800}

    async def script(talk: Talk) -> None:
        shown = (await talk.update(audio={"input": {"turn_detection": vad}}))["audio"]["input"]["turn_detection"]
        assert {**shown, **vad} == shown
        table = agent.sessions[0].settings.turn_taking or {}
        assert {table[f"silence_{name}_s"] for name in ("likely", "unknown", "unlikely", "most")} == {0.8}
        assert table["speech_threshold"] == 0.6
        await talk.quiet(1.0)
        began_ms = talk.session._at().pts / 24.0
        await talk.speak(0.5)
        start_ms = (await talk.until("input_audio_buffer.speech_started"))["audio_start_ms"]
        assert start_ms == pytest.approx(began_ms - 200, abs=45)
        low = {"type": "semantic_vad", "eagerness": "low"}
        shown = (await talk.update(audio={"input": {"turn_detection": low}}))["audio"]["input"]["turn_detection"]
        assert {**shown, **low} == shown
        assert agent.sessions[0].settings.turn_taking == {"preset": "patient"}

    run(script, agent)


@covers("@session.audio.input.turn_detection.create_response")
def test_turns_may_be_committed_and_not_answered(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
        await talk.speak(0.6)
        await talk.until("conversation.item.done")
        await talk.wait(1.0)
        assert not talk.of("response.created")
        await talk.send("response.create")
        await talk.until("response.done")

    run(script)


@covers("@session.audio.input.turn_detection.interrupt_response")
def test_a_reply_may_be_said_to_its_end_whoever_speaks(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "interrupt_response": False}}})
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        await talk.speak(1.5)
        assert (await talk.until("response.done"))["response"]["status"] == "completed"

    talk = run(script, ScriptedAgent([LONG]))
    assert len(talk.of("input_audio_buffer.committed")) == 1


@covers("@session.audio.input.turn_detection.idle_timeout_ms", "input_audio_buffer.timeout_triggered")
def test_who_says_nothing_is_spoken_to(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}})
        await talk.speak(0.6)
        await talk.until("response.done")
        timeout = await talk.until("input_audio_buffer.timeout_triggered")
        assert timeout["audio_end_ms"] - timeout["audio_start_ms"] == pytest.approx(5000, abs=60)
        committed = await talk.until("input_audio_buffer.committed")
        assert committed["item_id"] == timeout["item_id"]
        assert (await talk.until("response.done"))["response"]["status"] == "completed"

    run(script, ScriptedAgent([SHORT]))


@covers("conversation.item.truncated")
def test_an_interruption_tells_what_was_heard(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        await talk.wait(1.0)
        await talk.speak(1.0)
        cut = await talk.until("conversation.item.truncated")
        done = await talk.until("response.done")
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert 500 < cut["audio_end_ms"] < 2000
        assert done["response"]["output"][0]["content"][0]["transcript"] == cut["duplex"]["heard_text"]

    run(script, ScriptedAgent([LONG]))


# --- what was understood --------------------------------------------------------------------------------


@covers("@session.audio.input.transcription")
def test_captions_can_be_switched_off_and_on(run: Any) -> None:
    async def script(talk: Talk) -> None:
        updated = await talk.update(audio={"input": {"transcription": None}})
        assert updated["audio"]["input"]["transcription"] is None
        await talk.speak(0.5)
        await talk.until("response.done")
        assert not [kind for kind in talk.kinds(extensions=True) if "transcription" in kind or "partial" in kind]
        wish = {"model": "whisper-1", "language": "en"}
        updated = await talk.update(audio={"input": {"transcription": wish}})
        assert updated["audio"]["input"]["transcription"]["language"] == "en"
        await talk.speak(0.5)
        await talk.until("conversation.item.input_audio_transcription.completed")

    run(script, ScriptedAgent([SHORT]))


class HardOfHearing(ScriptedAgent):
    """Its listener never has any words."""

    def open(self, *args: Any) -> Any:
        session = super().open(*args)
        collect = session.collect
        error = AgentFaultError("The listener gave no words.")

        def without() -> list[Any]:
            told = collect()
            return [FinalTranscript(e.turn_id, "", error) if isinstance(e, FinalTranscript) else e for e in told]

        session.collect = without  # type: ignore[method-assign]
        return session


@covers("conversation.item.input_audio_transcription.failed")
def test_a_turn_that_was_not_understood_says_so(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.speak(0.6)
        failed = await talk.until("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["message"] == "The listener gave no words."

    run(script, HardOfHearing([SHORT]))


# --- items ----------------------------------------------------------------------------------------------


def said(text: str, role: str = "user", **fields: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}


@covers(
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.retrieved",
    "conversation.item.delete",
    "conversation.item.deleted",
)
def test_items_are_created_where_asked_retrieved_and_deleted(run: Any) -> None:
    seen: list[str] = []

    def answer(history: Any, text: str) -> str:
        seen.extend(getattr(item, "text", type(item).__name__) for item in history)
        return "Yes."

    async def script(talk: Talk) -> None:
        await talk.send("conversation.item.create", item=said("second", id="i2"))
        await talk.send("conversation.item.create", item=said("first", "system", id="i1"), previous_item_id="root")
        await talk.send("conversation.item.create", item=said("third", "assistant"), previous_item_id="i2")
        await talk.send("conversation.item.create", item=said("gone", id="i4"))
        assert [event["previous_item_id"] for event in talk.of("conversation.item.added")][:2] == [None, None]
        await talk.send("conversation.item.delete", item_id="i4")
        assert (await talk.until("conversation.item.deleted"))["item_id"] == "i4"
        await talk.send("conversation.item.retrieve", item_id="i2")
        assert (await talk.until("conversation.item.retrieved"))["item"]["content"][0]["text"] == "second"
        for kind in ("retrieve", "delete"):
            await talk.send(f"conversation.item.{kind}", item_id="i4", event_id=kind)
            error = (await talk.until("error"))["error"]
            assert (error["param"], error["code"], error["event_id"]) == ("item_id", "item_not_found", kind)
        await talk.send("conversation.item.create", item=said("again", id="i2"))
        assert (await talk.until("error"))["error"]["param"] == "item.id"
        await talk.send("conversation.item.create", item=said("where"), previous_item_id="i4")
        assert (await talk.until("error"))["error"]["param"] == "previous_item_id"
        await talk.send("response.create")
        await talk.until("response.done")

    run(script, ScriptedAgent(answer=answer))
    assert seen == ["first", "second", "third"]


@covers("conversation.item.truncate")
def test_a_client_truncates_what_it_did_not_play(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.send("response.create")
        done = await talk.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        await talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=99_000)
        assert (await talk.until("error"))["error"]["param"] == "audio_end_ms"
        await talk.send("conversation.item.truncate", item_id="nope", content_index=0, audio_end_ms=10)
        assert (await talk.until("error"))["error"]["param"] == "item_id"
        await talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1500)
        cut = await talk.until("conversation.item.truncated")
        assert cut["audio_end_ms"] == 1500
        await talk.send("conversation.item.retrieve", item_id=item_id)
        kept = (await talk.until("conversation.item.retrieved"))["item"]
        assert kept["content"][0]["transcript"] == cut["duplex"]["heard_text"] == "This is a"

    run(script, ScriptedAgent([LONG]))


# --- responses ------------------------------------------------------------------------------------------


@covers("response.cancel")
def test_a_response_is_cancelled_once(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        await talk.send("response.create")
        assert (await talk.until("error"))["error"]["code"] == "conversation_already_has_active_response"
        await talk.send("response.cancel")
        done = await talk.until("response.done")
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        await talk.send("response.cancel", event_id="late")
        error = (await talk.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "late")

    run(script, ScriptedAgent([LONG]))


@covers("response.output_text.delta", "response.output_text.done", "@response.output_modalities")
def test_text_alone_for_a_session_and_for_one_response(run: Any) -> None:
    async def script(talk: Talk) -> None:
        assert (await talk.update(output_modalities=["text"]))["output_modalities"] == ["text"]
        await talk.send("response.create")
        done = (await talk.until("response.done"))["response"]
        assert (done["output_modalities"], done["output"][0]["content"][0]["type"]) == (["text"], "output_text")
        assert not talk.sound()
        await talk.send("response.create", response={"output_modalities": ["audio"]})
        assert (await talk.until("response.done"))["response"]["output_modalities"] == ["audio"]
        assert talk.sound()

    run(script, ScriptedAgent([SHORT]))


@covers(
    "@response.instructions",
    "@response.metadata",
    "@response.conversation",
    "@response.input",
    "@response.max_output_tokens",
    "@session.max_output_tokens",
)
def test_a_response_of_its_own_beside_one_that_is_spoken(run: Any) -> None:
    agent = ScriptedAgent([LONG, ScriptedReply("It is a greeting, I think.")], counts=True)

    async def script(talk: Talk) -> None:
        await talk.update(max_output_tokens=100)
        await talk.send("conversation.item.create", item=said("Hello there.", id="i1"))
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        response = {
            "conversation": "none",
            "output_modalities": ["text"],
            "instructions": "Classify.",
            "metadata": {"purpose": "topic"},
            "input": [{"type": "item_reference", "id": "i1"}, said("What is this?")],
            "max_output_tokens": 4,
        }
        await talk.send("response.create", response=response)
        beside = (await talk.until("response.done"))["response"]
        assert (beside["metadata"], beside["conversation_id"]) == ({"purpose": "topic"}, None)
        assert (beside["status"], beside["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
        assert beside["output"][0]["content"][0]["text"] == "It is a greeting,"
        assert beside["usage"]["input_tokens"] == 5
        assert beside["usage"]["output_tokens"] == 4
        spoken = (await talk.until("response.done"))["response"]
        assert (spoken["status"], spoken["max_output_tokens"]) == ("completed", 100)
        await talk.send("response.create", response={**response, "input": [{"type": "item_reference", "id": "no"}]})
        assert (await talk.until("error"))["error"]["param"] == "response.input[0].id"

    run(script, agent)
    begun = [c for c in agent.sessions[0].commands if getattr(c, "instructions", None) == "Classify."]
    assert [item.text for item in begun[0].history] == ["Hello there.", "What is this?"]


# --- tools ----------------------------------------------------------------------------------------------


@covers(
    "@session.tools",
    "@session.tool_choice",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
)
def test_a_tool_is_called_and_its_result_answered(run: Any) -> None:
    async def script(talk: Talk) -> None:
        updated = await talk.update(tools=[TOOL], tool_choice="auto")
        assert (updated["tools"], updated["tool_choice"]) == ([TOOL], "auto")
        await talk.speak(0.6)
        call = await talk.until("response.function_call_arguments.done")
        assert (call["name"], call["arguments"]) == ("find_order", '{"number": 7}')
        done = (await talk.until("response.done"))["response"]
        assert [item["type"] for item in done["output"]] == ["message", "function_call"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"state": "sent"}'}
        await talk.send("conversation.item.create", item=result)
        await talk.send("response.create")
        assert (await talk.until("response.done"))["response"]["output"][0]["type"] == "message"
        for wrong, code in ((call["call_id"], "call_already_answered"), ("call_99", "call_not_found")):
            await talk.send("conversation.item.create", item={**result, "call_id": wrong})
            error = (await talk.until("error"))["error"]
            assert (error["param"], error["code"]) == ("item.call_id", code)

    talk = run(script, ScriptedAgent([CALLING, SHORT]))
    deltas = "".join(event["delta"] for event in talk.of("response.function_call_arguments.delta"))
    assert deltas == '{"number": 7}'
    order = talk.kinds()
    assert order.index("response.function_call_arguments.done") < order.index("response.output_audio.done")


@covers("@response.tools", "@response.tool_choice")
def test_a_response_may_have_tools_of_its_own(run: Any) -> None:
    async def script(talk: Talk) -> None:
        for response, calls in (
            ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "find_order"}}, 1),
            ({"tools": [TOOL], "tool_choice": "none"}, 0),
            ({}, 0),
        ):
            await talk.send("response.create", response=response)
            output = (await talk.until("response.done"))["response"]["output"]
            assert [item["type"] for item in output].count("function_call") == calls
        await talk.send("response.create", response={"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}})
        assert (await talk.until("error"))["error"]["param"] == "response.tool_choice"

    run(script, ScriptedAgent([CALLING]))


def test_an_agent_without_tools_says_so() -> None:
    async def script(talk: Talk) -> None:
        await talk.send("session.update", session={"tools": [TOOL]})
        assert (await talk.until("error"))["error"]["param"] == "session.tools"

    run_talk(script, ScriptedAgent(echo=True))


# --- formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("audio/pcmu", "ulaw"), ("audio/pcma", "alaw")])
@covers("@session.audio.input.format", "@session.audio.output.format")
def test_the_telephones_formats(run: Any, kind: str, name: str) -> None:
    async def script(talk: Talk) -> None:
        form = {"type": kind}
        updated = await talk.update(audio={"input": {"format": form}, "output": {"format": form}})
        assert updated["audio"]["input"]["format"] == updated["audio"]["output"]["format"] == form
        talk.law(name)
        await talk.speak(0.8)
        await talk.until("response.done")

    talk = run(script, ScriptedAgent([ScriptedReply("Yes.")], echo=True))
    decode = g711.decode_ulaw if name == "ulaw" else g711.decode_alaw
    echo = decode(talk.sound())
    assert len(echo) == pytest.approx(1.1 * 8000, abs=1000)  # with the silence that ended the turn
    loud = echo[800:4800]
    spectrum = np.abs(np.fft.rfft(loud))
    assert spectrum.argmax() * 8000 / len(loud) == pytest.approx(220, abs=3)  # the tone that was said


@covers("input_audio_buffer.append")
def test_a_format_changes_in_mid_call(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.speak(0.6)
        await talk.until("response.output_audio.delta")
        await talk.update(audio={"output": {"format": {"type": "audio/pcmu"}}})
        done = (await talk.until("response.done"))["response"]
        assert done["audio"]["output"]["format"]["type"] == "audio/pcm"  # it ends as it began
        first = len(talk.sound())
        await talk.update(audio={"input": {"format": {"type": "audio/pcma"}}})
        talk.law("alaw")
        await talk.speak(0.6)
        done = (await talk.until("response.done"))["response"]
        assert done["audio"]["output"]["format"] == {"type": "audio/pcmu"}
        assert first == pytest.approx(0.6 * 48_000, abs=2000)
        assert len(talk.sound()) - first == pytest.approx(0.6 * 8000, abs=330)
        odd = base64.b64encode(b"abc").decode()
        await talk.send("input_audio_buffer.append", audio=odd)  # three bytes of A-law are three samples
        await talk.update(audio={"input": {"format": {"type": "audio/pcm", "rate": 24000}}})
        await talk.send("input_audio_buffer.append", audio=odd)
        assert (await talk.until("error"))["error"]["param"] == "audio"

    run(script, ScriptedAgent([SHORT], ScriptedTiming()))


# --- beside an audio track ------------------------------------------------------------------------------


@covers(
    "output_audio_buffer.started",
    "output_audio_buffer.stopped",
    "output_audio_buffer.cleared",
    "output_audio_buffer.clear",
)
def test_over_a_track_the_buffers_events_tell_when_it_plays(run: Any) -> None:
    async def script(talk: Talk) -> None:
        await talk.send("output_audio_buffer.clear")  # nothing plays, and nothing happens
        await talk.send("response.create")
        await talk.until("output_audio_buffer.stopped")
        await talk.send("response.create")
        await talk.until("output_audio_buffer.started")
        await talk.wait(0.3)
        await talk.send("output_audio_buffer.clear")
        done = await talk.until("response.done")
        assert done["response"]["status_details"]["reason"] == "client_cancelled"
        await talk.until("output_audio_buffer.cleared")

    assert not run(script, ScriptedAgent([LONG]), track=True).of("response.output_audio.delta")


def test_over_a_track_text_alone_works_and_sound_in_events_is_refused() -> None:
    async def script(talk: Talk) -> None:
        await talk.update(output_modalities=["text"])
        await talk.send("response.create")
        await talk.until("response.done")
        assert not talk.of("output_audio_buffer.started")
        await talk.send("input_audio_buffer.append", audio="AAAA")
        assert "audio track" in (await talk.until("error"))["error"]["message"]
        await talk.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
        assert (await talk.until("error"))["error"]["param"] == "session.audio.input.format.type"

    run_talk(script, ScriptedAgent([SHORT]), track=True)


# --- the catalogue --------------------------------------------------------------------------------------


def test_the_catalogue_is_the_published_api() -> None:
    from typing import get_args

    published = {get_args(m.model_fields["type"].annotation)[0] for m in get_args(get_args(RealtimeClientEvent)[0])}
    assert set(CLIENT_EVENTS) == published
    assert set(SERVER_EVENTS) == set(OFFICIAL)
    vad = {f"audio.input.turn_detection.{f}" for model in (ServerVad, SemanticVad) for f in model.model_fields}
    inputs = {f"audio.input.{f}" for f in RealtimeAudioConfigInput.model_fields}
    outputs = {f"audio.output.{f}" for f in RealtimeAudioConfigOutput.model_fields}
    top = set(RealtimeSessionCreateRequest.model_fields) - {"audio"}
    assert set(SESSION_FIELDS) == top | inputs | outputs | vad
    assert set(RESPONSE_FIELDS) == set(RealtimeResponseCreateParams.model_fields)
    assert set(CLIENT_EVENTS) | {"duplex.playback.ack"} == set(READERS)


def test_every_row_that_promises_something_is_covered() -> None:
    fields = {f"@session.{name}": row for name, row in SESSION_FIELDS.items()}
    fields |= {f"@response.{name}": row for name, row in RESPONSE_FIELDS.items()}
    rows = CLIENT_EVENTS | SERVER_EVENTS | fields
    assert {row for row in COVERED if row not in rows} == set()
    promised = {row for row, (support, _) in rows.items() if support != "not sent"}
    assert promised - set(COVERED) == set()
    assert set(EXTENSIONS) - {"duplex.playback.ack"}  # documented; test_realtime_vocabulary sends each
