"""Tools, replies without sound, their length and what they cost, through the cascade; the engines are fakes."""

from __future__ import annotations

import pytest
from cascade_bench import Bench, question

from duplex.agent import (
    AgentSettings,
    BeginReply,
    CommitTurn,
    Configure,
    ReplyEnd,
    ReplyText,
    ReplyUsage,
    Tool,
    ToolCallArguments,
    ToolCallBegan,
    ToolCallEnd,
    ToolChoice,
)
from duplex.conversation import Message, Role, ToolCall, ToolResult
from duplex.errors import ConfigError
from duplex.thinker_talker.thinker import Thought, Usage

ORDER = Tool(
    "lookup_order", "", {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]}
)
TIME = Tool("get_time")
ASKED = BeginReply("r1", (Message("i1", Role.USER, "Where is order 47?"),), to_open_turn=False)


def calls(thought: Thought, call_id: str = "c1") -> None:
    thought.call_began(call_id, "lookup_order")
    thought.call_arguments(call_id, '{"number":')
    thought.call_arguments(call_id, ' "47"}')
    thought.call_end(call_id, '{"number": "47"}')


def test_a_reply_speaks_and_then_calls() -> None:
    bench = Bench()
    bench.command(Configure(AgentSettings(tools=(ORDER,))))
    assert bench.thinker.prefills[-1][1] == (ORDER,), "what the next prompt begins with is read ahead with the tools"
    bench.command(ASKED)
    [(request, thought)] = bench.thinker.thoughts
    assert (request.tools, request.tool_choice) == ((ORDER,), ToolChoice())
    thought.text("Let me see")  # no full stop: what is said before a call does not wait for one
    calls(thought)
    thought.done("calls", Usage(50, 40, 9))
    bench.talker.utterances[0].speak()
    bench.collect()
    told = [e for e in bench.events if type(e) in (ReplyText, ToolCallBegan, ToolCallArguments, ToolCallEnd)]
    assert told == [
        ReplyText("r1", "Let me see"),
        ToolCallBegan("r1", "c1", "lookup_order"),
        ToolCallArguments("r1", "c1", '{"number":'),
        ToolCallArguments("r1", "c1", ' "47"}'),
        ToolCallEnd("r1", "c1", '{"number": "47"}'),
    ]
    assert bench.of(ReplyUsage) == [ReplyUsage("r1", 50, 40, 9)]
    assert bench.of(ReplyEnd) == [ReplyEnd("r1")]
    assert bench.events.index(bench.of(ReplyUsage)[0]) < bench.events.index(bench.of(ReplyEnd)[0])


def test_a_call_in_a_reply_to_an_open_turn_waits_until_its_words_are_settled() -> None:
    bench = Bench()
    bench.command(Configure(AgentSettings(tools=(ORDER,))))
    question(bench, "Where is order 47?")
    bench.command(BeginReply("r1", ()))
    [(_, thought)] = bench.thinker.thoughts
    calls(thought)
    thought.done("calls", Usage(1, 0, 1))
    bench.talker.utterances[0].sink.on_done()
    bench.collect()
    assert not bench.of(ToolCallBegan)
    assert not bench.of(ReplyEnd)
    bench.command(CommitTurn("t1"))
    order = [type(e) for e in bench.events if type(e) in (ToolCallBegan, ToolCallEnd, ReplyUsage, ReplyEnd)]
    assert order == [ToolCallBegan, ToolCallEnd, ReplyUsage, ReplyEnd]


def test_a_call_to_misheard_words_is_never_told() -> None:
    bench = Bench()
    bench.command(Configure(AgentSettings(tools=(ORDER,))))
    bench.hear(1.0, voice=True).hear(0.14, voice=False)
    bench.stream.answer("Where is order 47?")
    bench.collect()
    bench.command(BeginReply("r1", ()))
    calls(bench.thinker.thoughts[0][1])
    bench.thinker.thoughts[0][1].done("calls", Usage(1, 0, 1))
    bench.session._stream.request("final", 99)  # type: ignore[attr-defined]
    bench.session._asked_pts[99] = bench.session._pts  # the listener is asked once more, and hears it better
    bench.stream.answer("Where is order 48?")
    bench.collect()
    assert len(bench.thinker.thoughts) == 2
    calls(bench.thinker.thoughts[1][1], "c2")
    bench.command(CommitTurn("t1"))
    assert [e.call_id for e in bench.of(ToolCallBegan)] == ["c2"]


def test_the_result_is_shown_beside_its_call_where_it_came() -> None:
    history = (
        Message("i1", Role.USER, "Where is order 47?"),
        Message("i2", Role.ASSISTANT, "Let me see."),
        ToolCall("i3", "c1", "lookup_order", '{"number": "47"}'),
        ToolCall("i4", "c2", "get_time", "{}"),
        Message("i5", Role.USER, "Are you there?"),
        ToolResult("i6", "c1", "shipped"),
        ToolResult("i7", "c9", "nobody asked"),
    )
    bench = Bench()
    bench.command(BeginReply("r1", history, to_open_turn=False))
    [(request, _)] = bench.thinker.thoughts
    assert [(m.role, m.text, [c.call_id for c in m.calls], m.call_id) for m in request.messages[1:]] == [
        ("user", "Where is order 47?", [], ""),
        ("assistant", "Let me see.", ["c2"], ""),
        ("tool", "The result is not there yet.", [], "c2"),
        ("user", "Are you there?", [], ""),
        ("assistant", "", ["c1"], ""),
        ("tool", "shipped", [], "c1"),
    ]


def test_a_reply_may_have_its_own_tools_choice_and_length() -> None:
    bench = Bench()
    choice = ToolChoice("required", "lookup_order")
    bench.command(Configure(AgentSettings(tools=(ORDER,), tool_choice=choice, max_output_tokens=30)))
    bench.command(ASKED)
    bench.command(BeginReply("r2", (), False, tools=(TIME,), max_output_tokens=7))
    bench.command(BeginReply("r3", (), False, tool_choice=ToolChoice("none")))
    asked = [(r.tools, r.tool_choice, r.max_tokens) for r, _ in bench.thinker.thoughts]
    assert asked == [
        ((ORDER,), choice, 30),
        ((TIME,), ToolChoice(), 7),
        ((ORDER,), ToolChoice("none"), 30),
    ]
    bench.thinker.thoughts[1][1].text("One two three four five six seven")
    bench.thinker.thoughts[1][1].done("length", Usage(1, 0, 7))
    bench.talker.utterances[1].speak()
    bench.collect()
    assert bench.of(ReplyEnd) == [ReplyEnd("r2", cut_short=True)]


@pytest.mark.parametrize("say", [None, "Just **this**."])
def test_a_silent_reply_has_text_as_it_comes_and_no_sound(say: str | None) -> None:
    bench = Bench()
    bench.command(BeginReply("r1", (), to_open_turn=False, silent=True, say=say))
    if say is None:
        [(_, thought)] = bench.thinker.thoughts
        for piece in ("\n", "Half a ", "**word**"):
            thought.text(piece)
        thought.done("stop", Usage(3, 2, 1))
        bench.collect()
    assert not bench.talker.utterances
    assert "".join(e.delta for e in bench.of(ReplyText)) == (say or "Half a **word**")
    assert len(bench.of(ReplyUsage)) == 1
    assert bench.of(ReplyEnd) == [ReplyEnd("r1")]


def test_an_endpoint_that_does_not_count_tells_no_usage() -> None:
    bench = Bench()
    bench.command(ASKED)
    bench.thinker.thoughts[0][1].done("stop", Usage())
    bench.talker.utterances[0].sink.on_done()
    bench.collect()
    assert not bench.of(ReplyUsage)
    assert bench.of(ReplyEnd)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (AgentSettings(tools=(Tool("look up"),)), r"tools\[0\].name is 'look up'"),
        (AgentSettings(tools=(TIME, TIME)), "declared twice"),
        (AgentSettings(tools=(Tool("t", "", {"type": "array"}),)), r"tools\[0\].parameters.type"),
        (AgentSettings(tools=(Tool("t", "", {"properties": [1]}),)), "parameters.properties"),
        (AgentSettings(tools=(Tool("t", "", {"x": float("nan")}),)), "not JSON"),
        (AgentSettings(tools=(TIME,), tool_choice=ToolChoice("required", "lookup_order")), "tool_choice names"),
        (AgentSettings(tool_choice=ToolChoice("required")), "none is declared"),
        (AgentSettings(max_output_tokens=0), "max_output_tokens is 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(settings: AgentSettings, named: str) -> None:
    bench = Bench()
    with pytest.raises(ConfigError, match=named):
        bench.session.command(Configure(settings))
    reply = BeginReply(
        "r1",
        (),
        False,
        tools=settings.tools,
        tool_choice=settings.tool_choice,
        max_output_tokens=settings.max_output_tokens,
    )
    [end] = [e for e in bench.command(reply) if isinstance(e, ReplyEnd)]
    assert isinstance(end.error, ConfigError)


def test_a_thinker_without_tools_says_so() -> None:
    bench = Bench()
    bench.thinker.calls_tools = False
    with pytest.raises(ConfigError, match="cannot call any"):
        bench.session.command(Configure(AgentSettings(tools=(TIME,))))


def test_a_silent_reply_beside_the_conversation_cancels_nothing_and_is_not_cancelled() -> None:
    bench = Bench()
    bench.command(ASKED)
    for reply_id in ("r2", "r3"):
        bench.command(BeginReply(reply_id, ASKED.history, to_open_turn=False, silent=True))
    question(bench)
    bench.command(BeginReply("r4", (), speculative=True))
    assert not any(thought.cancelled for _, thought in bench.thinker.thoughts)
    assert bench.thinker.beside == 3, "one each: two beside, and one since the first reply is still being thought"
    for _, thought in bench.thinker.thoughts:
        thought.text("Yes.")
        thought.done("stop", Usage())
    bench.command(BeginReply("r5", ASKED.history, to_open_turn=False, silent=True))
    bench.command(BeginReply("r6", ASKED.history, to_open_turn=False))
    assert bench.thinker.beside == 3, "places are used again"
    bench.collect()
    assert [e.reply_id for e in bench.of(ReplyEnd)] == ["r2", "r3"]
