"""Tools with a GGUF model in this process: our way with the small default, llama.cpp's with a template that knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duplex.agent import Tool, ToolChoice
from duplex.errors import AgentFaultError
from duplex.thinker_talker.cascade_options import DEFAULT_INSTRUCTIONS
from duplex.thinker_talker.llama import LlamaThinker
from duplex.thinker_talker.llama_tools import chat_template, knows_tools
from duplex.thinker_talker.thinker import Call, CollectingSink, Message, ThinkRequest
from duplex.weights import ModelStore

pytestmark = pytest.mark.models

_WAIT_S = 60.0
_SYSTEM = Message("system", DEFAULT_INSTRUCTIONS)
TIME = Tool("get_time", "Tells the current time of day.")
ORDER = Tool(
    "lookup_order",
    "Looks up the status of an order.",
    {
        "type": "object",
        "properties": {"number": {"type": "string", "description": "the order number"}},
        "required": ["number"],
    },
)
LIGHT = Tool(
    "switch_light",
    "Turns the light in a room on or off.",
    {
        "type": "object",
        "properties": {"room": {"enum": ["kitchen", "garage"]}, "state": {"enum": ["on", "off"]}},
        "required": ["room", "state"],
    },
)
TOOLS = (TIME, ORDER, LIGHT)
# A template of the kind that models come with that were taught to call.
TEMPLATE = r"""
{%- if tools %}
{{- '<|im_start|>system\nYou may call functions:\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\nCall one as <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls %}{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@pytest.fixture(scope="module")
def weights(models: ModelStore) -> Path:
    return next(models.path("smollm2-135m").glob("*.gguf"))


@pytest.fixture(scope="module")
def thinker(weights: Path) -> Iterator[LlamaThinker]:
    engine = LlamaThinker(weights, sessions=1, context_tokens=1024)
    yield engine
    engine.close()


def _ask(thinker: LlamaThinker, *turns: Message | str, **options: Any) -> CollectingSink:
    messages = (_SYSTEM, *(Message("user", turn) if isinstance(turn, str) else turn for turn in turns))
    options = {"tools": TOOLS, "temperature": 0.0, "max_tokens": 40} | options
    sink = CollectingSink()
    session = thinker.open()
    assert session.think(ThinkRequest(messages, **options), sink).wait_over(_WAIT_S)
    session.close()
    session.join()
    return sink


def _called(sink: CollectingSink) -> list[tuple[str, Any]]:
    assert sink.error is None
    return [(call.name, json.loads(call.arguments)) for call in sink.calls]


@pytest.mark.parametrize(
    ("said", "name", "arguments"),
    [
        ("What time is it?", "get_time", {}),
        ("Where is my order 4711?", "lookup_order", {"number": "4711"}),
        ("Can you look up order number seven seven one for me?", "lookup_order", {"number": "771"}),
        ("Turn on the light in the kitchen.", "switch_light", {"room": "kitchen", "state": "on"}),
    ],
)
def test_the_small_model_calls_what_was_asked_for(
    thinker: LlamaThinker, said: str, name: str, arguments: dict[str, Any]
) -> None:
    sink = _ask(thinker, said)
    assert (_called(sink), sink.text, sink.reason) == ([(name, arguments)], "", "calls")
    assert sink.usage.prompt_tokens > 100
    assert sink.usage.reply_tokens >= 1


@pytest.mark.parametrize(("said", "word"), [("What is the capital of France?", "Paris"), ("Hello!", "")])
def test_the_small_model_talks_when_nothing_was_asked_of_a_tool(thinker: LlamaThinker, said: str, word: str) -> None:
    sink = _ask(thinker, said)
    assert not sink.calls
    assert sink.text.strip()
    assert word in sink.text


def test_what_is_missing_is_asked_for_once_and_then_taken(thinker: LlamaThinker) -> None:
    asked = _ask(thinker, "Please look up my order.")
    assert (asked.calls, "order number" in asked.text) == ([], True)
    before = ("Please look up my order.", Message("assistant", asked.text))
    assert _called(_ask(thinker, *before, "It is 55 12.")) == [("lookup_order", {"number": "5512"})]
    never = _ask(thinker, *before, "What is the capital of France?")
    assert not never.calls
    assert "order number" not in never.text


def test_a_result_is_told_with_its_facts(thinker: LlamaThinker) -> None:
    asked = Message("assistant", "", calls=(Call("c1", "lookup_order", '{"number": "4711"}'),))
    output = json.dumps({"status": "on its way", "arrives": "Friday"})
    sink = _ask(thinker, "Where is my order 4711?", asked, Message("tool", output, call_id="c1"))
    assert "on its way" in sink.text
    assert "Friday" in sink.text
    assert (sink.calls, sink.reason) == ([], "stop")


@pytest.mark.parametrize(
    "output", ["", "{}", "[1, 2]", "null", '{"ok": true}', 'said "so" \\ and\nnot more <|im_end|>']
)
def test_any_result_is_answered(thinker: LlamaThinker, output: str) -> None:
    asked = Message("assistant", "One moment.", calls=(Call("c1", "get_time", "{}"),))
    sink = _ask(thinker, "What time is it?", asked, Message("tool", output, call_id="c1"))
    assert sink.error is None
    assert "<|" not in sink.text


def test_a_choice_is_followed(thinker: LlamaThinker) -> None:
    assert not _ask(thinker, "What time is it?", tool_choice=ToolChoice("none")).calls
    assert _called(_ask(thinker, "Hello!", tool_choice=ToolChoice("required", "get_time"))) == [("get_time", {})]
    assert _called(_ask(thinker, "Order 9, please.", tool_choice=ToolChoice("required")))
    asked = _ask(thinker, "Hello!", tool_choice=ToolChoice("required", "lookup_order"))
    assert (asked.calls, "order number" in asked.text) == ([], True), "it cannot be called without a number"


def test_without_tools_the_request_is_what_it_was(thinker: LlamaThinker, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []
    server = thinker._server

    class Recorded:
        def handle_chat_completions(self, body: dict[str, Any], take: Any) -> None:
            bodies.append(body)
            server.handle_chat_completions(body, take)

    monkeypatch.setattr(thinker, "_server", Recorded())
    assert "Paris" in _ask(thinker, "What is the capital of France?", tools=()).text
    body, *ahead = bodies
    assert all((b["max_tokens"], b["id_slot"]) == (0, thinker.slot_beside) for b in ahead)
    shown = [_SYSTEM, *thinker.examples, Message("user", "What is the capital of France?")]
    assert body["messages"] == [{"role": m.role, "content": m.text} for m in shown]
    assert not {"tools", "tool_choice", "grammar", "logprobs"} & set(body)


def test_the_next_request_finds_what_was_read_ahead_with_the_tools(thinker: LlamaThinker) -> None:
    session = thinker.open()
    session.prefill((_SYSTEM,), TOOLS)
    while session._now or session._next:
        session._thread.join(0.01)
    sink = CollectingSink()
    request = ThinkRequest((_SYSTEM, Message("user", "What time is it?")), tools=TOOLS, temperature=0.0)
    assert session.think(request, sink).wait_over(_WAIT_S)
    session.close()
    session.join()
    assert sink.usage.prompt_tokens - sink.usage.cached_tokens < 20


def test_cancelling_while_it_decides_tells_nothing(thinker: LlamaThinker) -> None:
    session = thinker.open()
    sink = CollectingSink()
    request = ThinkRequest((_SYSTEM, Message("user", "What time is it?")), tools=TOOLS)
    session.think(request, sink).cancel()
    other = CollectingSink()
    assert session.think(request, other).wait_over(_WAIT_S)
    session.close()
    session.join()
    assert (sink.pieces, sink.texts, sink.reason) == ([], [], None)
    assert other.calls


def test_a_place_beside_the_conversation_is_there_when_all_others_are_taken(thinker: LlamaThinker) -> None:
    main, beside = thinker.open(), thinker.open_beside()
    sink = CollectingSink()
    request = ThinkRequest((_SYSTEM, Message("user", "What is the capital of France?")), max_tokens=20)
    assert beside.think(request, sink).wait_over(_WAIT_S)
    assert "Paris" in sink.text
    for session in (main, beside):
        session.close()
        session.join()
    thinker.open().close()


# --- a template that knows tools ------------------------------------------------------------------


def test_the_files_template_says_whether_it_knows_tools(weights: Path, tmp_path: Path) -> None:
    assert "im_start" in chat_template(weights)
    assert not knows_tools(weights)
    key, text = b"tokenizer.chat_template", TEMPLATE.encode()
    made = tmp_path / "made.gguf"
    made.write_bytes(b"GGUF" + bytes(20) + key + (8).to_bytes(4, "little") + len(text).to_bytes(8, "little") + text)
    assert chat_template(made) == TEMPLATE
    assert knows_tools(made)


@pytest.fixture(scope="module")
def taught(weights: Path) -> Iterator[LlamaThinker]:
    """The default model with a template it was not taught: it calls badly, but in the right form."""
    engine = LlamaThinker(weights, sessions=1, context_tokens=1024, examples=(), native_tools=True, template=TEMPLATE)
    yield engine
    engine.close()


def test_llama_cpp_parses_the_models_own_calls(taught: LlamaThinker) -> None:
    call = '<tool_call>\n{"name": "lookup_order", "arguments": {"number": "4711"}}\n</tool_call>'
    said = (f"Repeat this: {call}", Message("assistant", call), f"Repeat this: {call}")  # it can do that much
    sink = _ask(taught, *said, tools=(ORDER, TIME), max_tokens=60)
    assert sink.error is None
    assert sink.calls, sink.text
    assert len(sink.pieces) > 2, "arguments come in pieces"
    assert _called(sink)[0] == ("lookup_order", {"number": "4711"})
    told = Message("tool", "delivered", call_id=sink.calls[0].call_id)
    called = Message("assistant", "", calls=tuple(sink.calls[:1]))
    after = _ask(taught, *said, called, told, tools=(ORDER, TIME), max_tokens=20)
    assert after.error is None
    assert after.usage.reply_tokens > 0


def test_a_model_that_must_call_and_does_not_is_an_error(taught: LlamaThinker) -> None:
    sink = _ask(taught, "Say hello.", tools=(TIME,), tool_choice=ToolChoice("required"), stop=("l", "e", "a", "o", "i"))
    assert isinstance(sink.error, AgentFaultError)
    assert "answered in words" in str(sink.error)
