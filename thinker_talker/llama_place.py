"""One request to llama.cpp's server core on a session's slot, from what is sent to what comes of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duplex.errors import AgentFaultError

from .llama_tools import Asked
from .openai_answer import Answer
from .openai_wire import chat_body, chat_message
from .repetition import Opening, loops
from .thinker import FinishReason, Message, ThinkRequest, Thought, Usage

if TYPE_CHECKING:
    from .llama import LlamaThinker

log = logging.getLogger("duplex.thinker")

_CONTROL_IN_TEXT = re.compile(r"<\|")


class Place:
    """A slot while it answers one request: what :mod:`.llama_tools` asks of a model. Blocks."""

    def __init__(self, engine: LlamaThinker, slot: int, request: ThinkRequest, thought: Thought) -> None:
        self._engine, self._slot, self._request, self._thought = engine, slot, request, thought

    def ask(self, messages: Sequence[Message], *, max_tokens: int, grammar: str = "", likeliest: int = 0) -> Asked:
        body = self._body(messages, grammar)
        body |= {"max_tokens": max_tokens, "temperature": 0.0}
        if likeliest:
            body |= {"logprobs": True, "top_logprobs": likeliest}
        outcome = self._send(body, lambda _: None)
        return Asked(outcome.text, outcome.likeliest, outcome.usage)

    def tell(self, messages: Sequence[Message], *, grammar: str = "") -> tuple[str, Usage]:
        body = self._body(messages, grammar)
        if grammar:
            body["temperature"] = 0.0
        outcome = self._send(body, self._thought.text)
        return outcome.reason, outcome.usage

    def tell_anew(self, messages: Sequence[Message], alone: Sequence[Message]) -> tuple[str, Usage]:
        """The same, unless it begins like an earlier reply: a small model imitates itself. Then it is asked again,
        without the conversation (``alone``), on a slot where that is not forgotten for it. If it says the same again,
        that is the answer.
        """
        earlier = [m.text for m in self._request.messages if m.role == "assistant"]
        opening = Opening(earlier, self._thought.text)
        outcome = self._send(self._body(messages, ""), opening.say)
        opening.close()
        if opening.repeats and self._thought.live:
            body = self._engine._body(self._engine.slot_beside, replace(self._request, messages=tuple(alone)))
            outcome = self._send(body, self._thought.text)
        return outcome.reason, outcome.usage

    def reply_natively(self) -> None:
        """With the model's own way of calling tools, which llama.cpp knows from its template."""
        answer = Answer(self._request, self._thought)
        for _ in range(2):
            body = self._engine._body(self._slot, answer.request)
            full = chat_body(answer.request, "", limit_field="max_tokens", takes_images=False)
            body |= {key: full[key] for key in ("tools", "tool_choice") if key in full}
            answer.usage = self._send(body, None, answer.take).usage
            if not self._thought.live:
                return
            answer.close()
            cut = answer.reason == "length"
            if not cut and answer.told_wrong():
                continue
            if not cut and not answer.called and answer.request.tool_choice.mode == "required":
                self._thought.fail(AgentFaultError("The language model was to call a tool and answered in words."))
                return
            reason: FinishReason = "length" if cut else "calls" if answer.called else "stop"
            self._thought.done(reason, answer.usage)
            return
        self._thought.fail(AgentFaultError("The language model called a tool that it was told it cannot call."))

    def _body(self, messages: Sequence[Message], grammar: str) -> dict[str, Any]:
        body = self._engine._body(self._slot, replace(self._request, messages=tuple(messages)))
        return body | {"grammar": grammar} if grammar else body

    def _send(
        self,
        body: Mapping[str, Any],
        say: Callable[[str], object] | None,
        event: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> Outcome:
        outcome = Outcome(self._thought, say, event)
        self._engine._server.handle_chat_completions(body, outcome.take)
        if outcome.failure is not None:
            raise outcome.failure
        if outcome.too_long:
            raise TooLongError(outcome.error)
        if outcome.error:
            raise RefusedError(outcome.error)
        return outcome


class RefusedError(Exception):
    """llama.cpp's own word on why it did not answer."""


class TooLongError(RefusedError):
    """More tokens than the slot has room for."""


class Outcome:
    """Collects the chunks of one request. ``say`` is given its text, ``event`` every chunk."""

    def __init__(
        self,
        thought: Thought,
        say: Callable[[str], object] | None,
        event: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self._thought, self._say, self._event = thought, say, event
        self.text = self.reason = self.error = ""
        self.usage = Usage()
        self.likeliest: dict[str, float] = {}
        self.too_long = False
        self.failure: Exception | None = None

    def take(self, chunk: Any) -> bool:
        """The library's callback. True stops the generation."""
        if "choices" not in chunk:
            problem = chunk.get("error", chunk)
            self.error = str(problem.get("message", problem))
            self.too_long = problem.get("type") == "exceed_context_size_error"
            return True
        try:
            if self._event is not None:
                self._event(chunk)
        except Exception as error:  # not through the library: it is raised when the request is over
            self.failure = error
            return True
        for choice in chunk["choices"]:
            if text := choice.get("delta", {}).get("content") or "":
                self.text += text
                if self._say is not None:
                    if self._say(text) is False:
                        return True
                    if loops(self.text):  # it would go on until its limit
                        log.debug("the language model repeats itself and is stopped after %d letters", len(self.text))
                        return True
            self.reason = choice.get("finish_reason") or self.reason
            for token in (choice.get("logprobs") or {}).get("content") or ():
                if not self.likeliest:
                    self.likeliest = {t["token"]: t["logprob"] for t in token["top_logprobs"]}
        timings = chunk.get("timings")
        if timings:
            cached = int(timings.get("cache_n", 0))
            self.usage = Usage(cached + int(timings["prompt_n"]), cached, int(timings["predicted_n"]))
        return not self._thought.live


def as_sent(message: Message) -> dict[str, Any]:
    """A chat message, whose text cannot be read as a control token."""
    sent = chat_message(message, takes_images=False)
    if sent["content"]:
        sent["content"] = _plain(sent["content"])
    return sent


def _plain(text: str) -> str:
    """Text that cannot be read as a control token: what a person types must not end their own turn."""
    return _CONTROL_IN_TEXT.sub("< |", text)
