"""Tools for a model too small to have learnt them: how they are shown to it, and how it is asked.

Theory of operation. The tools stand in the system prompt, and each is shown once in an example turn, its description
as what somebody says and ``[name]`` as the answer. A model shown that gives ``[`` some probability as the first token
of its answer, and each name some after that; both are read off, nothing is drawn. For SmolLM2-135M that alone is a
weak judge (it misses a third of the calls). So it is asked only about tools of whose declaration a word was said, and
its opinion is one piece of evidence in a logistic model (``Weights``; :mod:`.tool_words` has the others). The
arguments are values that were said; where several could be meant, the model chooses under a grammar.

What a tool answered is shown as ``Result: …`` and told in words under a grammar too: the values are in the answer as
they came, and what joins them is made of the user's words, the names of the values and little words. Free to choose
its words the model adds what nobody told it ("shipped to New York City").

``docs/tools.md`` has the figures. Everything here is pure: text in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from duplex.agent import Tool

from .thinker import Call, Message, estimate_tokens
from .tool_schema import properties_of, required_of
from .tool_words import overlap

CALL_BEGINS = "["
_INTRODUCTION = "You can use these tools:"
_RESULT = "Result: "


@dataclass(frozen=True, slots=True)
class Evidence:
    """For calling ``tool`` now.

    ``margin``: log P([name]) − log P(anything else), by the model. ``words``: of its declaration that were said.
    ``share``: of the user's words that say something, how many are of it. ``held``: values for all required parameters
    were said, ``lacks``: not for all; both false where there are none, or where what was said only might be one.
    """

    tool: Tool
    margin: float
    words: int
    share: float
    held: bool
    lacks: bool


@dataclass(frozen=True, slots=True)
class Weights:
    """Log-odds of a call: a bias, and what each piece of evidence adds. ``word``: for each of at most two."""

    margin: float
    word: float
    share: float
    held: float
    lacks: float
    bias: float

    def log_odds(self, seen: Evidence) -> float:
        values = self.held * seen.held - self.lacks * seen.lacks
        words = self.word * min(seen.words, 2) + self.share * seen.share
        return self.bias + self.margin * seen.margin + words + values


# Fitted by benchmarks/tool_calls.py to the half of its utterances that is for tuning.
FITTED = Weights(margin=0.48, word=0.85, share=2.74, held=2.49, lacks=1.41, bias=0.61)
ASKING = 1.0  # a question for what is missing takes this much less evidence than a call without it


# --- what the model is shown ----------------------------------------------------------------------


def shown(messages: Sequence[Message], tools: Sequence[Tool], examples: Sequence[Message]) -> tuple[Message, ...]:
    """The messages as the model reads them: tools introduced, ``examples`` before the conversation, calls as text."""
    at = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    system, turns = list(messages[:at]), messages[at:]
    if tools:
        lines = "\n".join(f"{t.name}: {t.description}" for t in tools)
        text = f"{_INTRODUCTION}\n{lines}"
        if system:
            system[-1] = replace(system[-1], text=f"{system[-1].text} {text}")
        else:
            system = [Message("system", text)]
        calls = [
            m for t in tools for m in (Message("user", t.description or t.name), Message("assistant", f"[{t.name}]"))
        ]
        middle = len(examples) - len(examples) % 2 - 2 if len(examples) > 2 else 0
        examples = (*examples[:middle], *calls, *examples[middle:])
    return (*system, *examples, *map(_as_text, turns))


def estimate_shown(tools: Sequence[Tool]) -> int:
    """How many tokens ``shown`` adds for the tools, erring high."""
    if not tools:
        return 0
    return 16 + sum(3 * estimate_tokens(turn) for t in tools for turn in _example(t))


def _example(tool: Tool) -> tuple[Message, Message]:
    return Message("user", tool.description or tool.name), Message("assistant", f"[{tool.name}]")


def _as_text(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", _RESULT + plain_result(message.text))
    if message.calls:
        text = " ".join(filter(None, [message.text, *map(_written, message.calls)]))
        return Message("assistant", text)
    return message


def _written(call: Call) -> str:
    try:
        values = json.loads(call.arguments)
    except (ValueError, RecursionError):
        values = None
    said = " ".join(f"{name}={_bare(value)}" for name, value in values.items()) if isinstance(values, dict) else ""
    return f"[{call.name} {said}]" if said else f"[{call.name}]"


def plain_result(output: str) -> str:
    """``{"rings_at": "9:20"}`` as "rings at: 9:20"; any other text as it is."""
    pairs = _pairs(output)
    return output if pairs is None else ", ".join(f"{name}: {_bare(value)}" for name, value in pairs)


# --- whether, and which ---------------------------------------------------------------------------


def spoken_of(tools: Sequence[Tool], said: str) -> list[tuple[Tool, int]]:
    """The tools of whose declaration something was said, with how many words."""
    return [(tool, words) for tool in tools if (words := overlap(tool, said))]


def what_was_said(messages: Sequence[Message]) -> str:
    """The user's last words; if they answer a question of ours for a tool's value, with those before."""
    turns = [m for m in messages if m.role != "system"]
    said = turns[-1].text
    if len(turns) >= 3 and turns[-2].role == "assistant" and turns[-2].text.startswith(ASKS):
        said = f"{turns[-3].text} {said}"
    return said


# --- what is missing ------------------------------------------------------------------------------

ASKS = ("What is the ", "What is your ", "Please tell me ", "Tell me ")


def question_grammar(tool: Tool, name: str) -> str:
    """A question for the parameter ``name``; the model chooses how it begins."""
    described = str(properties_of(tool).get(name, {}).get("description", "")) or name.replace("_", " ")
    what = re.sub(r"^(the|a|an|your)\s+", "", described.strip().rstrip(".?!"), flags=re.I)
    if re.match(r"(how|what|which|when|where|who|whether)\b", what, re.I):
        return f'root ::= ("Please tell me " | "Tell me ") {_literal(what[0].lower() + what[1:] + ".")}'
    return f'root ::= "What is " ("the " | "your ") {_literal(what + "?")}'


# --- arguments ------------------------------------------------------------------------------------


def options(tool: Tool, held: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """What each property could be, most likely first; of those that could be anything."""
    found = {}
    for name, values in held.items():
        if not values:
            continue
        several = list(values)
        if all(isinstance(v, str) for v in values) and "enum" not in properties_of(tool)[name]:
            several = list(dict.fromkeys(part for run in values for part in _parts(run)))
        found[name] = several
    return found


def _parts(run: str) -> list[str]:
    words = run.split()
    return [" ".join(words[i:j]) for i in range(len(words)) for j in range(len(words), i, -1)][:8]


def choice_prefix(tool: Tool, decided: Mapping[str, Any], name: str) -> str:
    """What the model's answer begins with, up to the value that it is to choose."""
    before = "".join(f" {known}={_bare(value)}" for known, value in decided.items())
    return f"[{tool.name}{before} {name}="


def choice_grammar(several: Sequence[Any], *, may_be_none: bool) -> str:
    words = [_bare(value) for value in several] + (["none"] if may_be_none else [])
    return f'root ::= ({" | ".join(_literal(word) for word in words)}) ("]" | " ")'


def chosen(several: Sequence[Any], answer: str) -> Any:
    """Which of ``several`` the model chose; None for none."""
    return next((value for value in several if _bare(value) == answer.rstrip("] ")), None)


def is_required(tool: Tool, name: str) -> bool:
    return name in required_of(tool)


# --- telling what a tool answered -----------------------------------------------------------------

_LITTLE = "the a it is are was will be has been at on in for to and of your you there this that by from with".split()
_TURNED = {"my": "your", "i": "you", "me": "you", "i'm": "you", "we": "you", "our": "your", "us": "you", "your": "my"}
_ASKING = frozenset(
    "what what's where where's who who's when how how's why which could can would will please tell do does did say if "
    "know want like need look check up about is are has have".split()
)
_SENTENCE_WORDS = 5  # a result of that many words is said as it is
_MOST_VALUES = 4
_LONGEST_SENTENCE = 400  # characters


def answer_grammar(question: str, output: str) -> str:
    """GBNF of an answer that holds the values of ``output``, joined by words of the ``question`` and little ones."""
    pairs = _pairs(output)
    if pairs is None:
        if len(output.split()) >= _SENTENCE_WORDS:
            return f"root ::= {_literal(_sentence(output))}"
        pairs = [("", output.strip().rstrip("."))]
    telling = [(name, _bare(value)) for name, value in pairs if not isinstance(value, bool) and _bare(value)]
    denied = any(value is False for _, value in pairs)
    if len(telling) == 1 and len(telling[0][1].split()) >= _SENTENCE_WORDS:
        return f"root ::= {_literal(_sentence(telling[0][1]))}"
    names = " ".join(name for name, _ in (pairs if not telling else telling[:1])).lower()
    words = _vocabulary(question, names) + (["not", "no"] if denied else [])
    rules = [
        f"word ::= {' | '.join(_literal(w) for w in words)}",
        f"first ::= {' | '.join(_literal(w[0].upper() + w[1:]) for w in words if w[0].isalpha())}",
    ]
    if not telling:
        return "\n".join([r'root ::= first (" " word){2,7} "."', *rules])
    body = f'(first (" " word){{0,5}} " ")? {_literal(telling[0][1])}'
    for name, value in telling[1:_MOST_VALUES]:
        body += f' ("," | " and" (" the" | " it")?) {_literal(" " + name.lower())} (" is" | " at" | " on" | " in")? '
        body += _literal(" " + value)
    return "\n".join([f'root ::= {body} "."', *rules])


def _sentence(text: str) -> str:
    text = " ".join(text.split())[:_LONGEST_SENTENCE]
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _vocabulary(question: str, names: str) -> list[str]:
    words = [*_LITTLE, *names.split()]
    for match in re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*", question):
        word = match.group()
        low = word.lower().replace("’", "'")
        if low in _ASKING:
            continue
        words.append(_TURNED.get(low) or (word if word[0].isupper() and match.start() > 0 else low))
    return list(dict.fromkeys(words))


def _pairs(output: str) -> list[tuple[str, Any]] | None:
    """Names and values of a result that is a JSON object; None for any other text."""
    try:
        values = json.loads(output)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None if isinstance(values, list) else [("", values)]
    return [(name.replace("_", " ").replace("-", " "), value) for name, value in values.items()]


def _bare(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    """A GBNF string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
