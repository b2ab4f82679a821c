"""What a bot is: a function of one call, with the tools it gives the agent. And what a line may have for it.

    async def greeter(call: Call) -> None:
        await call.say("Hello. What is your name?")
        name = await call.listen()
        ...

The call ends when the function returns. With ``@bot(tools=[…])`` the agent may call functions of the bot too.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from duplex.bots.tools import BotTool, tool_of
from duplex.errors import ConfigError

if TYPE_CHECKING:
    from duplex.bots.call import Call

BotFunction = Callable[["Call"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Bot:
    """``tools``: what the agent may call while it answers by itself. ``instructions``: its system prompt meanwhile."""

    function: BotFunction
    name: str
    tools: tuple[BotTool, ...] = ()
    instructions: str | None = None

    def __call__(self, call: Call) -> Awaitable[None]:
        return self.function(call)


def bot(*, tools: Sequence[Callable[..., Any]] = (), instructions: str | None = None) -> Callable[[BotFunction], Bot]:
    """Decorates a bot that gives the agent tools, or other instructions than the server's.

    ``tools``: ``async`` functions with type hints (:func:`duplex.bots.tools.tool_of`). Raises ``ConfigError``.
    """
    known = tuple(tool_of(function) for function in tools)
    names = [each.name for each in known]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two tools are called {', '.join(sorted(twice))}. Give each a name of its own.")

    def decorate(function: BotFunction) -> Bot:
        plain = as_bot(function)
        return Bot(plain.function, plain.name, known, instructions)

    return decorate


def as_bot(candidate: object) -> Bot:
    """A :class:`Bot` as it is, or an ``async`` function of one argument as one. Raises ``ConfigError``."""
    if isinstance(candidate, Bot):
        return candidate
    name = getattr(candidate, "__name__", repr(candidate))
    if not inspect.iscoroutinefunction(candidate):
        raise ConfigError(f"{name} is no bot: a bot is written 'async def {name}(call): …'.")
    try:
        inspect.signature(candidate).bind(None)
    except TypeError as error:
        raise ConfigError(f"The bot {name} has to take one argument, the call ({error}).") from error
    return Bot(candidate, name)


@runtime_checkable
class Transferring(Protocol):
    """What a line has too whose door can pass the call on to somebody else."""

    async def transfer(self, to: str) -> None:
        """Asks the door to pass the call on to ``to`` (a name, an extension, an address: the door says which).

        Returns once the door has taken it over; the session ends then. Raises ``HandOverError``.
        """
        ...


@runtime_checkable
class KnowsCaller(Protocol):
    """What a line has too whose door knows who is calling."""

    @property
    def facts(self) -> Mapping[str, str]:
        """By name, as far as known: ``caller`` and ``called`` (numbers or addresses), and the door's own."""
        ...
