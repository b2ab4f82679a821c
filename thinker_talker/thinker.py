"""The thinker's contract: messages in, a reply streamed out, cancelled at any moment.

A :class:`Thinker` is an engine loaded once per process. Each conversation opens a
:class:`ThinkerSession` on it, which keeps that conversation's prompt cache warm. Work happens on the
engine's own threads; every method here returns at once unless its docstring says otherwise.

Theory of operation. A reply is one :class:`Thought`. The engine pushes text through it and the
thought passes it on to the sink only while it is live, under one lock. So ``cancel()`` is a line in
time: what the sink got before it returned is all the sink will ever get, even though the engine may
need up to one more token to notice. Sinks are called from the engine's thread and must not block
(hand over with ``loop.call_soon_threadsafe``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from duplex.agent import Tool, ToolChoice
from duplex.errors import DuplexError
from duplex.frames import Image

from .expectation import EndExpectation

Role = Literal["system", "user", "assistant", "tool"]
# "stop": the model ended its reply; "calls": it ended with tool calls; "length": max_tokens cut it;
# "empty": it ended without a word and without a call.
FinishReason = Literal["stop", "calls", "length", "empty"]

DEFAULT_MAX_TOKENS = 120
AS_IT_LIKES = ToolChoice()


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that was asked for. ``arguments``: a JSON object, as text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation.

    ``calls``: the tools an assistant's message asks for, besides its ``text``. A message of the role "tool" is the
    answer to the call ``call_id``, which stands before it.
    """

    role: Role
    text: str
    images: tuple[Image, ...] = ()
    calls: tuple[Call, ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ThinkRequest:
    """What to answer, and how.

    ``temperature`` and ``seed`` of None leave the engine's own default. ``stop`` strings end the reply
    and are not part of it. ``tools``: what the reply may ask for, checked before (:mod:`.tool_schema`).
    """

    messages: tuple[Message, ...]
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AS_IT_LIKES

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that this reply may call: one if it must be that one, none if it must not."""
        if self.tool_choice.mode == "none":
            return ()
        named = self.tool_choice.name
        return tuple(t for t in self.tools if named is None or t.name == named)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one reply; zeros where an endpoint does not report them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompt_tokens, found in the prompt cache
    reply_tokens: int = 0


class ThinkSink(Protocol):
    """Receives one reply, on the engine's thread: any number of texts and calls, then one done or one error.

    A call begins, gets its arguments in pieces and ends, before the next one begins. One that does not end was given
    up: the text that follows, or the error, says why.
    """

    def on_text(self, delta: str) -> None: ...

    def on_call_began(self, call_id: str, name: str) -> None: ...

    def on_call_arguments(self, call_id: str, delta: str) -> None: ...

    def on_call_end(self, call_id: str, arguments: str) -> None:
        """``arguments``: all of them, a JSON object that has what the tool's schema requires."""
        ...

    def on_done(self, reason: FinishReason, usage: Usage) -> None: ...

    def on_error(self, error: DuplexError) -> None: ...


class Thought:
    """A reply under way. Engines write to it, callers cancel it or wait for it; any thread."""

    def __init__(self, sink: ThinkSink) -> None:
        self._sink = sink
        # Re-entrant, so that a sink may cancel from inside its own callback.
        self._lock = threading.RLock()
        self._live = True
        self._cancelled = False
        self._spoke = False
        self._over = threading.Event()
        self._on_cancel: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Stop the reply. After this returns the sink receives nothing more. Idempotent."""
        with self._lock:
            if not self._live:
                return
            self._live = False
            self._cancelled = True
            hook = self._on_cancel
        self._over.set()
        if hook is not None:
            hook()

    @property
    def live(self) -> bool:
        """False once the reply was cancelled, done, or failed."""
        return self._live

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Block until done, failed or cancelled. For tests, benchmarks and scripts."""
        return self._over.wait(timeout_s)

    # -- the engine's side ---------------------------------------------------------------------

    def set_cancel_hook(self, hook: Callable[[], object]) -> None:
        """Call ``hook`` on cancel (at once, if it has already happened). It must not block."""
        with self._lock:
            self._on_cancel = hook
            late = self._cancelled
        if late:
            hook()

    def text(self, delta: str) -> bool:
        """Pass on ``delta``; returns False when the engine should stop."""
        with self._lock:
            if self._live and delta:
                if delta.strip():
                    self._spoke = True
                self._sink.on_text(delta)
            return self._live

    def call_began(self, call_id: str, name: str) -> bool:
        with self._lock:
            if self._live:
                self._sink.on_call_began(call_id, name)
            return self._live

    def call_arguments(self, call_id: str, delta: str) -> bool:
        with self._lock:
            if self._live and delta:
                self._sink.on_call_arguments(call_id, delta)
            return self._live

    def call_end(self, call_id: str, arguments: str) -> bool:
        with self._lock:
            if self._live:
                self._spoke = True
                self._sink.on_call_end(call_id, arguments)
            return self._live

    def done(self, reason: FinishReason, usage: Usage) -> None:
        """The reply is complete. A reply without a visible character or a call is reported as "empty"."""
        with self._lock:
            if not self._live:
                return
            self._live = False
            self._sink.on_done(reason if self._spoke else "empty", usage)
        self._over.set()

    def fail(self, error: DuplexError) -> None:
        with self._lock:
            if not self._live:
                return
            self._live = False
            self._sink.on_error(error)
        self._over.set()


class ThinkerSession(Protocol):
    """One conversation's place in a thinker. One thought at a time: a new one cancels the last."""

    def think(self, request: ThinkRequest, sink: ThinkSink) -> Thought:
        """Start a reply. Errors arrive at the sink, never from here."""
        ...

    def prefill(self, messages: Sequence[Message], tools: tuple[Tool, ...] = ()) -> None:
        """Warm the prompt cache with what is known so far (system prompt, history, the user's words
        up to now), so that ``think`` only reads what was added. Best effort; never disturbs a
        thought; a later prefill replaces an unfinished one. ``tools``: those of the next request."""
        ...

    def close(self) -> None:
        """Cancel what runs and give the place back. Idempotent."""
        ...


class Thinker(Protocol):
    """An engine, loaded and shared."""

    @property
    def takes_images(self) -> bool: ...

    @property
    def calls_tools(self) -> bool: ...

    @property
    def expectation(self) -> EndExpectation | None:
        """Whether a sentence is over, asked of the same model; None if it cannot be asked that."""
        ...

    def open(self) -> ThinkerSession:
        """A place for one more conversation, or AgentFullError."""
        ...

    def open_beside(self) -> ThinkerSession:
        """A place for replies beside somebody's conversation. It is shared: slower, and never full."""
        ...

    def warm_up(self) -> None:
        """Block until the engine has answered once, so that the first caller does not pay for it."""
        ...

    def close(self) -> None:
        """Cancel everything and free the engine. Blocks until its threads have ended."""
        ...


@dataclass
class CollectingSink:
    """A sink that keeps everything; for scripts, tests and benchmarks."""

    texts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)  # those that ended
    pieces: list[tuple[str, str]] = field(default_factory=list)  # (call_id, name or piece of the arguments)
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    error: DuplexError | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def on_text(self, delta: str) -> None:
        self.texts.append(delta)

    def on_call_began(self, call_id: str, name: str) -> None:
        self.pieces.append((call_id, name))

    def on_call_arguments(self, call_id: str, delta: str) -> None:
        self.pieces.append((call_id, delta))

    def on_call_end(self, call_id: str, arguments: str) -> None:
        name = next(name for known, name in self.pieces if known == call_id)
        self.calls.append(Call(call_id, name, arguments))

    def on_done(self, reason: FinishReason, usage: Usage) -> None:
        self.reason, self.usage = reason, usage

    def on_error(self, error: DuplexError) -> None:
        self.error = error


def estimate_tokens(message: Message) -> int:
    """A token count that errs high for European languages: a token per 3 UTF-8 bytes plus the
    template's 6 around each message (SmolLM2 averages 4.3 bytes a token on English)."""
    calls = sum(len(call.name) + len(call.arguments.encode()) + 24 for call in message.calls)
    return 6 + (len(message.text.encode()) + calls + 2) // 3


def fit_messages(
    messages: Sequence[Message],
    budget_tokens: int,
    *,
    count: Callable[[Message], int] = estimate_tokens,
) -> tuple[Message, ...]:
    """The messages that fit ``budget_tokens``: the system messages that they begin with stay, the oldest turns go.

    What is dropped changes the start of the prompt, and everything behind it has to be read again. So turns go in
    *chapters*, each a third of the budget and counted from the conversation's beginning, and whether one has to go is
    decided by what is settled: the history, and room for a turn of the user's (a chapter's half), not by the words of
    the turn at hand. A prompt that is read ahead then begins as the reply's does. The last message always stays (a
    tool's answer with its question), and a kept history starts with a user turn.
    """
    at = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    system, turns = messages[:at], messages[at:]
    if not turns:
        return tuple(system)
    sizes, newest = [count(m) for m in turns], _newest(turns)
    chapter = max(1, budget_tokens // 3)
    room = budget_tokens - sum(map(count, system)) - max(chapter // 2, sum(sizes[newest:]))
    starts = _chapters(turns[:newest], sizes, chapter)
    starts += [i for i in range(starts[-1] + 1, newest) if turns[i].role == "user"]  # if not even the last one fits
    left = sum(sizes[:newest])
    for before, start in pairwise([0, *starts]):
        left -= sum(sizes[before:start])
        if left <= room:
            return (*system, *turns[start:])
    return (*system, *turns[min(newest, len(turns) - 1) :])


def _chapters(turns: Sequence[Message], sizes: Sequence[int], chapter: int) -> list[int]:
    """Where the chapters of a history begin."""
    starts, size = [0], 0
    for index, message in enumerate(turns):
        if size >= chapter and message.role == "user":
            starts.append(index)
            size = 0
        size += sizes[index]
    return starts


def _newest(turns: Sequence[Message]) -> int:
    """Where the turn at hand begins: its user's words, or the question that a tool answers. Past the end: nobody asks
    anything yet."""
    if turns[-1].role not in ("user", "tool"):
        return len(turns)
    return max((i for i, m in enumerate(turns) if m.role == "user"), default=0)
