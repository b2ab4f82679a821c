"""Tools through a chat-completions endpoint: what is sent, what servers make of the stream, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from chat_endpoint import WAIT_S, StandIn, standing_in
from hypothesis import given
from hypothesis import strategies as st

from duplex.agent import Tool, ToolChoice
from duplex.errors import ThinkerUnavailableError
from duplex.thinker_talker.openai_endpoint import EndpointTimeouts, OpenAIThinker
from duplex.thinker_talker.thinker import Call, CollectingSink, Message, ThinkRequest
from duplex.thinker_talker.tool_stream import SpokenText, ToolCallStream

ORDER = Tool(
    "lookup_order",
    "Looks up an order.",
    {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
)
TIME = Tool("get_time", "Tells the time.")
_ASKED = Message("user", "Where is my order 47?")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with standing_in() as stand_in:
        stand_in.mode = "script"
        yield stand_in


@pytest.fixture
def thinker(server: StandIn) -> Iterator[OpenAIThinker]:
    engine = OpenAIThinker(server.spec, api_key="k", timeouts=EndpointTimeouts(3.0, 0.5, 0.5))
    yield engine
    engine.close()


def _ask(thinker: OpenAIThinker, *messages: Message, **options: Any) -> CollectingSink:
    sink = CollectingSink()
    options.setdefault("tools", (ORDER, TIME))
    thought = thinker.open().think(ThinkRequest(messages or (_ASKED,), **options), sink)
    assert thought.wait_over(WAIT_S)
    return sink


def _call(name: str = "", arguments: Any = None, *, index: int | None = 0, id: str | None = None) -> dict[str, Any]:
    """A delta with one piece of a call, with what is given of it."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value not in ("", None)}
    delta: dict[str, Any] = {"function": function}
    if index is not None:
        delta["index"] = index
    if id is not None:
        delta["id"] = id
    return {"tool_calls": [delta]}


def test_a_call_is_declared_streamed_and_answered(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [
        [
            {"role": "assistant", "content": "Let me see. "},
            _call("lookup_order", "", id="call_1"),
            _call(arguments='{"num'),
            _call(arguments='ber": "47"}'),
        ]
    ]
    server.reasons = ["tool_calls"]
    sink = _ask(thinker)
    assert (sink.text, sink.reason, sink.error) == ("Let me see. ", "calls", None)
    assert sink.calls == [Call("call_1", "lookup_order", '{"number": "47"}')]
    assert sink.pieces == [("call_1", "lookup_order"), ("call_1", '{"num'), ("call_1", 'ber": "47"}')]
    assert sink.usage.reply_tokens == 4
    [body] = server.bodies
    assert [tool["function"]["name"] for tool in body["tools"]] == ["lookup_order", "get_time"]
    assert body["tools"][0]["function"]["parameters"] == ORDER.parameters
    assert body["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "tool_choice" not in body

    server.scripts = [[{"content": "It comes on Tuesday."}]]
    answered = (
        _ASKED,
        Message("assistant", "Let me see.", calls=tuple(sink.calls)),
        Message("tool", '{"arrives": "Tuesday"}', call_id="call_1"),
    )
    assert _ask(thinker, *answered).text == "It comes on Tuesday."
    assert server.bodies[-1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "lookup_order", "arguments": '{"number": "47"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"arrives": "Tuesday"}'},
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice("required"), "required"),
        (ToolChoice("required", "get_time"), {"type": "function", "function": {"name": "get_time"}}),
    ],
)
def test_a_choice_among_the_tools_is_sent(
    server: StandIn, thinker: OpenAIThinker, choice: ToolChoice, sent: object
) -> None:
    server.scripts = [[_call("get_time", "{}")]]
    assert [call.name for call in _ask(thinker, tool_choice=choice).calls] == ["get_time"]
    assert server.bodies[0]["tool_choice"] == sent


def test_tools_that_must_not_be_called_are_not_shown(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[{"content": "Hello."}]]
    assert _ask(thinker, tool_choice=ToolChoice("none")).text == "Hello."
    assert "tools" not in server.bodies[0]


def test_without_tools_the_request_is_what_it_was(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[{"content": '{"name": "is how an object may begin"}'}]]
    assert _ask(thinker, tools=()).text == '{"name": "is how an object may begin"}'
    assert set(server.bodies[0]) == {"model", "messages", "stream", "stream_options", "max_tokens"}


A, B = ("lookup_order", '{"number": "1"}'), ("lookup_order", '{"number": "2"}')


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([_call(*A, id="a"), _call(*B, id="b", index=1)], id="whole"),
        pytest.param([_call(*A, id="a"), _call(*B, id="b")], id="every index 0"),
        pytest.param([_call(*A), _call(*B)], id="every index 0 and no ids"),
        pytest.param([_call(*A, index=None), _call(*B, index=None)], id="neither"),
        pytest.param(
            [{"tool_calls": [_call(*A)["tool_calls"][0], _call(*B, index=1)["tool_calls"][0]]}], id="in one delta"
        ),
        pytest.param(
            [
                _call("lookup_order", '{"number"', id="x1"),
                _call(arguments=': "1"}', id="x2"),
                _call("lookup_order", '{"number"', id="x3", index=1),
                _call(arguments=': "2"}', id="x4", index=1),
            ],
            id="a fresh id with every piece",
        ),
        pytest.param(
            [
                _call("lookup_order", '{"number"', id="a"),
                _call("lookup_order", ': "1"}', id="a"),
                _call("lookup_order", '{"number"', id="b", index=1),
                _call("lookup_order", ': "2"}', id="b", index=1),
            ],
            id="the name with every piece",
        ),
        pytest.param(
            [_call("lookup_order", {"number": "1"}, id="a"), _call("lookup_order", {"number": "2"}, id="b", index=1)],
            id="objects",
        ),
        pytest.param(
            [
                _call("lookup_order", '{"number"', id="a"),
                _call("lookup_order", '{"number"', id="b", index=1),
                _call(arguments=': "1"}'),
                _call(arguments=': "2"}', index=1),
            ],
            id="side by side",
        ),
    ],
)
def test_two_calls_however_a_server_streams_them(
    server: StandIn, thinker: OpenAIThinker, deltas: list[dict[str, Any]]
) -> None:
    server.scripts, server.reasons = [deltas], ["stop"]  # some never say tool_calls
    sink = _ask(thinker)
    assert (sink.error, sink.reason) == (None, "calls")
    assert [(call.name, json.loads(call.arguments)) for call in sink.calls] == [
        ("lookup_order", {"number": "1"}),
        ("lookup_order", {"number": "2"}),
    ]
    assert len({call.call_id for call in sink.calls}) == 2
    assert all(call.call_id for call in sink.calls)


def test_an_id_the_conversation_has_already_is_not_used_again(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[_call("get_time", "", id="call_0")]]
    before = Message("assistant", "", calls=(Call("call_0", "get_time", "{}"),))
    [call] = _ask(thinker, _ASKED, before, Message("tool", "noon", call_id="call_0"), _ASKED).calls
    assert call.call_id not in ("", "call_0")
    assert call.arguments == "{}"


@pytest.mark.parametrize(
    ("deltas", "what"),
    [
        ([_call("lookup_order", "{}", id="a")], "number is missing"),
        ([_call("lookup_order", '{"number": 47}', id="a")], "number is not of type string"),
        ([_call("lookup_order", '{"number": "4', id="a")], "not JSON"),
        ([_call("lookup_order", '["47"]', id="a")], "not a JSON object"),
        ([_call("order_pizza", "{}", id="a")], "there is no tool 'order_pizza'"),
    ],
)
def test_a_call_that_cannot_be_made_is_answered_in_words(
    server: StandIn, thinker: OpenAIThinker, deltas: list[dict[str, Any]], what: str
) -> None:
    server.scripts = [deltas, [{"content": "Which order do you mean?"}]]
    sink = _ask(thinker)
    assert (sink.calls, sink.text, sink.reason, sink.error) == ([], "Which order do you mean?", "stop", None)
    assert (sink.usage.prompt_tokens, sink.usage.reply_tokens) == (14, 8)
    asked, told = server.bodies[1]["messages"][-2:]
    assert isinstance(json.loads(asked["tool_calls"][0]["function"]["arguments"]), dict | list)
    assert (told["role"], told["tool_call_id"]) == ("tool", "a")
    assert what in told["content"]
    assert "tools" not in server.bodies[1]


def test_a_server_that_calls_again_what_it_may_not_ends_in_an_error(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[_call("order_pizza", "{}")] for _ in range(9)]
    sink = _ask(thinker)
    assert isinstance(sink.error, ThinkerUnavailableError)
    assert len(server.bodies) <= 3


def test_a_call_cut_by_the_limit_does_not_end(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[_call(*A, id="a"), _call("lookup_order", '{"num', id="b", index=1)]]
    server.reasons = ["length"]
    sink = _ask(thinker)
    assert (sink.reason, [call.call_id for call in sink.calls]) == ("length", ["a"])


@pytest.mark.parametrize("text", ['<tool_call>\n{"name": "get_time"}', '{ "name": "get_time", "arguments": {}}'])
def test_a_call_written_as_text_is_an_error_and_not_spoken(server: StandIn, thinker: OpenAIThinker, text: str) -> None:
    server.scripts = [[{"content": character} for character in text]]
    sink = _ask(thinker)
    assert sink.text == ""
    assert "--enable-auto-tool-choice" in str(sink.error)


def test_a_server_that_ignores_that_a_tool_is_required(server: StandIn, thinker: OpenAIThinker) -> None:
    server.scripts = [[{"content": "I would rather chat."}]]
    assert "answered in words" in str(_ask(thinker, tool_choice=ToolChoice("required")).error)


def test_a_server_without_tools_says_so(server: StandIn, thinker: OpenAIThinker) -> None:
    server.mode = "no-tools"
    error = str(_ask(thinker).error)
    assert "does not support tools" in error
    assert "Declare no tools" in error


@pytest.mark.parametrize("calls", ["soup", [7], [{"function": {"arguments": "{}"}}]])
def test_nonsense_for_a_call_is_this_replys_error(server: StandIn, thinker: OpenAIThinker, calls: object) -> None:
    server.scripts = [[{"tool_calls": calls}], [{"content": "Hello."}]]
    assert isinstance(_ask(thinker).error, ThinkerUnavailableError)
    assert _ask(thinker).text == "Hello."


def test_cancelling_in_mid_call_tells_nothing_more(server: StandIn, thinker: OpenAIThinker) -> None:
    begun = threading.Event()

    class Sink(CollectingSink):
        def on_call_began(self, call_id: str, name: str) -> None:
            super().on_call_began(call_id, name)
            thought.cancel()
            begun.set()

    server.scripts = [[_call("lookup_order", '{"number"', id="a"), _call(arguments=': "1"}')]]
    sink = Sink()
    session = thinker.open()
    holding = threading.Lock()
    with holding:
        thought = session.think(ThinkRequest((_ASKED,), tools=(ORDER,)), sink)
    assert begun.wait(WAIT_S)
    assert thought.wait_over(WAIT_S)
    assert (sink.pieces, sink.calls, sink.reason) == ([("a", "lookup_order")], [], None)


# --- the pure parts -------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.booleans())
def test_arguments_are_the_same_however_they_are_cut(cuts: list[int], second: bool) -> None:
    told: list[str] = []
    ended: list[Call] = []
    stream = ToolCallStream(
        (), began=lambda _, name: told.append(name), piece=lambda _, p: told.append(p), ended=ended.append
    )
    for index in range(1 + second):
        arguments, at = json.dumps({"number": f'{index} {{}} \\"'}), 0
        stream.feed([{"index": index, "id": f"c{index}", "function": {"name": "f"}}])
        for cut in [*cuts, len(arguments)]:
            stream.feed([{"index": index, "function": {"arguments": arguments[at : at + cut]}}])
            at += cut
    stream.close()
    assert [json.loads(call.arguments)["number"] for call in ended] == [f'{i} {{}} \\"' for i in range(1 + second)]
    assert "".join(told) == "".join("f" + call.arguments for call in ended)


@given(st.text(max_size=30), st.integers(1, 4))
def test_text_that_is_no_call_comes_through_whole(text: str, step: int) -> None:
    spoken = SpokenText()
    try:
        out = "".join(spoken.feed(text[i : i + step]) for i in range(0, len(text), step)) + spoken.close()
    except ValueError:
        assert text.lstrip()[:1] in "<[{"
    else:
        assert out == text
