"""Tools with a GGUF model in this process, in two ways: the model's own, or ours for one that has none.

A chat template that knows tools comes with a model that was taught them: llama.cpp shows them to it, holds its calls
to a grammar made of their schemas, and parses what it writes. For any other model the reply takes the steps of
:mod:`.tool_small`, each a request of a token or a few on the session's own slot. They share the prompt, so that what
one read is in the cache for the next.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from duplex.agent import Tool

from . import tool_small as small
from .thinker import Message, ThinkRequest, Thought, Usage
from .tool_schema import new_call_id, properties_of
from .tool_words import missing, share, sure, values

_LIKELIEST = 200  # next tokens that are looked at
_HEAD_BYTES = 64 << 20  # a GGUF file's texts stand before its weights


def knows_tools(model: Path) -> bool:
    """Whether the chat template in a GGUF file speaks of tools."""
    return "tools" in chat_template(model)


def chat_template(model: Path) -> str:
    """The template as it stands in the file's metadata; "" if there is none."""
    key = b"tokenizer.chat_template"
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(key, 0, _HEAD_BYTES)
        if at < 0:
            return ""
        at += len(key) + 4  # the type of the value, which is text
        length = int.from_bytes(data[at : at + 8], "little")
        return data[at + 8 : at + 8 + length].decode("utf-8", "replace")


@dataclass(slots=True)
class Asked:
    """What came of one request. ``likeliest``: the next tokens and their log probabilities, if it asked for them."""

    text: str = ""
    likeliest: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


class Model(Protocol):
    """The slot of a session, asked in steps. Both raise what the request could not be done for."""

    def ask(self, messages: Sequence[Message], *, max_tokens: int, grammar: str = "", likeliest: int = 0) -> Asked:
        """A request of its own. The last message, if it is the assistant's, is what the answer begins with."""
        ...

    def tell(self, messages: Sequence[Message], *, grammar: str = "") -> tuple[str, Usage]:
        """The reply in words, passed on as it comes. Returns how it ended, "length" or "stop"."""
        ...


class SmallReply:
    """One reply of a model without tools of its own."""

    def __init__(
        self,
        model: Model,
        request: ThinkRequest,
        messages: Sequence[Message],
        examples: Sequence[Message],
        thought: Thought,
        weights: small.Weights = small.FITTED,
    ) -> None:
        self._model, self._request, self._messages, self._thought = model, request, messages, thought
        self._weights = weights
        self._shown = small.shown(messages, request.tools, examples)
        self._usage = Usage()

    def make(self) -> None:
        """To its end: the thought is done, unless it was cancelled meanwhile."""
        last = self._messages[-1]
        if last.role == "tool":
            asked = next((m.text for m in reversed(self._messages) if m.role == "user"), "")
            self._tell(small.answer_grammar(asked, last.text))
            return
        tool = self._wanted() if last.role == "user" else None
        if not self._thought.live:
            return
        if tool is None:
            self._tell()
            return
        said = small.what_was_said(self._messages)
        held = values(tool, said)
        if lacking := missing(tool, held):
            self._tell(small.question_grammar(tool, lacking[0]))
            return
        arguments = json.dumps(self._arguments(tool, held), ensure_ascii=False)
        call_id = new_call_id()
        self._thought.call_began(call_id, tool.name)
        self._thought.call_arguments(call_id, arguments)
        self._thought.call_end(call_id, arguments)
        self._thought.done("calls", self._usage)

    def _tell(self, grammar: str = "") -> None:
        if not self._thought.live:
            return
        reason, usage = self._model.tell(self._shown, grammar=grammar)
        self._count(usage)
        self._thought.done("length" if reason == "length" else "stop", self._usage)

    # --- which tool ------------------------------------------------------------------------------

    def _wanted(self) -> Tool | None:
        """The tool to call, or to ask a missing value for."""
        tools, must = self._request.callable_tools, self._request.tool_choice.mode == "required"
        said = small.what_was_said(self._messages)
        spoken_of = small.spoken_of(tools, said)
        if must and len(tools) == 1:
            return tools[0]
        if must:
            words = {tool.name: count for tool, count in spoken_of}
            spoken_of = [(tool, words.get(tool.name, 0)) for tool in tools]
        if not spoken_of:
            return None
        asked_before = said != self._messages[-1].text
        best, best_odds = None, -math.inf
        for seen in self.evidence(spoken_of, said):
            odds = self._weights.log_odds(seen)
            if seen.lacks and not must:
                odds = -math.inf if asked_before else odds + small.ASKING
            if odds > best_odds:
                best, best_odds = seen.tool, odds
        return best if must or best_odds > 0 else None

    def evidence(self, spoken_of: Sequence[tuple[Tool, int]], said: str) -> list[small.Evidence]:
        """What speaks for calling each of those tools, with the number of their words that were said."""
        margins = self._margins(self._request.callable_tools)
        found = []
        for tool, words in spoken_of:
            held = values(tool, said)
            lacks = bool(missing(tool, held))
            certain = sure(tool, held, said)
            found.append(small.Evidence(tool, margins[tool.name], words, share(tool, said), certain, lacks))
        return found

    def _margins(self, tools: Sequence[Tool]) -> dict[str, float]:
        """For each tool, log P([name]) − log P(something else), as the first of the reply."""
        first = self._next("")
        begins = first.get(small.CALL_BEGINS, min(first.values(), default=0.0) - 1.0)
        other = math.log(max(1e-9, 1.0 - math.exp(begins)))
        found: dict[str, float] = {}
        self._name(small.CALL_BEGINS, [tool.name for tool in tools], begins, found)
        return {name: probability - other for name, probability in found.items()}

    def _name(self, before: str, names: Sequence[str], so_far: float, found: dict[str, float]) -> None:
        """Log probabilities of the names after ``before``, token by token as far as they are the same."""
        if not self._thought.live:
            found.update(dict.fromkeys(names, so_far))
            return
        nexts = self._next(before)
        begun = before[len(small.CALL_BEGINS) :]
        groups: dict[str, list[str]] = {}
        for name in names:
            rest = name[len(begun) :]
            token = max((t for t in nexts if t and rest.startswith(t)), key=len, default="")
            if token:
                groups.setdefault(token, []).append(name)
            else:
                found[name] = so_far + min(nexts.values(), default=0.0) - 1.0
        for token, same in groups.items():
            if len(same) == 1:
                found[same[0]] = so_far + nexts[token]
            else:
                self._name(before + token, same, so_far + nexts[token], found)

    def _next(self, before: str) -> Mapping[str, float]:
        asked = self._model.ask(self._after(before), max_tokens=1, likeliest=_LIKELIEST)
        self._count(asked.usage)
        return asked.likeliest

    # --- its arguments ---------------------------------------------------------------------------

    def _arguments(self, tool: Tool, held: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        decided: dict[str, Any] = {}
        for name, several in small.options(tool, held).items():
            needed = small.is_required(tool, name)
            said_so = not isinstance(several[0], str) or "enum" in properties_of(tool)[name]
            if len(several) == 1 and (needed or said_so):
                decided[name] = several[0]
                continue
            grammar = small.choice_grammar(several, may_be_none=not needed)
            prefix = small.choice_prefix(tool, decided, name)
            asked = self._model.ask(self._after(prefix), max_tokens=32, grammar=grammar)
            self._count(asked.usage)
            value = small.chosen(several, asked.text.removeprefix(prefix))
            if value is None and needed:
                value = several[0]  # cancelled, or cut in the middle of it
            if value is not None:
                decided[name] = value
        return decided

    def _after(self, before: str) -> tuple[Message, ...]:
        return (*self._shown, Message("assistant", before)) if before else self._shown

    def _count(self, usage: Usage) -> None:
        """The prompt is counted once, as the first request found it; what was written, every time."""
        if self._usage == Usage():
            self._usage = usage
        else:
            written = self._usage.reply_tokens + usage.reply_tokens
            self._usage = Usage(self._usage.prompt_tokens, self._usage.cached_tokens, written)
