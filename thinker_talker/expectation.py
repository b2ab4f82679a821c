"""Does the language model expect the turn to end here? Evidence for the end of a turn, from its words alone.

"I'd like to book a" cannot be a whole turn, "I'd like to book a table" can. The share of probability that a
language model gives to the end of the sentence, after the words so far, tells one from the other; after Ekstedt &
Skantze, "TurnGPT" (2020), with any model instead of one trained for it.
"""

from __future__ import annotations

import logging
import math
import queue
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .supervised import SupervisedThread

log = logging.getLogger("duplex.cascade")

_QUOTED = 'She said: "'  # speech is what follows; without it a model expects prose, which goes on
_TOKENS = 40  # of the likeliest next ones
_LAST_WORDS = 60
_QUEUE_LIMIT = 16
_ENDS = (".", "?", "!", '"', "”")

Answer = Callable[[float], None]


class EndExpectation(Protocol):
    """Says how likely a sentence is over. Shared by every session."""

    def ask(self, words: str, answer: Answer) -> None:
        """Calls ``answer`` with a probability, from a worker's thread; never, if it is too busy or fails."""
        ...

    def close(self) -> None: ...


class LlamaEndExpectation:
    """The thinker's own model, asked on a slot of its own. ``server``: an ``xllamacpp.Server``."""

    def __init__(self, server: Any, slot: int) -> None:
        self._server, self._slot = server, slot
        self._queue: queue.Queue[tuple[str, Answer] | None] = queue.Queue(_QUEUE_LIMIT)
        self._thread = SupervisedThread(self._run, "duplex-expectation")
        self._thread.start()

    def ask(self, words: str, answer: Answer) -> None:
        try:
            self._queue.put_nowait((words, answer))
        except queue.Full:
            log.debug("too many questions about ends of turns; one was dropped")

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            words, answer = job
            try:
                answer(self.probability(words))
            except Exception:  # the other evidence goes on without it
                log.exception("the language model could not be asked about the end of a turn")
            del job, words, answer  # while waiting, keep no session alive

    def probability(self, words: str) -> float:
        """As :meth:`ask`, in the caller's thread. Blocks for some 50 ms."""
        found: list[Mapping[str, Any]] = []

        def take(chunk: Any) -> bool:
            found.append(chunk)
            return False

        request = {
            "prompt": prompt(words),
            "n_predict": 1,
            "n_probs": _TOKENS,
            "temperature": 0.0,
            "cache_prompt": True,
            "id_slot": self._slot,
        }
        self._server.handle_completions(request, take)
        likeliest = found[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return end_probability((str(token["token"]), float(token["logprob"])) for token in likeliest)


def prompt(words: str) -> str:
    """What the model reads: the last words without what the listener put after them, as somebody's speech."""
    return _QUOTED + " ".join(words.split()[-_LAST_WORDS:]).rstrip(".,?!…-—").rstrip()


def end_probability(likeliest: Iterable[tuple[str, float]]) -> float:
    """The probability that the sentence is over, from the likeliest next tokens as (text, natural log probability)."""
    return min(1.0, sum(math.exp(logprob) for text, logprob in likeliest if _is_end(text)))


def _is_end(token: str) -> bool:
    return "\n" in token or token.startswith("<|") or token.strip().startswith(_ENDS)
