"""The call-center bot's test file. It needs no models and no telephone, and takes seconds: pytest examples/

The caller is scripted, hearing and speaking are too, time is virtual; the bot is the real one.
"""

import asyncio

import callcenter_bot as bot
import pytest
from spoken_digits import digits_in, spelled

from duplex.config import BotConfig
from duplex.testing import ScriptedAgent, ScriptedStages, budget

FOUND = "Order four, two, seven, one, two blue armchairs, leaves our warehouse tomorrow."
READ_BACK = "That is order four, two, seven, one. Is that right?"


@pytest.fixture
def call(duplex_call):
    return duplex_call.to(bot.callcenter, ScriptedAgent(stages=ScriptedStages()), bots=BotConfig(tool_limit_s=5))


def test_finds_an_order_by_voice(call):
    assert call.hear() == bot.WELCOME
    turn = call.say("four two seven one")
    assert turn.reply_text == READ_BACK
    budget(turn, voice_to_voice_ms=700)
    call.say("yes")
    assert call.hear() == f"{READ_BACK} {bot.ONE_MOMENT} {FOUND} {bot.ANYTHING_ELSE}"
    call.say("no thank you")
    assert call.wait_ended() == "the bot hung up"
    assert call.hear() == bot.GOODBYE
    assert call.counted == {"calls completed": 1, "tools answered": 1}


def test_finds_an_order_by_keys(call):
    call.hear()
    call.press("4271#")
    assert call.hear() == READ_BACK
    call.press("1")
    assert FOUND in call.hear()
    call.press("2")
    assert call.wait_ended() == "the bot hung up"


def test_keys_pressed_at_once_are_kept_and_nobody_has_to_hear_the_questions(call):
    call.press("4271#1")
    heard = call.hear()
    assert READ_BACK not in heard
    assert FOUND in heard


def test_the_welcome_can_be_interrupted(call):
    interruption = call.interrupt("forty-two seventy-one please", after_s=1.5)
    assert interruption.yielded
    assert bot.WELCOME.startswith(interruption.heard_text)
    assert interruption.turn.reply_text == READ_BACK


def test_a_number_may_come_in_pieces(call):
    call.hear()
    assert call.say("four two").reply_text == "four, two, and then?"
    assert call.say("seven one").reply_text == READ_BACK


def test_a_number_may_be_corrected(call):
    call.hear()
    call.say("four two seven two")
    assert call.say("no, four two seven one").reply_text == READ_BACK
    assert call.say("that is not right").reply_text == bot.AGAIN


def test_silence_is_asked_again_and_then_handed_over(call):
    assert call.hear() == bot.WELCOME
    assert call.hear() == bot.NOT_HEARD
    assert call.wait_ended() == "handed over to sales"
    assert call.hear() == bot.PUT_THROUGH
    assert call.handed_over_to == "sales"


@pytest.mark.parametrize("ask", [lambda call: call.say("A person, please"), lambda call: call.press("0#")])
def test_a_person_is_one_word_or_one_key_away(call, ask):
    call.hear()
    ask(call)
    assert call.wait_ended() == "handed over to sales"


def test_an_order_that_does_not_exist(call):
    call.hear()
    call.press("9999#1")
    assert call.hear().endswith("I cannot find an order nine, nine, nine, nine. Please tell me the number again.")
    call.press("9998#1")
    assert "There is no order nine, nine, nine, eight either." in call.hear()
    assert call.wait_ended() == "handed over to sales"


def test_a_database_that_never_answers(call, monkeypatch):
    async def look_up(number):
        await asyncio.Event().wait()

    monkeypatch.setattr(bot, "look_up", look_up)
    call.press("4271#1")
    assert "I am sorry, I cannot look into our orders right now." in call.hear()
    assert call.wait_ended() == "handed over to sales"
    assert call.counted == {"calls completed": 1, "tools late": 1}


def test_a_database_that_is_broken(call, monkeypatch):
    async def look_up(number):
        raise ConnectionError("db-3.internal refused us")

    monkeypatch.setattr(bot, "look_up", look_up)
    call.press("4271#1")
    heard = call.hear()
    assert "I am sorry, I cannot look into our orders right now." in heard
    assert "db-3" not in heard
    assert call.wait_ended() == "handed over to sales"


def test_nobody_to_hand_over_to(call):
    call.line.refuses = "The queue is closed."
    call.press("0#")
    assert bot.NOBODY_THERE in call.hear()
    assert call.wait_ended() == "the bot hung up"


def test_the_caller_hangs_up_while_the_order_is_looked_up(call, monkeypatch):
    stopped = []

    async def look_up(number):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(number)

    monkeypatch.setattr(bot, "look_up", look_up)
    call.press("4271#1")
    call.wait(4)
    assert not stopped
    call.hang_up()
    assert stopped == ["4271"]
    assert call.counted == {"calls call ended": 1}


@pytest.mark.parametrize(
    ("said", "digits"),
    [
        ("four two seven one", "4271"),
        ("Forty-two seventy-one.", "4271"),
        ("It's 4271", "4271"),
        ("four thousand two hundred and seventy-one", "4271"),
        ("double four, um, seven one", "4471"),
        ("twelve oh five", "1205"),
        ("one hundred and five", "105"),
        ("four two seven two, sorry, four two seven one", "4271"),
        ("order four two seven one, I need one thing", "4271"),
        ("for to seven won", "4271"),
        ("I am calling for my wife, to ask about 42", "42"),
        ("two thousand", "2000"),
        ("one hundred thousand", "100000"),
        ("hello", ""),
        ("", ""),
    ],
)
def test_digits_in_what_was_said(said, digits):
    assert digits_in(said) == digits
    assert digits_in(spelled(digits)) == digits
