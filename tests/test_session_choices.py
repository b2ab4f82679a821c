"""What a session and single replies may choose: who ends a turn, tools, text alone, replies beside the conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from session_run import SessionRun

from duplex import events as ev
from duplex import requests as rq
from duplex.agent import AgentSettings, BeginReply, FillSilence, FinalTranscript, Tool, ToolChoice
from duplex.conversation import Item, Message, Role, ToolCall, ToolResult
from duplex.testing import (
    ScriptedAgent,
    ScriptedCall,
    ScriptedReply,
    ScriptedTiming,
    ScriptedUser,
)
from duplex.turn import Action, Floor, Own, User
from duplex.turn_rules import TurnEnds, TurnRules, table_for

TOOL = Tool("find_order", "Finds an order by its number.", {"type": "object"})
CALLING = ScriptedReply("One moment please.", duration_s=1.0, calls=(ScriptedCall("find_order", {"number": 7}),))


class Call(SessionRun):
    """What came of it, in few words."""

    def __init__(
        self,
        agent: ScriptedAgent,
        speech: Sequence[tuple[float, float]] = (),
        total_s: float = 6.0,
        settings: AgentSettings | None = None,
    ) -> None:
        super().__init__(agent, ScriptedUser(speech), total_s, settings=settings)

    def kinds(self, *kinds: type) -> list[str]:
        return [type(event).__name__ for event in self.line.events if isinstance(event, kinds)]

    def statuses(self) -> list[str]:
        return [event.status for event in self.line.of(ev.ReplyFinished)]

    def items(self) -> list[str]:
        return [_shown(item) for item in self.session.conversation]

    def begun(self) -> list[BeginReply]:
        return [c for c in self.agent.sessions[0].commands if isinstance(c, BeginReply)]


def _shown(item: Item) -> str:
    match item:
        case Message(role=role, text=text):
            return f"{role.value}: {text}"
        case ToolCall(name=name, arguments=arguments):
            return f"{name}({arguments})"
        case ToolResult(output=output):
            return f"-> {output}"


def turns(**rules: Any) -> AgentSettings:
    return AgentSettings(turns=TurnRules(**rules))


# --- who ends a turn ----------------------------------------------------------------------------------


def test_the_client_decides_when_a_turn_is_over_and_what_follows() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0)], 8.0, turns(ends=TurnEnds.CLIENT))
    call.at(4.0, rq.CommitInput(), rq.CreateReply()).run()
    assert not call.line.of(ev.UserSpeechStarted)
    [committed] = call.line.of(ev.UserTurnCommitted)
    assert committed.at.at_s == pytest.approx(4.0, abs=0.1)  # not after 0.3 s of silence
    assert call.items() == ["user: (speech)", "assistant: All right, here is my answer."]
    [begun] = call.begun()
    assert [_shown(item) for item in begun.history] == ["user: (speech)"]  # its words were waited for
    assert not call.refused


def test_nobody_is_interrupted_by_voice_when_the_client_decides() -> None:
    call = Call(ScriptedAgent(), [(1.0, 2.0)], 6.0, turns(ends=TurnEnds.CLIENT)).at(0.2, rq.CreateReply()).run()
    assert call.statuses() == ["completed"]
    assert not call.line.of(ev.ReplyHeld)


def test_a_commit_without_speech_is_refused_and_the_call_goes_on() -> None:
    call = Call(ScriptedAgent(), (), 5.0, turns(ends=TurnEnds.CLIENT)).at(1.0, rq.CommitInput(), rq.CreateReply()).run()
    assert [error.code for error in call.refused] == ["input_audio_buffer_commit_empty"]
    assert call.statuses() == ["completed"]


class DeafFor(ScriptedAgent):
    """Tells of nothing it hears before ``until_s``; then of all of it."""

    until_s = 2.0

    def open(self, settings: Any, clock: Any, wake: Callable[[], None]) -> Any:
        session = super().open(settings, clock, wake)
        collect, kept = session.collect, list[Any]()

        def later() -> Sequence[Any]:
            kept.extend(collect())
            if clock.now() < self.until_s:
                return ()
            out, kept[:] = list(kept), ()
            return out

        session.collect = later  # type: ignore[method-assign]
        return session


def test_a_commit_waits_for_an_ear_that_is_behind_and_a_reply_waits_for_the_commit() -> None:
    agent = DeafFor()
    agent.until_s = 1.8
    call = Call(agent, [(0.5, 1.0)], 6.0, turns(ends=TurnEnds.CLIENT))
    call.at(1.5, rq.CommitInput(), rq.CreateReply()).run()
    assert not call.refused
    assert not call.line.of(ev.ErrorRaised)
    [committed] = call.line.of(ev.UserTurnCommitted)
    assert committed.at.at_s == pytest.approx(1.8, abs=0.05)
    assert call.statuses() == ["completed"]


def test_what_had_to_wait_and_cannot_be_done_is_told_as_an_error() -> None:
    agent = DeafFor()
    agent.until_s = 3.0  # longer than a commit waits
    call = Call(agent, (), 5.0, turns(ends=TurnEnds.CLIENT)).at(1.5, rq.CommitInput()).run()
    [error] = call.line.of(ev.ErrorRaised)
    assert error.code == "input_audio_buffer_commit_empty"
    assert error.at.at_s == pytest.approx(2.0, abs=0.05)


def test_turns_may_end_without_an_answer() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0), (2.5, 0.5)], 8.0, turns(replies=False)).at(5.0, rq.CreateReply()).run()
    assert [round(event.at.at_s, 1) for event in call.line.of(ev.UserTurnCommitted)] == [1.8, 3.3]
    assert len(call.begun()) == 1  # and no speculation before it
    assert call.items() == ["user: (speech)", "user: (speech)", "assistant: All right, here is my answer."]


def test_a_reply_that_is_not_to_be_interrupted_is_said_to_its_end() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0), (2.3, 1.0)], 9.0, turns(interrupts=False)).run()
    assert not call.line.of(ev.ReplyHeld)
    assert call.statuses() == ["completed"]
    assert len(call.line.of(ev.UserTurnCommitted)) == 2  # what was said over it is a turn of its own
    assert call.items() == ["user: (speech)", "assistant: All right, here is my answer.", "user: (speech)"]


def test_who_stays_silent_is_spoken_to_again() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0)], 14.0, turns(idle_timeout_s=3.0)).run()
    first, second = call.line.of(ev.IdleTimedOut)
    heard_s = call.line.of(ev.ReplyFinished)[0].at.at_s
    assert first.at.at_s == pytest.approx(heard_s + 3.0, abs=0.05)
    assert (first.end_pts - first.start_pts) / 24_000 == pytest.approx(3.0, abs=0.05)
    assert second.at.at_s > first.at.at_s + 3.0
    assert first.item_id in [event.item_id for event in call.line.of(ev.UserTurnCommitted)]
    assert len(call.begun()) == 3
    asked = call.begun()[1].history[-1]
    assert isinstance(asked, Message)
    assert "said nothing" in asked.text  # so that it knows why it speaks
    assert not any("said nothing" in item for item in call.items())


def test_speech_puts_the_timeout_off() -> None:
    call = Call(ScriptedAgent(timing=ScriptedTiming(complete_s=2.0)), [(0.5, 0.5), (5.6, 0.5)], 9.0)
    call.settings = turns(idle_timeout_s=1.5)
    call.run()
    assert not call.line.of(ev.IdleTimedOut)


def test_no_idle_timeout_before_the_agent_ever_spoke() -> None:
    assert not Call(ScriptedAgent(), (), 9.0, turns(idle_timeout_s=1.0)).run().line.of(ev.IdleTimedOut)


def test_rules_change_in_the_middle_of_a_call() -> None:
    client = rq.UpdateSettings(turns(ends=TurnEnds.CLIENT))
    back = rq.UpdateSettings(AgentSettings(), reset=("turns",))
    call = Call(ScriptedAgent(), [(1.0, 0.5)], 8.0).at(0.5, client).at(3.5, back).run()
    assert [event.settings.turns for event in call.line.of(ev.SessionUpdated)] == [client.settings.turns, None]
    [committed] = call.line.of(ev.UserTurnCommitted)
    assert committed.at.at_s == pytest.approx(3.5, abs=0.05)  # what was said meanwhile is a turn now


@pytest.mark.parametrize("replies", [True, False])
@pytest.mark.parametrize("interrupts", [True, False])
@pytest.mark.parametrize("ends", TurnEnds)
def test_under_any_rules_every_pair_has_a_row_and_no_rule_takes_our_own_signals_away(
    ends: TurnEnds, interrupts: bool, replies: bool
) -> None:
    plain, table = table_for(None), table_for(TurnRules(ends, replies, interrupts))
    assert set(table) == set(plain)
    assert all(table[floor, own] == plain[floor, own] for floor in Floor for own in Own)
    for user in User:
        if not interrupts or ends is TurnEnds.CLIENT:
            assert not {Action.YIELD, Action.HOLD} & set(table[Floor.SPEAKING, user].actions)
        if not replies or ends is TurnEnds.CLIENT:
            assert not {Action.COMMIT, Action.SPECULATE} & set(table[Floor.LISTENING, user].actions)


# --- tools --------------------------------------------------------------------------------------------

WITH_TOOLS = AgentSettings(tools=(TOOL,))


def test_a_call_is_told_while_the_agent_speaks_and_its_result_is_answered() -> None:
    agent = ScriptedAgent([CALLING, ScriptedReply("It is on its way.", duration_s=1.0)])
    call = Call(agent, [(0.5, 1.0)], 8.0, WITH_TOOLS)
    call.at(4.0, rq.AddToolResult("call_1", '{"state": "sent"}'), rq.CreateReply()).run()
    [started] = call.line.of(ev.ToolCallStarted)
    [done] = call.line.of(ev.ToolCallDone)
    assert "".join(delta.delta for delta in call.line.of(ev.ToolCallDelta)) == done.arguments == '{"number": 7}'
    assert (started.call_id, started.name, started.item_id) == (done.call_id, done.name, done.item_id)
    first = call.line.of(ev.ReplyFinished)[0]
    assert done.at.at_s < first.at.at_s - 0.5  # told at once; the reply goes on being heard
    assert call.items() == [
        "user: (speech)",
        "assistant: One moment please.",
        'find_order({"number": 7})',
        '-> {"state": "sent"}',
        "assistant: It is on its way.",
    ]
    assert [_shown(item) for item in call.begun()[-1].history] == call.items()[:4]
    assert call.statuses() == ["completed", "completed"]
    assert not call.refused


def test_a_reply_may_be_nothing_but_a_call() -> None:
    silent = ScriptedReply("", calls=(ScriptedCall("find_order"),))
    call = Call(ScriptedAgent([silent]), [(0.5, 1.0)], 4.0, WITH_TOOLS).run()
    assert call.items() == ["user: (speech)", "find_order({})"]
    assert call.statuses() == ["completed"]
    assert call.session.machine.floor is Floor.LISTENING


def test_a_call_of_a_speculation_that_is_dropped_was_never_made() -> None:
    call = Call(ScriptedAgent([CALLING]), [(0.5, 0.5), (1.2, 0.8)], 6.0, WITH_TOOLS).run()
    assert len(call.begun()) == 2
    assert len(call.line.of(ev.ToolCallStarted)) == 1


def test_a_result_after_an_interruption_is_kept_for_the_next_turn() -> None:
    long = ScriptedReply("Let me see what I can find for you.", duration_s=4.0, calls=CALLING.calls)
    call = Call(ScriptedAgent([long, ScriptedReply("Yes.", duration_s=0.5)]), [(0.5, 1.0), (2.8, 1.5)], 8.0, WITH_TOOLS)
    call.at(4.0, rq.AddToolResult("call_1", "sent")).run()  # while the user speaks
    assert call.statuses() == ["cancelled", "completed"]
    assert "-> sent" in [_shown(item) for item in call.begun()[-1].history]
    assert [type(item).__name__ for item in call.session.conversation] == [
        "Message",
        "Message",
        "ToolCall",
        "ToolResult",
        "Message",
        "Message",
    ]


def test_going_on_after_a_call_was_made_does_not_unmake_it() -> None:
    calling = ScriptedReply("", calls=CALLING.calls, audio_after_s=0.05)
    agent = ScriptedAgent([calling, ScriptedReply(audio_after_s=1.0)])
    call = Call(agent, [(0.5, 0.5), (1.9, 0.5)], 8.0, WITH_TOOLS).run()
    assert [type(item).__name__ for item in call.session.conversation].count("ToolCall") == 1
    assert not call.line.of(ev.UserTurnReopened)


@pytest.mark.parametrize(
    ("requests", "param", "code"),
    [
        ([rq.AddToolResult("call_9", "x")], "item.call_id", "call_not_found"),
        ([rq.AddToolResult("call_1", "x"), rq.AddToolResult("call_1", "y")], "item.call_id", "call_already_answered"),
        ([rq.AddToolCall("call_1", "f", "{}")], "item.call_id", "invalid_event"),
        ([rq.AddMessage(Role.USER, "a", (), "same"), rq.AddMessage(Role.USER, "b", (), "same")], "item.id", None),
        ([rq.AddMessage(Role.USER, "a", after="nowhere")], "previous_item_id", "item_not_found"),
        ([rq.RemoveMessage("nowhere")], "item_id", "item_not_found"),
        ([rq.CreateReply(input=(rq.ItemReference("nowhere"),))], "response.input[0].id", "item_not_found"),
        ([rq.CreateReply(tool_choice=ToolChoice("required", "other"))], "response.tool_choice", None),
        ([rq.CreateReply(tools=(), tool_choice=ToolChoice("required"))], "response.tool_choice", None),
        ([rq.UpdateSettings(AgentSettings(tool_choice=ToolChoice("required", "no")))], "session.tool_choice", None),
        ([rq.TruncateMessage("nowhere", 10.0)], "item_id", None),
        ([rq.CancelReply()], None, "response_cancel_not_active"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_the_call_goes_on(
    requests: list[rq.Request], param: str | None, code: str | None
) -> None:
    agent = ScriptedAgent([CALLING, ScriptedReply("Yes.", duration_s=0.5)])
    call = Call(agent, [(0.5, 1.0)], 6.0, WITH_TOOLS).at(4.0, *requests).at(4.5, rq.CreateReply()).run()
    [error] = call.refused
    assert error.param == param
    assert code is None or error.code == code
    assert call.statuses() == ["completed", "completed"]


def test_an_agent_without_tools_refuses_them() -> None:
    call = Call(ScriptedAgent(echo=True), (), 2.0).at(0.5, rq.UpdateSettings(WITH_TOOLS)).run()
    [error] = call.refused
    assert (error.param, error.code) == ("session.tools", "unsupported")


def test_the_choice_of_tools_reaches_the_agent() -> None:
    none = rq.CreateReply(tool_choice=ToolChoice("none"))
    other = rq.CreateReply(tools=(Tool("other"),))
    call = Call(ScriptedAgent([CALLING]), (), 9.0, WITH_TOOLS).at(0.5, none).at(3.0, other).at(6.0, rq.CreateReply())
    assert len(call.run().line.of(ev.ToolCallStarted)) == 1  # of the last


# --- items --------------------------------------------------------------------------------------------


def test_items_go_where_the_client_puts_them() -> None:
    call = Call(ScriptedAgent(), (), 3.0)
    call.at(0.5, rq.AddMessage(Role.USER, "one", (), "i1"), rq.AddMessage(Role.USER, "three", (), "i3"))
    call.at(0.6, rq.AddMessage(Role.USER, "two", (), "i2", "i1"), rq.AddMessage(Role.SYSTEM, "zero", after=rq.ROOT))
    call.at(0.7, rq.AddToolCall("c1", "f", "{}", after="i3"), rq.AddToolResult("c1", "done")).run()
    assert call.items() == ["system: zero", "user: one", "user: two", "user: three", "f({})", "-> done"]
    assert [event.previous_item_id for event in call.line.of(ev.ItemAdded)] == [None, "i1", "i1", None]


def test_a_message_added_while_the_agent_speaks_comes_after_what_it_says() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0)], 6.0).at(2.5, rq.AddMessage(Role.USER, "typed")).run()
    assert call.items() == ["user: (speech)", "assistant: All right, here is my answer.", "user: typed"]


# --- text alone, and replies beside the conversation --------------------------------------------------

TEXT = AgentSettings(silent=True)


def test_a_silent_session_speaks_in_text_alone() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0)], 6.0, TEXT).run()
    assert not any(packet.reply_id for packet in call.line.played)
    [finished] = call.line.of(ev.ReplyFinished)
    assert finished.at.at_s < 2.0  # and waits for no sound
    assert call.items() == ["user: (speech)", "assistant: All right, here is my answer."]
    [started] = call.line.of(ev.ReplyStarted)
    assert started.silent


def test_an_agent_that_speaks_all_the_same_is_not_heard() -> None:
    class Loud(ScriptedAgent):
        def open(self, settings: Any, clock: Any, wake: Callable[[], None]) -> Any:
            return super().open(AgentSettings(), clock, wake)

    call = Call(Loud(), [(0.5, 1.0)], 6.0, TEXT).run()
    assert not any(packet.reply_id for packet in call.line.played)
    assert call.statuses() == ["completed"]


def test_one_reply_may_be_text_in_a_spoken_call() -> None:
    call = Call(ScriptedAgent(), (), 9.0).at(0.5, rq.CreateReply(silent=True)).at(3.0, rq.CreateReply()).run()
    assert [event.silent for event in call.line.of(ev.ReplyStarted)] == [True, False]
    assert {packet.reply_id for packet in call.line.played} - {None} == {call.line.of(ev.ReplyStarted)[1].reply_id}


def test_a_text_that_is_slow_to_come_is_not_given_up_while_it_comes_and_no_word_fills_the_wait() -> None:
    agent = ScriptedAgent([ScriptedReply(audio_after_s=5.0)])
    call = Call(agent, [(0.5, 1.0)], 12.0, TEXT).run()
    assert not [c for c in agent.sessions[0].commands if isinstance(c, FillSilence)]
    assert call.statuses() == ["completed"]


def test_a_reply_beside_the_conversation_is_made_while_another_is_spoken() -> None:
    aside = rq.CreateReply("Classify.", silent=True, in_conversation=False, labels={"topic": "kind"})
    agent = ScriptedAgent([ScriptedReply(duration_s=3.0), ScriptedReply("greeting")])
    call = Call(agent, [(0.5, 1.0)], 8.0).at(2.5, aside).run()
    started, beside = call.line.of(ev.ReplyStarted)
    assert (beside.silent, beside.in_conversation, beside.labels) == (True, False, {"topic": "kind"})
    finished = {event.reply_id: event for event in call.line.of(ev.ReplyFinished)}
    assert finished[beside.reply_id].at.at_s < finished[started.reply_id].at.at_s
    assert finished[beside.reply_id].text == "greeting"
    assert call.items() == ["user: (speech)", "assistant: All right, here is my answer."]
    [begun] = [b for b in call.begun() if b.instructions]
    assert begun.silent
    assert call.statuses() == ["completed", "completed"]


def test_a_spoken_reply_outside_the_conversation_is_not_remembered() -> None:
    call = Call(ScriptedAgent(), (), 5.0).at(0.5, rq.CreateReply(in_conversation=False)).run()
    assert call.statuses() == ["completed"]
    assert call.items() == []
    assert any(packet.reply_id for packet in call.line.played)


def test_a_reply_to_other_items_than_the_conversation() -> None:
    given = (rq.ItemReference("i2"), Message("input_1", Role.USER, "And now?"))
    call = Call(ScriptedAgent(), (), 5.0)
    call.at(0.5, rq.AddMessage(Role.USER, "one", (), "i1"), rq.AddMessage(Role.USER, "two", (), "i2"))
    call.at(1.0, rq.CreateReply(input=given)).run()
    [begun] = call.begun()
    assert [_shown(item) for item in begun.history] == ["user: two", "user: And now?"]


def test_replies_beside_the_conversation_are_bounded_and_can_be_cancelled() -> None:
    slow = ScriptedAgent([ScriptedReply(audio_after_s=4.0)])
    beside = rq.CreateReply(silent=True, in_conversation=False)
    call = Call(slow, (), 8.0).at(0.5, *[beside] * 5).at(1.0, rq.CancelReply("resp_test_1")).run()
    [error] = call.refused
    assert error.code == "too_many_responses"
    assert call.statuses() == ["cancelled", "completed", "completed", "completed"]


def test_a_reply_beside_the_conversation_that_never_comes_ends() -> None:
    never = ScriptedAgent([ScriptedReply(audio_after_s=1e9)])
    call = Call(never, (), 20.0).at(0.5, rq.CreateReply(silent=True, in_conversation=False)).run()
    [finished] = call.line.of(ev.ReplyFinished)
    assert (finished.status, "15 s" in (finished.error or "")) == ("failed", True)


def test_a_reply_that_reached_its_longest_is_incomplete_and_its_tokens_are_told() -> None:
    agent = ScriptedAgent(counts=True)
    call = Call(agent, (), 5.0).at(0.5, rq.AddMessage(Role.USER, "Hello there")).at(0.6, rq.CreateReply())
    call.at(0.4, rq.UpdateSettings(AgentSettings(max_output_tokens=3))).run()
    [finished] = call.line.of(ev.ReplyFinished)
    assert (finished.status, finished.text) == ("incomplete", "All right, here")
    assert finished.usage == ev.Usage(2, 0, 3)


def test_clearing_the_output_stops_what_can_be_heard_and_nothing_else() -> None:
    call = Call(ScriptedAgent(), [(0.5, 1.0)], 6.0).at(0.2, rq.ClearOutput()).at(2.5, rq.ClearOutput()).run()
    assert not call.refused
    assert call.statuses() == ["cancelled"]
    [cut] = call.line.of(ev.ReplyTruncated)
    assert cut.heard_text


def test_words_that_the_listener_did_not_get_are_told_as_such() -> None:
    from duplex.errors import AgentFaultError

    class Hard(ScriptedAgent):
        def open(self, settings: Any, clock: Any, wake: Callable[[], None]) -> Any:
            session = super().open(settings, clock, wake)
            collect = session.collect

            def without_words() -> Sequence[Any]:
                return [
                    FinalTranscript(event.turn_id, "", AgentFaultError("No words came."))
                    if isinstance(event, FinalTranscript)
                    else event
                    for event in collect()
                ]

            session.collect = without_words  # type: ignore[method-assign]
            return session

    call = Call(Hard(), [(0.5, 1.0)], 5.0).run()
    [final] = call.line.of(ev.UserTranscriptFinal)
    assert (final.text, final.error) == ("", "No words came.")
