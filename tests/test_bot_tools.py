"""Tools of a bot: described by their type hints, run with a limit, and what they answer told to the caller once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from duplex import events as ev
from duplex.agent import AgentInfo, AgentSettings
from duplex.bots import Answer, Bot, Call, ToolError, bot, tool_of
from duplex.bots.tools import MAX_ANSWER_CHARS, answer_text
from duplex.config import BotConfig
from duplex.conversation import Item, ToolCall, ToolResult
from duplex.errors import ConfigError
from duplex.requests import UpdateSettings
from duplex.testing import ScriptedAgent, ScriptedCall, ScriptedReply
from duplex.testing.bots import BotCall

LIMITS = BotConfig(tool_limit_s=3)


class Address(BaseModel):
    street: str
    title: str = ""


async def look_up(
    number: Annotated[str, Field(description="four digits")], kind: Literal["order", "invoice"] = "order"
) -> dict[str, str]:
    """Looks an order up.

    For whoever reads the source.
    """
    return {"number": number, "kind": kind}


# --- functions as tools ------------------------------------------------------------------------------


def test_a_function_is_described_by_its_hints() -> None:
    tool = tool_of(look_up).tool
    assert (tool.name, tool.description) == ("look_up", "Looks an order up.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "number": {"type": "string", "description": "four digits"},
            "kind": {"type": "string", "enum": ["order", "invoice"], "default": "order"},
        },
        "required": ["number"],
        "additionalProperties": False,
    }


async def deliver(call: Call, to: Address, days: int = 1) -> None: ...


def test_the_call_is_no_argument_and_a_property_called_title_stays() -> None:
    tool = tool_of(deliver)
    assert tool.call_parameter == "call"
    schema = tool.tool.parameters
    assert set(schema["properties"]) == {"to", "days"}
    assert set(schema["$defs"]["Address"]["properties"]) == {"street", "title"}


async def test_arguments_are_checked_before_a_tool_runs() -> None:
    tool = tool_of(look_up)
    assert await tool.bound('{"number": "4271"}', None)() == {"number": "4271", "kind": "order"}
    for wrong, named in [
        ('{"number": 4271}', "number"),
        ('{"number": "1", "kind": "gift"}', "kind"),
        ('{"number": "1", "colour": "red"}', "colour"),
        ("", "number"),
        ("{not json", "JSON"),
        ("[1]", "object"),
    ]:
        with pytest.raises(ToolError, match=named):
            tool.bound(wrong, None)


def test_what_cannot_be_a_tool_says_why() -> None:
    def blocking(number: str) -> str:
        return number

    async def untyped(number) -> str:  # type: ignore[no-untyped-def]
        return str(number)

    async def anything(**numbers: str) -> None: ...

    async def opaque(number: asyncio.Event) -> None: ...

    for function, why in [
        (blocking, "async"),
        (untyped, "'number'"),
        (anything, "numbers"),
        (opaque, "cannot be described"),
        (lambda: 1, "async"),
    ]:
        with pytest.raises(ConfigError, match=why):
            tool_of(function)
    with pytest.raises(ConfigError, match="Two tools are called look_up"):
        bot(tools=[look_up, look_up])


def test_what_a_tool_returns_is_told_as_text_or_json() -> None:
    assert answer_text("t", "As it is.") == "As it is."
    assert answer_text("t", None) == "null"
    assert answer_text("t", Address(street="Elm Street")) == '{"street":"Elm Street","title":""}'
    with pytest.raises(ToolError, match="cannot be told"):
        answer_text("t", object())
    with pytest.raises(ToolError, match=str(MAX_ANSWER_CHARS)):
        answer_text("t", "x" * (MAX_ANSWER_CHARS + 1))


# --- tools that the agent calls ----------------------------------------------------------------------


def thinker(history: Sequence[Item], said: str) -> str | ScriptedReply:
    """Calls ``look_up`` for every turn, and says what it learns of it."""
    if history and isinstance(history[-1], ToolResult):
        told = {item.call_id for item in history if isinstance(item, ToolResult)}
        asked = [item for item in history if isinstance(item, ToolCall)]
        assert told == {call.call_id for call in asked}
        return f"It says: {history[-1].output}"
    return ScriptedReply("One moment.", 0.1, 0.6, calls=(ScriptedCall("look_up", {"number": "4271"}),))


@bot(tools=[look_up], instructions="You look orders up.")
async def helpful(call: Call) -> None:
    await call.converse()


def test_the_agent_calls_a_tool_and_speaks_of_what_it_answered() -> None:
    with BotCall(helpful, ScriptedAgent(answer=thinker), bots=LIMITS) as call:
        call.say("Where is my order?")
        call.wait(2.0)
        assert call.heard_text == 'One moment. It says: {"number":"4271","kind":"order"}'
        assert [e.output for e in call.line.of(ev.ToolResultAdded)] == ['{"number":"4271","kind":"order"}']
        call.wait(5.0)
        assert len(call.line.of(ev.ReplyStarted)) == 2  # told once
        assert call.counted == {"tools answered": 1}


def test_the_agent_knows_the_bots_tools_and_instructions_and_the_client_is_not_told() -> None:
    agent = ScriptedAgent(answer=thinker)
    with BotCall(helpful, agent) as call:
        for _ in range(2):
            settings = agent.sessions[0].settings
            assert [tool.name for tool in settings.tools or ()] == ["look_up"]
            assert settings.instructions == "You look orders up."
            assert call.session.settings.tools is None
            call.request(UpdateSettings(AgentSettings(instructions="You are a pirate.")))


@pytest.mark.parametrize(
    ("work", "told", "counted"),
    [
        (lambda number: asyncio.Event().wait(), "look_up did not answer within 3 s.", "tools late"),
        (lambda number: 1 / 0, "look_up failed.", "tools failed"),
        (lambda number: _refuse(), "That order is too old.", "tools failed"),
    ],
)
def test_a_tool_that_fails_is_told_to_the_agent_in_a_sentence(work, told: str, counted: str) -> None:  # type: ignore[no-untyped-def]
    async def look_up(number: str) -> str:
        return str(await work(number))

    @bot(tools=[look_up])
    async def helpful(call: Call) -> None:
        await call.converse()

    with BotCall(helpful, ScriptedAgent(answer=thinker), bots=LIMITS) as call:
        call.say("Where is my order?")
        call.wait(12.0)
        outputs = [e.output for e in call.line.of(ev.ToolResultAdded)]
        assert outputs == [f"This did not work: {told} Tell the caller so, and go on without it."]
        assert "It says: This did not work" in call.heard_text
        assert call.counted == {counted: 1}
        assert not call.errors


async def _refuse() -> None:
    raise ToolError("That order is too old.")


def test_an_answer_that_comes_after_an_interruption_is_kept_for_the_next_turn() -> None:
    @bot(tools=[_slow_look_up(2.0)])
    async def helpful(call: Call) -> None:
        await call.converse()

    def mind(history: Sequence[Item], said: str) -> str | ScriptedReply:
        if any(isinstance(item, ToolResult) for item in history):
            return "Now I know."
        if "wait" in said:
            return "I am waiting for an answer myself, so please stay with me for a moment."
        return ScriptedReply("Let me see what there is.", 0.1, 3.0, calls=(ScriptedCall("look_up", {"number": "1"}),))

    with BotCall(helpful, ScriptedAgent(answer=mind), bots=LIMITS) as call:
        call.interrupt("please wait a bit now", after_s=0.6, question="Where is it?")
        call.wait(4.0)
        # The tool answered while the second reply was being spoken, which did not know of it.
        assert call.heard_text.endswith("Now I know.")
        assert call.heard_text.count("Now I know.") == 1
        call.wait(4.0)
        assert call.heard_text.count("Now I know.") == 1


def test_an_answer_that_comes_while_the_caller_speaks_waits_for_their_turn() -> None:
    @bot(tools=[_slow_look_up(2.0)])
    async def helpful(call: Call) -> None:
        await call.converse()

    def mind(history: Sequence[Item], said: str) -> str | ScriptedReply:
        if any(isinstance(item, ToolResult) for item in history):
            return "Now I know."
        return ScriptedReply("Hm.", 0.1, 0.3, calls=(ScriptedCall("look_up", {"number": "1"}),))

    with BotCall(helpful, ScriptedAgent(answer=mind), bots=LIMITS) as call:
        call.say("Where is it?")
        turn = call.say("And while you are at it, tell me when it will come please")
        assert turn.answered
        assert not turn.took_over
        call.wait(3.0)
        assert call.heard_text == "Hm. Now I know."


def _slow_look_up(seconds: float):  # type: ignore[no-untyped-def]
    async def look_up(number: str) -> str:
        await asyncio.sleep(seconds)
        return "at the door"

    return look_up


def test_two_tools_of_one_reply_are_told_together() -> None:
    async def quick(n: int) -> int:
        return n

    async def slow(n: int) -> int:
        await asyncio.sleep(1.5)
        return n

    @bot(tools=[quick, slow])
    async def helpful(call: Call) -> None:
        await call.converse()

    def mind(history: Sequence[Item], said: str) -> str | ScriptedReply:
        known = sorted(item.output for item in history if isinstance(item, ToolResult))
        if known:
            return "I know " + " and ".join(known)
        return ScriptedReply("", 0.1, 0.0, calls=(ScriptedCall("quick", {"n": 1}), ScriptedCall("slow", {"n": 2})))

    with BotCall(helpful, ScriptedAgent(answer=mind), bots=LIMITS) as call:
        call.say("Both, please")
        call.wait(4.0)
        assert call.heard_text == "I know 1 and 2"


def test_a_tool_may_end_the_conversation_and_the_bot_goes_on() -> None:
    async def done(call: Call, reason: str) -> str:
        """The caller has what they want."""
        call.conclude(reason)
        return "Goodbye is said by the bot."

    learnt: list[object] = []

    @bot(tools=[done])
    async def helpful(call: Call) -> None:
        learnt.append(await call.converse())
        await call.say("Goodbye.")

    def mind(history: Sequence[Item], said: str) -> str | ScriptedReply:
        return ScriptedReply("I see.", 0.1, 0.6, calls=(ScriptedCall("done", {"reason": "happy"}),))

    with BotCall(helpful, ScriptedAgent(answer=mind), bots=LIMITS) as call:
        call.say("That was all")
        assert call.wait_ended() == "the bot hung up"
        assert learnt == ["happy"]
        assert call.heard_text == "I see. Goodbye."


def test_the_agent_answers_what_the_bot_left_to_it() -> None:
    learnt: list[object] = []

    async def helpful(call: Call) -> None:
        learnt.append(await call.ask("Yes or no?"))
        learnt.append(await call.converse(timeout_s=6.0))
        await call.say("Now it is my turn.")
        learnt.append(await call.listen(3.0))

    with BotCall(helpful, ScriptedAgent(answer=lambda history, said: f"Mind: {len(history)}.")) as call:
        call.hear()
        assert call.say("Why do you ask").reply_text == "Mind: 2."
        assert call.say("I see").reply_text == "Mind: 3."
        call.wait(6.0)
        assert call.hear() == "Mind: 2. Mind: 3. Now it is my turn."
        call.say("All right")
        call.wait_ended()
    assert learnt == [Answer("Why do you ask"), None, Answer("All right")]


# --- tools that the bot calls ------------------------------------------------------------------------


class NoTools(ScriptedAgent):
    @property
    def info(self) -> AgentInfo:
        return AgentInfo("plain", deterministic=True)


def test_an_agent_that_calls_no_tools_refuses_a_bot_that_gives_it_some() -> None:
    from duplex.errors import DuplexError

    with pytest.raises(DuplexError, match=r"gives the agent tools \(look_up\).*cannot call any.*call.run"):
        BotCall(helpful, NoTools())


def test_and_the_bot_may_call_them_itself() -> None:
    learnt: list[object] = []

    async def own(call: Call) -> None:
        learnt.append(await call.run(look_up, "4271", kind="invoice"))
        with pytest.raises(ToolError, match="within 3 s"):
            await call.run(asyncio.Event().wait)
        with pytest.raises(ToolError, match="look_up failed"):
            await call.run(_broken_look_up)
        with pytest.raises(ToolError, match="too old"):
            await call.run(_refuse)

    with BotCall(own, NoTools(), bots=LIMITS) as call:
        assert call.wait_ended() == "the bot hung up"
        assert call.counted == {"calls completed": 1, "tools answered": 1, "tools late": 1, "tools failed": 2}
    assert learnt == [{"number": "4271", "kind": "invoice"}]


async def _broken_look_up() -> None:
    raise ConnectionError("db-3 refused")


_broken_look_up.__name__ = "look_up"


def test_a_bot_is_a_function_of_one_argument() -> None:
    from duplex.bots import as_bot

    async def too_many(call: Call, other: int) -> None: ...

    for wrong, why in [(look_up.__doc__, "is no bot"), (len, "is no bot"), (too_many, "one argument")]:
        with pytest.raises(ConfigError, match=why):
            as_bot(wrong)
    assert as_bot(helpful) is helpful
    assert isinstance(as_bot(_a_bot), Bot)


async def _a_bot(call: Call) -> None: ...
