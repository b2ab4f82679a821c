"""Public fakes: what you need to test a bot, a line or an agent without waiting for real time.

``VirtualTimeLoop``   an asyncio loop whose clock jumps to the next timer instead of sleeping
``LoopbackLine``      a line in memory: say something into it, read what was played and told
``ScriptedUser``      speech-like audio at given times, for a ``LoopbackLine``
``ScriptedAgent``     an agent without models: hears energy, answers from a script, after exact delays
``slowed``            any agent, with milliseconds added to one of its stages
``VirtualCall``       a call to an agent on virtual time: speak, interrupt, and measure what came of it
``BotCall``           a telephone call to a bot: the same, with keys, silence, hanging up and handing over
``PhoneLine``         its line: knows its caller, and can be passed on
``budget``            asserts how long the stages of a turn may take, and shows where the time went
``load_echo_agent``   the entry point ``echo``: answers each turn with its own sound

``docs/testing.md`` shows them at work; the pytest plugin (``duplex/pytest_plugin.py``) hands them to tests.
"""

from __future__ import annotations

from duplex.testing.agent import (
    Answer,
    ScriptedAgent,
    ScriptedCall,
    ScriptedReply,
    ScriptedSession,
    ScriptedStages,
    ScriptedTiming,
    load_echo_agent,
)
from duplex.testing.bots import BotCall, PhoneLine
from duplex.testing.call import VirtualCall
from duplex.testing.delays import DelayMs, Jitter, slowed
from duplex.testing.line import LoopbackLine, ScriptedUser, VirtualTimeLoop, run_virtual, tone
from duplex.testing.turns import Line, Overlap, Turn, UnansweredError, budget

__all__ = [
    "Answer",
    "BotCall",
    "DelayMs",
    "Jitter",
    "Line",
    "LoopbackLine",
    "Overlap",
    "PhoneLine",
    "ScriptedAgent",
    "ScriptedCall",
    "ScriptedReply",
    "ScriptedSession",
    "ScriptedStages",
    "ScriptedTiming",
    "ScriptedUser",
    "Turn",
    "UnansweredError",
    "VirtualCall",
    "VirtualTimeLoop",
    "budget",
    "load_echo_agent",
    "run_virtual",
    "slowed",
    "tone",
]
