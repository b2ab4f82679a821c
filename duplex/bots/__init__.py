"""Bots: programs that answer calls from inside the server, where the caller has no program of their own.

``Call``            what a bot is given: say, listen, ask, run a tool, let the agent talk, hand over, hang up
``Answer, Said``    what the caller said or typed; how much of ours they heard
``bot``             decorates a bot that gives the agent tools
``Bots``            makes sessions that bots answer

A bot is ``async def f(call: Call) -> None``. ``docs/bots.md`` is the manual, ``examples/callcenter_bot.py`` a full one.
"""

from __future__ import annotations

from duplex.bots.call import Answer, Call, Said
from duplex.bots.contract import Bot, KnowsCaller, Transferring, as_bot, bot
from duplex.bots.host import Bots
from duplex.bots.load import load_bot
from duplex.bots.tools import tool_of
from duplex.errors import BotError, CallEndedError, HandOverError, ToolError

__all__ = [
    "Answer",
    "Bot",
    "BotError",
    "Bots",
    "Call",
    "CallEndedError",
    "HandOverError",
    "KnowsCaller",
    "Said",
    "ToolError",
    "Transferring",
    "as_bot",
    "bot",
    "load_bot",
    "tool_of",
]
