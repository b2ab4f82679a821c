"""What is read off the user's words for a tool, and what a small model is shown: no model, no waiting."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duplex.agent import Tool
from duplex.thinker_talker import tool_small as small
from duplex.thinker_talker.spoken_numbers import digit_runs, numbers
from duplex.thinker_talker.thinker import Call, Message
from duplex.thinker_talker.tool_schema import complaint
from duplex.thinker_talker.tool_words import missing, overlap, share, sure, values


def _tool(name: str, description: str, **properties: dict[str, Any]) -> Tool:
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(properties)})


ORDER = _tool("lookup_order", "Looks up an order.", number={"type": "string", "description": "the order number"})
TIMER = _tool("set_timer", "Sets a timer.", minutes={"type": "integer", "description": "how many minutes"})
LIGHT = _tool("switch_light", "Turns a light on or off.", state={"enum": ["on", "off"]}, room={"enum": ["living room"]})
WEATHER = _tool("get_weather", "Tells the weather in a city.", city={"type": "string"})


@pytest.mark.parametrize(
    ("text", "expected", "dialled"),
    [
        ("order 4711", [4711], ["4711"]),
        ("it's four seven, one one", [47, 11], ["4711"]),
        ("nine oh three four", [9034], ["9034"]),
        ("007", [7], ["007"]),
        ("twenty five minutes, or thirty", [25, 30], ["25", "30"]),
        ("two hundred and five", [205], ["205"]),
        ("forty-two", [42], ["42"]),
        ("five ten", [5, 10], ["510"]),
        ("1,250 dollars", [1250], ["1250"]),
        ("12.50 euros", [12.5], ["1250"]),
        ("three thousand two hundred", [3200], ["3200"]),
        ("the other one", [], []),
        ("one of them", [1], ["1"]),
        ("nothing here", [], []),
    ],
)
def test_numbers_as_people_say_them(text: str, expected: list[float], dialled: list[str]) -> None:
    assert [number.value for number in numbers(text)] == expected
    assert digit_runs(text) == dialled


@given(st.text(max_size=60))
def test_any_words_can_be_read(text: str) -> None:
    numbers(text)
    digit_runs(text)
    for tool in (ORDER, TIMER, LIGHT, WEATHER):
        assert 0.0 <= share(tool, text) <= 1.0
        held = values(tool, text)
        assert missing(tool, held) or not sure(tool, held, text) or overlap(tool, text) >= 0


@given(st.integers(0, 10**9), st.sampled_from(["order {}", "{} please", "it is {}."]))
def test_digits_are_kept(number: int, frame: str) -> None:
    assert digit_runs(frame.format(number)) == [str(number)]
    assert values(TIMER, frame.format(number))["minutes"] == [number]


@pytest.mark.parametrize(
    ("tool", "said", "held", "is_sure"),
    [
        (ORDER, "Where is order 47?", {"number": ["47"]}, True),
        (ORDER, "Where is my order?", {"number": []}, False),
        (TIMER, "Five minutes.", {"minutes": [5]}, True),
        (LIGHT, "Light off in the living room!", {"state": ["off"], "room": ["living room"]}, True),
        (LIGHT, "Put it on.", {"state": ["on"], "room": []}, False),
        (WEATHER, "Is the weather nice in New York?", {"city": ["New York", "nice"]}, True),
        (WEATHER, "Why is snow white?", {"city": ["snow white"]}, False),
    ],
)
def test_values_are_what_was_said(tool: Tool, said: str, held: dict[str, list[Any]], is_sure: bool) -> None:
    found = values(tool, said)
    assert {name: list(several) for name, several in found.items()} == held
    assert sure(tool, found, said) is is_sure
    assert missing(tool, found) == [name for name, several in held.items() if not several]


def test_a_tool_is_spoken_of_by_the_words_of_its_declaration() -> None:
    assert overlap(ORDER, "I ordered it yesterday.") == 1
    assert overlap(ORDER, "What is the capital of France?") == 0
    assert share(TIMER, "Set a timer for five minutes.") == 1.0
    assert share(TIMER, "Five minutes is a long way to walk.") < 0.5


def test_what_the_model_is_shown() -> None:
    history = (
        Message("system", "Be brief."),
        Message("user", "Where is order 47?"),
        Message("assistant", "Let me see.", calls=(Call("c", "lookup_order", '{"number": "47"}'),)),
        Message("tool", '{"arrives_on": "Friday", "late": false}', call_id="c"),
    )
    examples = (Message("user", "Hi."), Message("assistant", "Hello."))
    shown = small.shown(history, (ORDER,), examples)
    assert [(m.role, m.text) for m in shown] == [
        ("system", "Be brief. You can use these tools:\nlookup_order: Looks up an order."),
        ("user", "Looks up an order."),
        ("assistant", "[lookup_order]"),
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "Where is order 47?"),
        ("assistant", "Let me see. [lookup_order number=47]"),
        ("user", "Result: arrives on: Friday, late: false"),
    ]
    assert small.shown(history[:2], (), examples) == (history[0], *examples, history[1])


def test_an_answer_to_our_question_is_read_with_what_it_answers() -> None:
    asked = (Message("user", "Look up my order."), Message("assistant", "What is the order number?"))
    assert small.what_was_said((*asked, Message("user", "47."))) == "Look up my order. 47."
    chat = (Message("user", "Hi."), Message("assistant", "How are you?"))
    assert small.what_was_said((*chat, Message("user", "Fine."))) == "Fine."


@pytest.mark.parametrize(
    ("schema", "question"),
    [
        ({"description": "the order number"}, '"order number?"'),
        ({}, '"room number?"'),
        ({"description": "How many guests"}, '"how many guests."'),
    ],
)
def test_what_is_missing_is_asked_for_in_the_words_of_the_declaration(schema: dict[str, Any], question: str) -> None:
    grammar = small.question_grammar(_tool("t", "", room_number=schema), "room_number")
    assert question in grammar


def test_a_results_values_stand_in_every_answer_the_grammar_allows() -> None:
    output = json.dumps({"status": "shipped", "late": False, "arrives_on": "May 3"})
    grammar = small.answer_grammar("Where is my order?", output)
    root, *rules = grammar.splitlines()
    assert '"shipped"' in root
    assert '" arrives on"' in root
    assert '" May 3"' in root
    words = "".join(rules)
    assert '"order"' in words
    assert '"your"' in words
    assert '"not"' in words
    assert '"my"' not in words
    assert small.answer_grammar("And?", "it is closed for the winter") == 'root ::= "It is closed for the winter."'


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ('{"number": "47"}', None),
        ('{"number": "47", "more": 1}', None),
        ("{}", "number is missing"),
        ('{"number": 47}', "number is not of type string"),
        ("[]", "the arguments are not a JSON object"),
        ("{", "the arguments are not JSON"),
    ],
)
def test_arguments_are_checked(arguments: str, what: str | None) -> None:
    assert complaint(ORDER, arguments) == what
