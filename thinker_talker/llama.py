"""A GGUF language model in this process, through llama.cpp (the ``xllamacpp`` library).

Theory of operation. ``xllamacpp.Server`` is llama.cpp's server core with in-process calls: the call
blocks its thread, streams JSON chunks into a callback, and stops when the callback returns True.

* **Threads.** Each session owns one thread and one llama.cpp slot. The thread has room for one job
  under way and one waiting; a newer job replaces the waiting one. llama.cpp batches the slots.
* **Prompt cache.** A slot keeps the keys and values of its last prompt and reply. A request pinned to
  it (``id_slot``) only computes what differs after the longest common prefix. So a reply that is
  cancelled and asked again costs its own tokens, not the history's. ``prefill`` is a request for
  zero tokens.
* **Cancellation.** Text stops at once (see :class:`Thought`). The engine notices at the next token
  (~10 ms), or while it still reads the prompt, at the next batch: the batch is kept small
  (``_BATCH_TOKENS``) and progress reports are asked for, so that there is a callback per batch.

How the core is started, and kept to itself, is in :mod:`.llama_server`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from duplex.agent import Tool
from duplex.errors import (
    AgentFaultError,
    AgentFullError,
    ConfigError,
    WeightsMissingError,
)

from . import tool_small as small
from .expectation import LlamaEndExpectation
from .llama_place import Place, RefusedError, TooLongError, as_sent
from .llama_server import start_server
from .llama_tools import SmallReply, knows_tools
from .repetition import unlooped
from .thinker import (
    DEFAULT_MAX_TOKENS,
    CollectingSink,
    Message,
    ThinkRequest,
    ThinkSink,
    Thought,
    estimate_tokens,
    fit_messages,
)

log = logging.getLogger("duplex.thinker")

_CONTROL_STOPS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<|eot_id|>")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How words are drawn when a request does not say. See the table at the end of this module."""

    temperature: float = 0.0
    top_p: float = 0.9
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # it counts the prompt too, and would punish the name one is asked for
    repeat_last_n: int = 64


# A small model imitates better than it obeys: see the table at the end of this module.
DEFAULT_EXAMPLES = (
    Message("user", "What is the capital of Italy?"),
    Message("assistant", "The capital of Italy is Rome."),
    Message("user", "How are you?"),
    Message("assistant", "I'm doing well, thank you! How can I help you today?"),
    Message("user", "How many months are in a year?"),
    Message("assistant", "There are twelve months in a year."),
)


class LlamaThinker:
    """The engine. Loading blocks (about a second for SmolLM2-135M); do it off the event loop.

    ``model_path``: the GGUF file. ``sessions``: places, each with ``context_tokens`` of memory
    (23 kB a token for SmolLM2-135M). ``threads``: CPU threads that compute,
    by default ``default_threads()``. ``examples``: turns shown
    to the model before the conversation; pass ``()`` for a model that needs no showing. ``native_tools``: whether its
    own way of calling tools is used, by default if its template has one. ``template``: instead of the file's own.
    """

    takes_images = False
    calls_tools = True

    def __init__(
        self,
        model_path: Path,
        *,
        sessions: int = 4,
        context_tokens: int = 2048,
        threads: int | None = None,
        sampling: Sampling | None = None,
        examples: Sequence[Message] | None = None,
        native_tools: bool | None = None,
        template: str | None = None,
    ) -> None:
        threads = default_threads() if threads is None else threads
        if sessions < 1 or context_tokens < 256 or threads < 1:
            raise ConfigError(
                f"thinker: sessions={sessions} and threads={threads} must be at least 1 and "
                f"context_tokens={context_tokens} at least 256"
            )
        if not model_path.is_file():
            raise WeightsMissingError(f"{model_path} is not there. Run: duplex models pull")
        self.model_path = model_path
        self.context_tokens = context_tokens
        self.sampling = sampling or Sampling()
        self.examples = DEFAULT_EXAMPLES if examples is None else tuple(examples)
        self.native_tools = knows_tools(model_path) if native_tools is None else native_tools
        # Two places more than there are sessions: for what belongs to no conversation, and for questions about ends.
        self._server: Any = start_server(model_path, sessions + 2, context_tokens, threads, template)
        self._server.handle_chat_completions(self._body(0, ThinkRequest((Message("user", "."),), 0)), lambda _: False)
        self._lock = threading.Lock()
        self._sessions = self.slot_beside = sessions
        self._free_slots = list(range(sessions))
        self._expectation: LlamaEndExpectation | None = LlamaEndExpectation(self._server, slot=sessions + 1)
        self._open: set[LlamaSession] = set()
        self._closed = False

    @property
    def expectation(self) -> LlamaEndExpectation | None:
        return self._expectation

    def open(self) -> LlamaSession:
        with self._lock:
            if self._closed:
                raise AgentFaultError("The thinker is closed.")
            if not self._free_slots:
                raise AgentFullError(f"All {self._sessions} places of the thinker are taken.")
            return self._opened(self._free_slots.pop(0))

    def open_beside(self) -> LlamaSession:
        """On the slot for what belongs to no conversation; llama.cpp lets one wait for the other."""
        with self._lock:
            if self._closed:
                raise AgentFaultError("The thinker is closed.")
            return self._opened(self.slot_beside)

    def _opened(self, slot: int) -> LlamaSession:
        session = LlamaSession(self, slot)
        self._open.add(session)
        return session

    def warm_up(self) -> None:
        with contextlib.closing(self.open()) as session:
            sink = CollectingSink()
            request = ThinkRequest((Message("user", "Say hello."),), max_tokens=4)
            session.think(request, sink).wait_over()
        if sink.error is not None:
            raise sink.error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sessions = list(self._open)
        for session in sessions:
            session.close()
            session.join()
        if self._expectation is not None:
            self._expectation.close()
            self._expectation = None
        self._server = None

    def _give_back(self, session: LlamaSession, slot: int) -> None:
        with self._lock:
            if session in self._open and slot < self._sessions:
                self._free_slots.append(slot)  # to the back: the longest idle slot is the least useful
            self._open.discard(session)

    # -- called on session threads ---------------------------------------------------------------

    def _run(self, slot: int, request: ThinkRequest, thought: Thought, reply_tokens: int) -> None:
        """One request, to its end. Blocks the session's thread. ``reply_tokens``: room that is left for the reply, also
        by a prompt that is read ahead of it, so that both begin alike."""
        uses_tools = bool(request.tools) or any(m.role == "tool" for m in request.messages)
        longest = min(request.max_tokens, self.context_tokens // 2)
        shown = sum(map(estimate_tokens, self.examples)) + small.estimate_shown(request.tools)
        budget = self.context_tokens - min(reply_tokens, self.context_tokens // 2) - shown - 32
        for _ in range(3):
            messages = tuple(map(_as_shown, fit_messages(request.messages, budget)))
            fitted = replace(request, messages=messages, max_tokens=longest)
            place = Place(self, slot, fitted, thought)
            try:
                if uses_tools and self.native_tools:
                    place.reply_natively()
                elif uses_tools and request.max_tokens:
                    SmallReply(place, fitted, messages, self.examples, thought).make()
                else:
                    shown_messages = small.shown(messages, request.tools, self.examples)
                    if self.examples and request.max_tokens and messages[-1].role == "user":
                        alone = small.shown((*_head(messages), messages[-1]), request.tools, self.examples)
                        reason, usage = place.tell_anew(shown_messages, alone)
                    else:
                        reason, usage = place.tell(shown_messages)
                    thought.done("length" if reason == "length" else "stop", usage)
                return
            except TooLongError as error:
                problem = error
                budget = budget * 3 // 5  # the estimate was low (not English, say): ask for less history
        raise problem

    def _body(self, slot: int, request: ThinkRequest) -> dict[str, Any]:
        draw = self.sampling
        temperature = draw.temperature if request.temperature is None else request.temperature
        return {
            "messages": [as_sent(m) for m in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": temperature,
            "top_p": draw.top_p,
            "min_p": draw.min_p,
            "repeat_penalty": draw.repeat_penalty,
            "repeat_last_n": draw.repeat_last_n,
            "seed": -1 if request.seed is None else request.seed,
            "stop": [*_CONTROL_STOPS, *request.stop],
            "stream": True,
            "return_progress": True,
            "cache_prompt": True,
            "id_slot": slot,
            "chat_template_kwargs": {"enable_thinking": False},  # for models that would think aloud first
        }


def default_threads() -> int:
    """Half of this process's cores, at most 4.

    llama.cpp's threads spin at a barrier after every operation. While each has a core, two are 1.7 times
    as fast as one (105 against 61 tokens/s, two cores). When something else wants the same cores, and in a
    voice agent the listener and the talker do, they wait for each other's time slices: at load 6 on two
    cores a run that takes one thread seconds (still 61 tokens/s) did not end within 100 s with two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(4, cores // 2))


class LlamaSession:
    """One conversation's slot and thread."""

    def __init__(self, engine: LlamaThinker, slot: int) -> None:
        self._engine = engine
        self._slot = slot
        self._wakeup = threading.Condition()
        self._next: _Job | None = None
        self._now: _Job | None = None
        self._closed = False
        self._reply_tokens = DEFAULT_MAX_TOKENS  # of the last reply at most; what is read ahead is read for the next
        self._head_beside: tuple[Message, ...] = ()  # what was read for a reply that has to be asked again alone
        self._thread = threading.Thread(target=self._work, name=f"thinker-{slot}", daemon=True)
        self._thread.start()

    def think(self, request: ThinkRequest, sink: ThinkSink) -> Thought:
        job = _Job(self._slot, request, Thought(sink), is_reply=True)
        if request.max_tokens < 1:
            job.thought.fail(ConfigError(f"max_tokens must be at least 1, got {request.max_tokens}"))
        else:
            self._submit(job)
        return job.thought

    def prefill(self, messages: Sequence[Message], tools: tuple[Tool, ...] = ()) -> None:
        # max_tokens=0 reads the prompt and writes nothing; its thought has nobody listening.
        request = ThinkRequest(tuple(messages), max_tokens=0, tools=tools)
        self._submit(_Job(self._slot, request, Thought(CollectingSink()), is_reply=False))

    def close(self) -> None:
        with self._wakeup:
            if self._closed:
                return
            self._closed = True
            running = [job for job in (self._now, self._next) if job is not None]
            self._wakeup.notify()
        for job in running:
            job.thought.cancel()

    def join(self) -> None:
        """Block until the session's thread has ended (within a token of ``close``)."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _submit(self, job: _Job) -> None:
        with self._wakeup:
            if self._closed:
                job.thought.fail(AgentFaultError("This thinker session is closed."))
                return
            if not job.is_reply and any(j and j.is_reply and j.thought.live for j in (self._now, self._next)):
                return
            replaced = [j for j in (self._now, self._next) if j is not None]
            self._next = job
            self._wakeup.notify()
        for old in replaced:
            old.thought.cancel()

    def _read_beside(self, done: _Job) -> None:
        """After a reply, if nothing else is to do: reads what the next begins with if it is asked again alone."""
        head = _head(done.request.messages)
        if done.slot != self._slot:
            self._head_beside = head
        if not done.is_reply or not self._engine.examples or done.request.tools or head == self._head_beside:
            return
        read = ThinkRequest(head, max_tokens=0)
        with self._wakeup:
            if self._next is None:
                self._next = _Job(self._engine.slot_beside, read, Thought(CollectingSink()), is_reply=False)

    def _work(self) -> None:
        try:
            while True:
                with self._wakeup:
                    self._now = None
                    self._wakeup.wait_for(lambda: self._next is not None or self._closed)
                    if self._closed:
                        return
                    self._now, self._next = self._next, None
                    job = self._now
                assert job is not None
                if not job.thought.live:
                    continue
                if job.is_reply:
                    self._reply_tokens = job.request.max_tokens
                try:
                    self._engine._run(job.slot, job.request, job.thought, self._reply_tokens)
                    if not job.thought.cancelled:
                        self._read_beside(job)
                except RefusedError as error:
                    _fail(job, f"The language model refused the request: {error}")
                except Exception as error:  # whatever the library raises is this reply's fault only
                    _fail(job, f"The language model failed: {error}")
        finally:
            # Only now is the slot truly idle, and may be another conversation's.
            self._engine._give_back(self, self._slot)


def _head(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What the conversation begins with, before anybody speaks."""
    return tuple(takewhile(lambda m: m.role == "system", messages))


def _as_shown(message: Message) -> Message:
    return replace(message, text=unlooped(message.text)) if message.role == "assistant" else message


def _fail(job: _Job, message: str) -> None:
    """Whoever cannot be told does not end the conversation's thread."""
    try:
        job.thought.fail(AgentFaultError(message))
    except Exception:
        log.exception("a thought's end could not be told")


@dataclass(slots=True)
class _Job:
    slot: int
    request: ThinkRequest
    thought: Thought
    is_reply: bool


# Some of about 50 combinations tried with SmolLM2-135M-Instruct Q4_1, on 15 everyday questions (a keyword each;
# 60 tokens at most; one seed, two where it says 30). A difference of one or two questions is noise.
# "Paris": is it in the answer to "What is the capital of France?". "cut": ran into the limit.
#
#   system prompt                              examples   temp  repeat   right   words  cut   Paris
#   none                                       -          0     1.0      9/15     36    10    L'Étoile, la Marseillaise
#   You are a helpful assistant.               -          0     1.0     11/15     37     9    yes
#   ... Give short answers.                    -          0.2   1.1     13/15     40    10    La femme (The woman)
#   ... Answer in one short sentence.          -          0     1.0      9/15     17     1    yes
#   You are a friendly voice assistant. ...    -          0     1.0     10/15     25     4    L'Étoile de la Cité
#   You answer questions correctly and ...     -          0     1.0     10/15     27     4    yes
#   You answer questions correctly and ...     -          0.2   1.1     14/15     41    11    yes
#   one short sentence, examples in its text   -          0     1.0     11/15     19     2    yes
#   You are a friendly voice assistant. ...    3 turns    0     1.0     12/15     11     0    yes
#   You are a friendly voice assistant. ...    3 turns    0.2   1.0     27/30     12     0    yes
#   You are a friendly voice assistant. ...    5 turns    0     1.0     14/15     13     1    yes
#   You answer questions correctly and ...     2 turns    0     1.0     13/15     14     1    yes
#   You answer questions correctly and ...     3 turns    0     1.0     13/15     10     0    yes   <- the default
#   You answer questions correctly and ...     3 turns    0.2   1.0     26/30     12     1    yes
#
# Shown turns do more than any wording: answers get three times shorter and stop by themselves. The default
# was picked for short answers that are never cut, not for the highest count, and on these same questions; on 12
# others it got 10 right, 7 words, none cut. Greedy also makes replies repeatable.
