"""A bot's test file to copy. It needs no models and no microphone, and takes a second: pytest examples/test_bot.py

Hearing and speaking are scripted, with the delays given here; thinking is the bot's own. Time is virtual, so a slow
machine changes no figure. To guard the latency of every stage against what it is today, make a baseline, commit it,
and let CI compare (the second line; docs/testing.md has the whole recipe):

pytest examples/test_bot.py --duplex-baseline bot.json --duplex-update-baseline
pytest examples/test_bot.py --duplex-baseline bot.json
"""

import pytest
from bot import MENU, answer

from duplex.testing import Jitter, ScriptedAgent, ScriptedStages, ScriptedUser, budget

STAGES = ScriptedStages(listener_ms=60, thinker_ms=Jitter(180, 15, seed=1), talker_ms=70)


@pytest.fixture
def call(duplex_call):
    return duplex_call(ScriptedAgent(answer=answer, stages=STAGES))


def test_answers_within_its_budget(call):
    turn = call.say("What is on the menu?")
    assert turn.answered
    assert turn.reply_text == MENU
    budget(turn, voice_to_voice_ms=600, first_packet_ms=200, thinker_ms=300)


def test_gives_way_to_an_interruption(call):
    interruption = call.interrupt("Sorry, I have to go", after_s=1.5, question="What is on the menu?")
    assert interruption.yielded
    assert interruption.stop_ms <= 350


def test_goes_on_after_an_encouragement(call):
    encouragement = call.backchannel("uh-huh", after_s=1.5, question="What is on the menu?")
    assert not encouragement.yielded
    assert encouragement.resume_gap_ms <= 600
    assert call.heard_text == MENU


def test_remembers_only_what_was_heard(call):
    interruption = call.interrupt("Wait, please go on", after_s=1.5, question="What is on the menu?")
    heard = interruption.heard_text
    assert heard
    assert MENU.startswith(heard)
    assert len(heard.split()) <= 6  # 1.5 s at 0.3 s a word, and one more at most
    assert interruption.turn.reply_text.removeprefix("As I said, ") == MENU.removeprefix(heard).strip()


def test_lets_the_guest_pause_in_the_middle(call):
    halting = ScriptedUser([(0.0, 0.6), (0.8, 0.9)]).samples(1.7)  # "What is … on the menu?"
    turn = call.say("What is on the menu?", sound=halting)
    assert turn.answered
    assert not turn.took_over


def test_twenty_turns_for_the_baseline(call):
    turns = [call.say("Anything else?") for _ in range(20)]
    budget(turns, voice_to_voice_ms=600)
