"""Bots: what a call does for them, and that one which misbehaves harms nobody."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.bots import Answer, Bots, Call, CallEndedError, HandOverError, Said
from duplex.bots.hearing import Hearing
from duplex.clock import VirtualClock
from duplex.config import BotConfig, SessionConfig
from duplex.conversation import Message, Role
from duplex.errors import AgentFaultError, UnsupportedError
from duplex.hub import SessionHub
from duplex.metrics import Metrics
from duplex.requests import CreateReply
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, ScriptedTiming, ScriptedUser, run_virtual
from duplex.testing.bots import BotCall

HELLO = "Hello. What is your name?"
LIMITS = BotConfig(hang_limit_s=12, apology="I am sorry.", end_limit_s=0.5)


class Told:
    """Collects what a bot learns."""

    def __init__(self, do: Callable[[Call, list[object]], Awaitable[None]]) -> None:
        self.learnt: list[object] = []
        self._do = do

    async def __call__(self, call: Call) -> None:
        await self._do(call, self.learnt)


def bot_call(do: Callable[[Call, list[object]], Awaitable[None]], **options: object) -> tuple[BotCall, list[object]]:
    told = Told(do)

    async def bot(call: Call) -> None:
        await told(call)

    options.setdefault("bots", LIMITS)
    return BotCall(bot, **options), told.learnt  # type: ignore[arg-type]


# --- talking and listening ---------------------------------------------------------------------------


async def greeter(call: Call, learnt: list[object]) -> None:
    learnt.append(await call.say(HELLO))
    answer = await call.listen()
    learnt.append(answer)
    await call.say(f"Goodbye, {answer.text if answer else 'then'}.")


def test_a_bot_talks_word_for_word_and_hangs_up_when_it_is_done() -> None:
    call, learnt = bot_call(greeter)
    with call:
        assert call.hear() == HELLO
        turn = call.say("Ada")
        assert turn.reply_text == "Goodbye, Ada."
        assert call.wait_ended() == "the bot hung up"
        assert learnt == [Said(HELLO, HELLO), Answer("Ada")]
        assert [str(line) for line in call.transcript] == [
            f"assistant: {HELLO}",
            "user: Ada",
            "assistant: Goodbye, Ada.",
        ]
        assert call.counted == {"calls completed": 1}


def test_what_a_bot_says_is_the_reply_to_the_turn_and_its_latency_is_traced() -> None:
    call, _ = bot_call(greeter)
    with call:
        call.hear()
        turn = call.say("Ada")
        assert turn.answered
        assert turn.end_of_turn_ms == 300  # nobody waits for a reply before the turn is over
        assert turn.first_packet_ms <= 120
        started = [e for e in call.events if isinstance(e, ev.ReplyStarted)]
        assert len(started) == 2


def test_the_agent_answers_nothing_by_itself() -> None:
    async def deaf(call: Call, learnt: list[object]) -> None:
        await call.wait(10)

    call, _ = bot_call(deaf)
    with call:
        call.play(ScriptedUser([(0.0, 1.0)]), 8.0)
        assert not call.line.last_audible_ms


def test_an_interruption_is_told_and_what_was_said_is_the_answer() -> None:
    async def interrupted(call: Call, learnt: list[object]) -> None:
        learnt += [await call.say("one two three four five six seven eight nine ten"), await call.ask("Not asked.")]

    call, learnt = bot_call(interrupted)
    with call:
        overlap = call.interrupt("I know that already", after_s=1.2)
        assert overlap.yielded
        call.wait_ended()
    said, answer = learnt
    assert isinstance(said, Said)
    assert said.interrupted
    assert said.heard == "one two three four"
    assert answer == Answer("I know that already")
    assert "Not asked" not in call.heard_text


def test_what_was_said_before_a_question_is_no_answer_to_it() -> None:
    async def busy(call: Call, learnt: list[object]) -> None:
        await call.wait(3)
        await call.say("Your order has been sent.")
        learnt.append(await call.ask("Another one?"))

    call, learnt = bot_call(busy)
    with call:
        call.play(ScriptedUser([(0.0, 0.6)]), 3.0)
        assert call.hear() == "Your order has been sent. Another one?"
        call.say("No")
        call.wait_ended()
    assert learnt == [Answer("No")]


def test_silence_is_told_and_a_caller_who_speaks_has_time() -> None:
    async def patient(call: Call, learnt: list[object]) -> None:
        learnt.append(await call.listen(2.0))
        learnt.append(await call.listen(2.0))

    call, learnt = bot_call(patient)
    with call:
        call.wait(3.5)
        assert learnt == [None]
        call.play(ScriptedUser([(0.0, 6.0)]), 7.0)
    assert learnt == [None, Answer("(speech)")]


def test_a_caller_who_goes_on_is_heard_whole() -> None:
    async def hasty(call: Call, learnt: list[object]) -> None:
        learnt.append(await call.listen())
        learnt.append(await call.say("What a pity."))
        learnt.append(await call.listen())

    agent = ScriptedAgent([ScriptedReply(audio_after_s=0.5)])
    call, learnt = bot_call(hasty, agent=agent)
    with call:
        call.play(ScriptedUser([(0.0, 0.6), (1.1, 0.6)]), 4.0)  # the turn is over at 0.9 s, the reply would come at 1.4
        assert [type(e).__name__ for e in call.events if isinstance(e, ev.UserTurnReopened)] == ["UserTurnReopened"]
        call.wait_ended()
    assert learnt == [Answer("(speech)"), Said("What a pity.", "", interrupted=True), Answer("(speech)")]
    assert call.heard_text == ""


def test_words_that_turn_out_to_be_nothing_give_the_floor_back() -> None:
    class Mishearing(ScriptedAgent):
        def open(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            session = super().open(*args, **kwargs)
            collect = session.collect

            def without_words():  # type: ignore[no-untyped-def]
                from dataclasses import replace

                from duplex.agent import FinalTranscript

                return [replace(e, text="") if isinstance(e, FinalTranscript) else e for e in collect()]

            session.collect = without_words  # type: ignore[method-assign]
            return session

    async def listener(call: Call, learnt: list[object]) -> None:
        learnt.append(await call.listen(4.0))

    call, learnt = bot_call(listener, agent=Mishearing())
    with call:
        call.play(ScriptedUser([(0.0, 0.5)]), 2.0)
        assert call.session.machine.floor.value == "listening"
        call.wait_ended()
    assert learnt == [None]
    assert not call.errors


def test_a_bot_may_not_listen_in_a_native_agents_stead() -> None:
    from dataclasses import replace

    class Native(ScriptedAgent):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return replace(super().info, native=True)

    async def listener(call: Call, learnt: list[object]) -> None:
        with pytest.raises(UnsupportedError, match="converse"):
            await call.listen()
        learnt.append("refused")

    call, learnt = bot_call(listener, agent=Native())
    with call:
        call.wait_ended()
    assert learnt == ["refused"]


# --- keys --------------------------------------------------------------------------------------------


async def types(call: Call, learnt: list[object]) -> None:
    learnt.append(await call.ask("Please type your number and press the hash key when you are done."))
    learnt.append(await call.ask("Is that right?", max_keys=1))
    learnt.append(await call.listen(2.0))


@pytest.mark.parametrize(
    ("presses", "expected"),
    [
        ([("4271#", 0.2)], [Answer(keys="4271")]),
        ([("427", 0.2), ("1", 4.0)], [Answer(keys="427"), Answer(keys="1")]),  # a long pause ends it, too
        ([("#", 0.2)], [Answer(keys="#")]),
        ([("1#1#9#", 0.2)], [Answer(keys="1"), Answer(keys="1"), Answer(keys="9")]),
        ([("12345678901234567890123456789012", 0.05)], [Answer(keys="12345678901234567890123456789012")]),
    ],
)
def test_keys(presses: list[tuple[str, float]], expected: list[Answer]) -> None:
    call, learnt = bot_call(types)
    with call:
        for keys, pause_s in presses:
            call.wait(pause_s)
            call.press(keys, every_s=0.2)
        call.wait_ended()
    assert [answer for answer in learnt if answer is not None] == expected


def test_a_key_stops_what_is_being_said() -> None:
    call, _ = bot_call(types)
    with call:
        call.wait(1.5)
        assert call.line.last_audible_ms > 1000
        call.press("4")
        spoken_ms = call.line.last_audible_ms
        call.wait(2.0)
        assert call.line.last_audible_ms == spoken_ms


def test_hearing_is_bounded_and_counts_what_it_lost() -> None:
    hearing, at = Hearing(limit=3), ev.At(0, 0.0)
    for key in "12345":
        hearing.take(ev.KeyPressed(at, key))
    assert [hearing.next_key() for _ in range(4)] == ["3", "4", "5", None]
    assert hearing.dropped == 2


def test_words_of_a_reopened_turn_are_taken_back() -> None:
    hearing, at = Hearing(), ev.At(0, 0.0)
    hearing.take(ev.UserTurnCommitted(at, "item_1", None))
    assert hearing.awaiting_words
    hearing.take(ev.UserTranscriptFinal(at, "item_1", "four two"))
    assert hearing
    assert not hearing.awaiting_words
    hearing.take(ev.UserTurnReopened(at, "item_1"))
    hearing.take(ev.UserTranscriptFinal(at, "item_1", "four two"))  # late, of a turn that is open again
    assert not hearing


# --- bots that misbehave -----------------------------------------------------------------------------


async def raises(call: Call, learnt: list[object]) -> None:
    await call.say("Hello.")
    raise ValueError("password=1234")


async def hangs(call: Call, learnt: list[object]) -> None:
    await call.say("Hello.")
    await asyncio.Event().wait()


async def exits(call: Call, learnt: list[object]) -> None:
    await call.say("Hello.")
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("bot", "message", "counted"),
    [
        (raises, "The bot 'bot' failed: ValueError.", "calls failed"),
        (hangs, "The bot 'bot' asked nothing of its call for 12 s.", "calls hung"),
        (exits, "The bot 'bot' failed: it asked the process to exit (3).", "calls failed"),
    ],
)
def test_a_bot_that_fails_is_told_counted_and_apologised_for(
    bot: Callable[[Call, list[object]], Awaitable[None]], message: str, counted: str
) -> None:
    call, _ = bot_call(bot)
    with call:
        assert call.wait_ended() == "the bot failed"
        assert call.errors == (message,)
        assert [e.code for e in call.line.of(ev.ErrorRaised)] == ["BotError"]
        assert call.heard_text == "Hello. I am sorry."
        assert call.counted == {counted: 1}


def test_a_bot_that_listens_for_long_has_not_failed() -> None:
    async def patient(call: Call, learnt: list[object]) -> None:
        learnt.append(await call.listen(timeout_s=60))

    call, learnt = bot_call(patient)
    with call:
        call.wait_ended(timeout_s=70)
    assert learnt == [None]
    assert call.counted == {"calls completed": 1}


def test_an_apology_that_cannot_be_said_does_not_keep_the_call() -> None:
    from duplex.agent import BeginReply, ReplyEnd

    class Mute(ScriptedAgent):
        def open(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            session = super().open(*args, **kwargs)
            command = session.command

            def refuse(asked):  # type: ignore[no-untyped-def]
                if isinstance(asked, BeginReply):
                    session._out.append(ReplyEnd(asked.reply_id, UnsupportedError("I cannot speak.")))
                else:
                    command(asked)

            session.command = refuse  # type: ignore[method-assign]
            return session

    async def speaker(call: Call, learnt: list[object]) -> None:
        try:
            await call.say("Hello.")
        except AgentFaultError as error:
            learnt.append(str(error))
            raise

    call, learnt = bot_call(speaker, agent=Mute())
    with call:
        assert call.wait_ended() == "the bot failed"
    assert learnt == ["“Hello.” could not be said: I cannot speak."]


def test_one_bot_that_fails_does_not_touch_another_call() -> None:
    async def good(call: Call) -> None:
        await call.say(HELLO)
        await call.listen(timeout_s=20)
        await call.say("Goodbye.")

    async def bad(call: Call) -> None:
        raise RuntimeError("no")

    async def main() -> tuple[str, str]:
        bots, clock = Bots(LIMITS, Metrics()), VirtualClock()
        picked = iter([good, bad])

        def make(**options):  # type: ignore[no-untyped-def]
            from duplex.bots import as_bot

            return bots.session(bot=as_bot(next(picked)), **options)

        lines = LoopbackLine(), LoopbackLine()
        async with SessionHub(ScriptedAgent(), clock, SessionConfig(), max_sessions=2, make_session=make) as hub:
            for line in lines:
                hub.open(line, AgentSettings())
            await clock.sleep_until(clock.now() + 40)
            assert hub.live == 0
        said = tuple(" ".join(e.text for e in line.of(ev.ReplyFinished)) for line in lines)
        return said[0], said[1]

    assert run_virtual(main()) == (f"{HELLO} Goodbye.", "I am sorry.")


# --- the end -----------------------------------------------------------------------------------------


def test_a_caller_who_hangs_up_ends_the_bot_which_may_tidy_up() -> None:
    async def tidy(call: Call, learnt: list[object]) -> None:
        try:
            await call.say("A long story. " * 40)
        except CallEndedError as error:
            learnt.append(str(error))
            await asyncio.sleep(0.3)
            learnt.append("tidy")
            raise

    call, learnt = bot_call(tidy)
    with call:
        call.wait(2.0)
        call.hang_up()
        assert learnt == ["The call is over: the line closed.", "tidy"]
        assert call.counted == {"calls call ended": 1}


def test_a_bot_that_does_not_end_with_its_call_is_cut_off() -> None:
    async def endless(call: Call, learnt: list[object]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            learnt.append(str(error))
            raise

    call, learnt = bot_call(endless)
    with call:
        began_ms = call.now_ms
        call.hang_up()
        assert learnt == ["the call is over"]
        assert call.counted == {"calls cut off": 1}
        assert call._clock.now() * 1000 - began_ms < 1500


def test_not_even_a_bot_that_cannot_be_cancelled_keeps_the_session() -> None:
    async def stubborn(call: Call, learnt: list[object]) -> None:
        while not learnt:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    call, learnt = bot_call(stubborn)
    with call:
        call.hang_up()
        assert call.counted == {"calls cut off": 1, "calls stuck": 1}
        learnt.append("let it go, for the sake of this test")
        call._run(_cancel_all())


async def _cancel_all() -> None:
    here = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not here]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def test_nothing_is_left_of_fifty_calls() -> None:
    kept = weakref.WeakSet[object]()

    async def main() -> None:
        async def bot(call: Call) -> None:
            kept.update((call, call.session))
            await call.say(HELLO)
            await call.ask("And now?")

        from duplex.bots import as_bot

        bots, clock = Bots(LIMITS, Metrics()), VirtualClock()

        def make(**options):  # type: ignore[no-untyped-def]
            return bots.session(bot=as_bot(bot), **options)

        async with SessionHub(ScriptedAgent(), clock, SessionConfig(), max_sessions=50, make_session=make) as hub:
            tasks = len(asyncio.all_tasks())
            lines = [LoopbackLine() for _ in range(50)]
            for line in lines:
                hub.open(line, AgentSettings())
            await clock.sleep_until(clock.now() + 0.5)
            assert len(kept) == 100
            for line in lines:
                line.closed = True
            await clock.sleep_until(clock.now() + 0.1)
            assert hub.live == 0
            assert len(asyncio.all_tasks()) == tasks
            hub.agent.sessions.clear()  # type: ignore[attr-defined]
        del lines, line
        gc.collect()
        assert not len(kept)

    run_virtual(main())


def test_hang_up_says_its_last_words_and_the_bot_goes_on_after_it() -> None:
    async def leaver(call: Call, learnt: list[object]) -> None:
        await call.say("Goodbye.")
        await call.hang_up()
        learnt.append(call.ended)
        with pytest.raises(CallEndedError):
            await call.say("Still there?")
        learnt.append([item.text for item in call.transcript if isinstance(item, Message)])

    call, learnt = bot_call(leaver)
    with call:
        assert call.wait_ended() == "the bot hung up"
        assert learnt == ["the bot hung up", ["Goodbye."]]


# --- handing over ------------------------------------------------------------------------------------


def test_a_line_that_can_passes_the_call_on() -> None:
    async def passes_on(call: Call, learnt: list[object]) -> None:
        learnt.append(call.facts["caller"])
        await call.say("I am putting you through.")
        await call.hand_over("sales")

    call, learnt = bot_call(passes_on, facts={"caller": "+15550100"})
    with call:
        assert call.wait_ended() == "handed over to sales"
        assert call.handed_over_to == "sales"
        assert call.heard_text == "I am putting you through."
        assert learnt == ["+15550100"]


def test_a_line_that_refuses_leaves_the_bot_its_call() -> None:
    async def passes_on(call: Call, learnt: list[object]) -> None:
        await call.wait(0.5)
        with pytest.raises(HandOverError, match="closed"):
            await call.hand_over("sales")
        learnt.append(await call.say("Nobody is there."))

    call, learnt = bot_call(passes_on)
    with call:
        call.line.refuses = "The queue is closed."
        assert call.wait_ended() == "the bot hung up"
        assert learnt == [Said("Nobody is there.", "Nobody is there.")]


HANDED: list[tuple[str, str]] = []


async def by_hook(call: Call, to: str) -> None:
    HANDED.append((call.id, to))


async def never(call: Call, to: str) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("hand_over", "why"),
    [(None, "bot.hand_over"), ("test_bots:never", "took longer than 3 s"), ("test_bots:by_hook", None)],
)
def test_without_one_the_configured_way_is_taken(hand_over: str | None, why: str | None) -> None:
    HANDED.clear()
    learnt: list[str] = []

    async def passes_on(call: Call) -> None:
        try:
            await call.hand_over("sales")
        except HandOverError as error:
            learnt.append(str(error))

    async def main() -> str | None:
        from duplex.bots import as_bot

        bots, clock = Bots(BotConfig(hand_over=hand_over, hand_over_limit_s=3), Metrics()), VirtualClock()
        line = LoopbackLine()
        session = bots.session(
            session_id="sess_a",
            line=line,
            agent=ScriptedAgent(),
            clock=clock,
            config=SessionConfig(),
            settings=AgentSettings(),
            metrics=Metrics(),
            bot=as_bot(passes_on),
        )
        await session.run()
        return line.closed_because

    ended = run_virtual(main())
    if why is None:
        assert ended == "handed over to sales"
        assert HANDED == [("sess_a", "sales")]
    else:
        assert ended == "the bot hung up"
        assert why in learnt[0]


# --- below the surface -------------------------------------------------------------------------------


def test_a_bot_may_watch_everything_and_ask_for_anything() -> None:
    async def watcher(call: Call, learnt: list[object]) -> None:
        call.request(CreateReply(say="By the back door."))
        async for event in call.events():
            if isinstance(event, ev.ReplyFinished):
                learnt.append(event.text)
                return

    call, learnt = bot_call(watcher)
    with call:
        call.wait_ended()
    assert learnt == ["By the back door."]
    assert call.line.of(ev.SessionClosed)


def test_a_bot_that_does_not_read_its_events_loses_the_oldest_and_it_is_counted() -> None:
    async def slow(call: Call, learnt: list[object]) -> None:
        events = call.events()
        learnt.append(type(await anext(events)).__name__)
        await call.wait(1.0)
        for n in range(600):
            call.session._line.emit(ev.KeyPressed(ev.At(n, 0.0), str(n % 10)))
        rest = [await anext(events) for _ in range(512)]
        learnt.append(rest[-1].at.pts)
        await events.aclose()  # type: ignore[attr-defined]

    call, learnt = bot_call(slow)
    with call:
        call.press("1")
        call.wait_ended()
        dropped = call.metrics.queue_drops
        assert dropped.labels("bot_events")._value.get() >= 88
        assert dropped.labels("bot_heard")._value.get() >= 500
    assert learnt[1] == 599


def test_the_conversation_is_the_bots_to_read() -> None:
    async def reader(call: Call, learnt: list[object]) -> None:
        await call.ask("Who are you?")
        learnt += [(item.role, item.text) for item in call.transcript if isinstance(item, Message)]

    call, learnt = bot_call(reader, agent=ScriptedAgent(timing=ScriptedTiming()))
    with call:
        call.hear()
        call.say("Ada")
        call.wait_ended()
    assert learnt == [(Role.ASSISTANT, "Who are you?"), (Role.USER, "Ada")]
