"""Any OpenAI-compatible chat endpoint as a thinker: Ollama, vLLM, llama-server, a hosted API.

Named by a spec, ``openai:http://host:port/v1#model``. One thread with its own event loop serves every
session; a cancelled thought closes its HTTP stream, which is how such servers learn to stop. The API
key comes from an argument or from ``OPENAI_API_KEY`` and appears in no message, log or repr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from duplex.agent import Tool
from duplex.errors import AgentFaultError, AgentFullError, ConfigError, ThinkerUnavailableError

from .openai_answer import Answer, WrittenCallError
from .openai_wire import chat_body, error_message
from .thinker import Message, ThinkRequest, ThinkSink, Thought

KEY_VARIABLE = "OPENAI_API_KEY"
_PREFIX = "openai:"
_EXAMPLE = "openai:http://127.0.0.1:11434/v1#llama3.2"
_LONGEST_LINE = 1_000_000  # characters of one server-sent event


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """``base_url`` ends before ``/chat/completions`` and has no trailing slash."""

    base_url: str
    model: str


def parse_spec(spec: str) -> EndpointSpec:
    """``openai:URL#model``, or ConfigError with what is wrong and an example."""

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"thinker {spec!r}: {what}. Expected something like {_EXAMPLE}")

    if not spec.startswith(_PREFIX):
        raise wrong("it does not begin with 'openai:'")
    address, _, model = spec[len(_PREFIX) :].partition("#")
    try:
        url = urlsplit(address)
        _ = url.port
    except ValueError as error:
        raise wrong(f"the address cannot be read ({error})") from error
    if url.username is not None or url.password is not None:
        # Not `wrong`: the message must not repeat a secret.
        raise ConfigError(f"thinker: leave the key out of the address and set {KEY_VARIABLE} instead")
    if url.scheme not in ("http", "https"):
        raise wrong("the address must begin with http:// or https://")
    if not url.hostname:
        raise wrong("the address has no host")
    if url.query:
        raise wrong("the address must not have a query (the part after '?')")
    if not model.strip():
        raise wrong("the model's name after '#' is missing")
    return EndpointSpec(address.rstrip("/").removesuffix("/chat/completions"), model.strip())


@dataclass(frozen=True, slots=True)
class EndpointTimeouts:
    """``first_token_s`` counts from the request; ``stall_s`` is the longest silence between two tokens."""

    connect_s: float = 3.0
    first_token_s: float = 10.0
    stall_s: float = 10.0


class OpenAIThinker:
    """The endpoint. Making one does not contact it; ``warm_up`` does."""

    def __init__(
        self,
        spec: EndpointSpec | str,
        *,
        api_key: str | None = None,
        timeouts: EndpointTimeouts | None = None,
        takes_images: bool = True,
        sessions: int = 64,
    ) -> None:
        self.spec = parse_spec(spec) if isinstance(spec, str) else spec
        self.takes_images = takes_images
        self.calls_tools = True  # whether its model can shows when it is asked
        self.expectation = None  # endpoints answer in whole messages; they cannot be asked for the next token
        self._timeouts = timeouts or EndpointTimeouts()
        self._places = sessions
        self._open: set[OpenAISession] = set()
        self._beside: set[OpenAISession] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._limit_field = "max_tokens"
        key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if not key.isascii() or any(c.isspace() for c in key):
            raise ConfigError(f"The API key ({KEY_VARIABLE}) has characters that no key has.")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="thinker-endpoint", daemon=True)
        # Certificates are read here, off any event loop that matters.
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(None, connect=self._timeouts.connect_s),
            limits=httpx.Limits(max_connections=sessions, max_keepalive_connections=8, keepalive_expiry=60.0),
        )
        self._thread.start()

    def open(self) -> OpenAISession:
        return self._opened(bounded=True)

    def open_beside(self) -> OpenAISession:
        return self._opened(bounded=False)

    def _opened(self, *, bounded: bool) -> OpenAISession:
        with self._lock:
            if self._closed:
                raise AgentFaultError("The thinker is closed.")
            if bounded and len(self._open) >= self._places:
                raise AgentFullError(f"All {self._places} places of the thinker are taken.")
            session = OpenAISession(self)
            if bounded:
                self._open.add(session)
            else:
                self._beside.add(session)
            return session

    def warm_up(self) -> None:
        """Ask for the list of models: opens the connection and finds out early that nobody is there.
        Raises ThinkerUnavailableError. A server without such a list is fine."""
        asyncio.run_coroutine_threadsafe(self._greet(), self._loop).result()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            sessions = [*self._open, *self._beside]
        for session in sessions:
            session.close()
        asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _wind_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:  # their sessions were closed, so they are on their way out
            _, late = await asyncio.wait(tasks, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._client.aclose()

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.first_token_s):
                response = await self._client.get(f"{self.spec.base_url}/models")
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if response.status_code in (401, 403):
            raise self._refused(response.status_code, response.text)

    # -- one reply, on the endpoint's thread ---------------------------------------------------------

    def _start(self, request: ThinkRequest, thought: Thought) -> None:
        run = _Run()
        asyncio.run_coroutine_threadsafe(self._reply(request, thought, run), self._loop)
        thought.set_cancel_hook(lambda: self._loop.call_soon_threadsafe(run.interrupt))

    async def _reply(self, request: ThinkRequest, thought: Thought, run: _Run) -> None:
        answer = Answer(request, thought)
        try:
            for _ in range(3):
                if not thought.live or await self._attempt(answer, run):
                    return
            raise ThinkerUnavailableError(
                f"{self.spec.base_url} was told that its call cannot be made, and called again. Use a model that "
                f"calls tools ({self.spec.model!r} may not)."
            )
        except ThinkerUnavailableError as error:
            thought.fail(error)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            thought.fail(self._unreachable(error))
        except Exception as error:  # a server can send anything; it must end as this reply's error
            thought.fail(self._nonsense(repr(error)))

    async def _attempt(self, answer: Answer, run: _Run) -> bool:
        """False to try once more: with the other name of the token limit, or after a call that could not be made."""
        waits = self._timeouts
        try:
            async with (
                asyncio.timeout(waits.first_token_s) as deadline,
                run.interruptible(deadline),
                self._client.stream(
                    "POST", f"{self.spec.base_url}/chat/completions", json=self._body(answer.request)
                ) as response,
            ):
                try:
                    if response.status_code != 200:
                        body = (await _read_some(response)).decode("utf-8", "replace")
                        if self._wants_other_field(response.status_code, body):
                            return False
                        raise self._refused(response.status_code, body, answer.request)
                    async for event in self._events(response):
                        if answer.take(event):
                            deadline.reschedule(asyncio.get_running_loop().time() + waits.stall_s)
                        if not answer.thought.live:
                            return True
                finally:
                    run.settle()
        except TimeoutError as error:
            mute_s = waits.stall_s if answer.began else waits.first_token_s
            what = f"stopped for {mute_s:g} s in mid-reply" if answer.began else f"said nothing for {mute_s:g} s"
            raise ThinkerUnavailableError(
                f"{self.spec.base_url} {what}. It may be loading {self.spec.model!r} or be overloaded: "
                "try again, or raise the thinker's timeout."
            ) from error
        except WrittenCallError as error:
            raise ThinkerUnavailableError(
                f"{self.spec.base_url} wrote its tool call into the text instead of making it. Have it parse the "
                "calls (llama-server: --jinja; vLLM: --enable-auto-tool-choice --tool-call-parser …), or use a model "
                "that it knows to call tools."
            ) from error
        if not answer.reason and not answer.began:
            raise self._nonsense("an empty stream")
        return self._finish(answer)

    def _finish(self, answer: Answer) -> bool:
        """The stream has ended. False if the model is to be told that its call could not be made."""
        answer.close()
        if answer.reason == "length":
            answer.thought.done("length", answer.usage)
        elif answer.told_wrong():
            return False
        elif answer.request.tool_choice.mode == "required" and not answer.called and answer.request.tools:
            raise ThinkerUnavailableError(
                f"{self.spec.base_url} was to call a tool and answered in words. Use a server that follows "
                f"tool_choice, and a model that calls tools ({self.spec.model!r} may not)."
            )
        else:
            answer.thought.done("calls" if answer.called else "stop", answer.usage)
        return True

    def _body(self, request: ThinkRequest) -> dict[str, Any]:
        return chat_body(request, self.spec.model, limit_field=self._limit_field, takes_images=self.takes_images)

    def _wants_other_field(self, status: int, body: str) -> bool:
        if status != 400 or "max_completion_tokens" not in body or self._limit_field != "max_tokens":
            return False
        self._limit_field = "max_completion_tokens"
        return True

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a server-sent event stream, until ``[DONE]`` or the end."""
        async for line in _lines(response):
            if not line.startswith("data:"):
                if line and not line.startswith((":", "event:", "id:", "retry:")):
                    raise self._nonsense(line[:80])
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError as error:
                raise self._nonsense(data[:80]) from error
            if not isinstance(event, dict):
                raise self._nonsense(data[:80])
            if event.get("error"):
                raise ThinkerUnavailableError(f"{self.spec.base_url} broke off: {error_message(data)}")
            yield event

    # -- errors: what happened, and what to do ---------------------------------------------------------

    def _unreachable(self, error: Exception) -> ThinkerUnavailableError:
        if isinstance(error, httpx.ConnectTimeout | TimeoutError):
            what = "did not answer in time"
        elif isinstance(error, httpx.ConnectError):
            what = "is not reachable"
        else:
            what = "broke the connection"
        return ThinkerUnavailableError(
            f"{self.spec.base_url} {what} ({type(error).__name__}). Start the endpoint, or check the address "
            "given as --thinker."
        )

    def _refused(self, status: int, body: str, request: ThinkRequest | None = None) -> ThinkerUnavailableError:
        advice = {
            401: f"Set {KEY_VARIABLE} to a key that it accepts.",
            403: f"Set {KEY_VARIABLE} to a key that may use {self.spec.model!r}.",
            404: f"Check that it serves the model {self.spec.model!r}, and that the address ends where "
            "'/chat/completions' would follow (usually in /v1).",
            429: "It is over its rate limit or quota: wait, or use another endpoint.",
        }.get(status, "See the endpoint's own log.")
        if status in (400, 404, 422, 500, 501) and request is not None and request.tools and "tool" in body.lower():
            advice = "Declare no tools, or serve a model that calls tools with what its server needs for them."
        return ThinkerUnavailableError(
            f"{self.spec.base_url} refused with HTTP {status}: {error_message(body)} {advice}"
        )

    def _nonsense(self, seen: str) -> ThinkerUnavailableError:
        return ThinkerUnavailableError(
            f"{self.spec.base_url} did not answer with a chat stream (got {seen!r}). Check that the address is "
            "that of an OpenAI-compatible API, usually ending in /v1."
        )


class OpenAISession:
    """One conversation. It keeps nothing: such an endpoint is sent the whole history each time."""

    def __init__(self, engine: OpenAIThinker) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._now: Thought | None = None
        self._closed = False

    def think(self, request: ThinkRequest, sink: ThinkSink) -> Thought:
        thought = Thought(sink)
        with self._lock:
            before, closed = self._now, self._closed
            if not closed:
                self._now = thought
                self._engine._start(request, thought)
        if closed:
            thought.fail(AgentFaultError("This thinker session is closed."))
            return thought
        if before is not None:
            before.cancel()
        return thought

    def prefill(self, messages: Sequence[Message], tools: tuple[Tool, ...] = ()) -> None:
        """Nothing: the protocol has no way to ask for it, and a hidden request would be billed."""

    def close(self) -> None:
        with self._lock:
            self._closed = True
            now = self._now
        if now is not None:
            now.cancel()
        with self._engine._lock:
            self._engine._open.discard(self)
            self._engine._beside.discard(self)


class _Run:
    """Interrupts one reply's task at most once, and never while its connection is being closed.

    httpx marks a stream closed before it has closed it, so a second cancellation (the deadline's or the
    caller's, while the first unwinds) leaves the connection open for good: encode/httpx#3782.
    All methods run on the endpoint's event loop.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def interruptible(self, deadline: asyncio.Timeout) -> AsyncIterator[None]:
        self._task, self._deadline = asyncio.current_task(), deadline
        try:
            yield
        finally:
            self._task = self._deadline = None

    def interrupt(self) -> None:
        if self._task is not None and self._deadline is not None and not self._deadline.expired():
            task = self._task
            self.settle()
            task.cancel()

    def settle(self) -> None:
        """From here on the task ends by itself: no interruption, no deadline."""
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(None)
        self._task = self._deadline = None


async def _read_some(response: httpx.Response, limit: int = 4096) -> bytes:
    """The start of an error's body: it may be a page of any length."""
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= limit:
            break
    return body[:limit]


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines of the body, without their ends. A line over the limit is an error: it is no event stream."""
    rest = ""
    async for text in response.aiter_text():
        rest += text
        *whole, rest = rest.split("\n")
        for line in whole:
            yield line.rstrip("\r")
        if len(rest) > _LONGEST_LINE:
            raise ValueError(f"a line longer than {_LONGEST_LINE} characters")
    if rest:
        yield rest
