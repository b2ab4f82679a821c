"""How soon the embedded mind answers and the embedded voice sounds.

    python benchmarks/thinker_talker.py [--models DIR] [--json FILE] [--runs N]

Four tables, each p50 / p95 / n:

* thinker: transcript ready → first token, with a cold prompt cache, with the history cached, and with
  the user's words cached as well (``prefill`` on partial transcripts); → first clause; tokens per second.
* talker: clause given → first piece of speech, and → last, by clause length.
* chain: transcript ready → first speech of the reply, thinker, splitter and talker together.
* cancel: ``cancel()`` → the engine is free to begin the next reply.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from duplex.thinker_talker.cascade_options import DEFAULT_INSTRUCTIONS
from duplex.thinker_talker.clauses import ClauseSplitter
from duplex.thinker_talker.llama import LlamaSession, LlamaThinker
from duplex.thinker_talker.piper import PiperSettings, PiperTalker
from duplex.thinker_talker.talker import CollectingTalkSink, Speech
from duplex.thinker_talker.thinker import CollectingSink, Message, ThinkRequest

_SYSTEM = Message("system", DEFAULT_INSTRUCTIONS)
_HISTORY = (
    Message("user", "Hello there, how are you doing today?"),
    Message("assistant", "I'm doing well, thank you! How can I help you?"),
)
_QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue during the day?",
    "Can you tell me a fun fact about cats?",
    "What is the largest planet in our solar system?",
    "Who wrote Romeo and Juliet?",
    "What should I have for breakfast tomorrow?",
)
_CLAUSES = (
    "Sure,",
    "The capital of France",
    "The capital of France is Paris.",
    "I think that is a very good question indeed.",
    "Well, the weather today is sunny and warm, with a light breeze from the west.",
)
# "words": the partial transcript lacked the last word; "all": it was the final one already.
_WARMTHS = (("history", "history cached"), ("words", "all but last word cached"), ("all", "all words cached"))
Row = dict[str, object]


class _TimedThought(CollectingSink):
    """Notes when the first token and the first clause came; hands clauses on."""

    def __init__(self, on_clause: Callable[[str], None] = lambda _: None, on_end: Callable[[], None] = lambda: None):
        super().__init__()
        self._splitter = ClauseSplitter()
        self._on_clause, self._on_end = on_clause, on_end
        self.first_token_s = self.first_clause_s = self.last_token_s = 0.0

    def on_text(self, delta: str) -> None:
        self.last_token_s = time.perf_counter()
        self.first_token_s = self.first_token_s or self.last_token_s
        super().on_text(delta)
        self._pass_on(self._splitter.feed(delta))

    def on_done(self, reason: object, usage: object) -> None:
        super().on_done(reason, usage)  # type: ignore[arg-type]
        self._pass_on(self._splitter.flush())
        self._on_end()

    def _pass_on(self, clauses: list[str]) -> None:
        for clause in clauses:
            self.first_clause_s = self.first_clause_s or time.perf_counter()
            self._on_clause(clause)


class _TimedSpeech(CollectingTalkSink):
    def __init__(self) -> None:
        super().__init__()
        self.first_s = 0.0
        self.began = threading.Event()

    def on_speech(self, speech: Speech) -> None:
        self.first_s = self.first_s or time.perf_counter()
        super().on_speech(speech)
        self.began.set()


def _settle(session: LlamaSession) -> None:
    """Wait until the session's thread has nothing left to do (a prefill has no end of its own)."""
    while session._now is not None or session._next is not None:
        time.sleep(0.002)


def _prepare(session: LlamaSession, question: str, warm: str) -> tuple[Message, ...]:
    """The prompt cache as it would be when the transcript is ready; returns the messages to ask."""
    if warm != "cold":
        session.prefill((_SYSTEM, *_HISTORY))
        _settle(session)
    if warm in ("words", "all"):
        heard = question if warm == "all" else question.rsplit(" ", 1)[0]
        session.prefill((_SYSTEM, *_HISTORY, Message("user", heard)))
        _settle(session)
    return (_SYSTEM, *_HISTORY, Message("user", question))


def bench_thinker(thinker: LlamaThinker, runs: int) -> list[Row]:
    rows: list[Row] = []
    session = thinker.open()
    for warm, title in (("cold", "cold cache"), *_WARMTHS):
        first: list[float] = []
        clause: list[float] = []
        rate: list[float] = []
        for run in range(runs):
            question = _QUESTIONS[run % len(_QUESTIONS)]
            if warm == "cold":  # something else in the slot: nothing in common but the template's first token
                other = ThinkRequest((Message("system", f"{run} Be silent."), Message("user", "x")), max_tokens=1)
                saved, thinker.examples = thinker.examples, ()
                session.think(other, CollectingSink()).wait_over()
                thinker.examples = saved
            messages = _prepare(session, question, warm)
            sink = _TimedThought()
            begin = time.perf_counter()
            session.think(ThinkRequest(messages, max_tokens=40, seed=run), sink).wait_over()
            first.append((sink.first_token_s - begin) * 1e3)
            clause.append((sink.first_clause_s - begin) * 1e3)
            if len(sink.texts) > 2:
                rate.append((len(sink.texts) - 1) / (sink.last_token_s - sink.first_token_s))
        rows.append(_row(f"thinker: first token, {title}", "ms", first))
        rows.append(_row(f"thinker: first clause, {title}", "ms", clause))
        if warm == "all":
            rows.append(_row("thinker: tokens per second", "1/s", rate))
    session.close()
    session.join()
    return rows


def bench_talker(talker: PiperTalker, runs: int) -> list[Row]:
    rows: list[Row] = []
    for clause in _CLAUSES:
        first, total, length = [], [], 0.0
        for _ in range(runs):
            sink = _TimedSpeech()
            begin = time.perf_counter()
            utterance = talker.begin(sink)
            utterance.say(clause)
            utterance.end()
            utterance.wait_over()
            first.append((sink.first_s - begin) * 1e3)
            total.append((time.perf_counter() - begin) * 1e3)
            length = len(sink.samples) / 24
        words = len(clause.split())
        rows.append(_row(f"talker: first speech, {words} words", "ms", first))
        rows.append(_row(f"talker: whole clause, {words} words ({length:.0f} ms of speech)", "ms", total))
    return rows


def bench_chain(thinker: LlamaThinker, talker: PiperTalker, runs: int) -> list[Row]:
    rows: list[Row] = []
    session = thinker.open()
    for warm, title in _WARMTHS:
        taken = []
        for run in range(runs):
            messages = _prepare(session, _QUESTIONS[run % len(_QUESTIONS)], warm)
            speech = _TimedSpeech()
            begin = time.perf_counter()
            utterance = talker.begin(speech)
            thought = session.think(
                ThinkRequest(messages, max_tokens=40, seed=run), _TimedThought(utterance.say, utterance.end)
            )
            thought.wait_over()
            utterance.wait_over()
            if speech.first_s:
                taken.append((speech.first_s - begin) * 1e3)
        rows.append(_row(f"chain: transcript to first speech, {title}", "ms", taken))
    session.close()
    session.join()
    return rows


def bench_cancel(thinker: LlamaThinker, runs: int) -> list[Row]:
    session = thinker.open()
    taken = []
    for run in range(runs):
        begun = threading.Event()

        class Sink(CollectingSink):
            def on_text(self, delta: str, begun: threading.Event = begun) -> None:
                begun.set()

        story = ThinkRequest((_SYSTEM, Message("user", "Tell me a long story.")), max_tokens=300, seed=run)
        thought = session.think(story, Sink())
        begun.wait()
        begin = time.perf_counter()
        thought.cancel()
        _settle(session)
        taken.append((time.perf_counter() - begin) * 1e3)
    session.close()
    session.join()
    return [_row("cancel: thinker free again", "ms", taken)]


def _row(what: str, unit: str, values: list[float]) -> Row:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"what": what, "unit": unit, "p50": statistics.median(ordered), "p95": p95, "n": len(ordered)}


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f} at start, Python {platform.python_version()}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="duplex bench thinker_talker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, help="directory of model entries (default: the models cache)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--runs", type=int, default=18)
    parser.add_argument("--thinker-threads", type=int, default=None)
    parser.add_argument("--talker-threads", type=int, default=PiperSettings().threads)
    args = parser.parse_args(argv)
    machine = _machine()
    print(machine)
    if args.models is None:
        from duplex.weights import ModelStore

        store = ModelStore()
        thinker_dir, talker_dir = store.path("smollm2-135m"), store.path("piper-joe")
    else:
        thinker_dir, talker_dir = args.models / "smollm2-135m", args.models / "piper-joe"
    begin = time.perf_counter()
    thinker = LlamaThinker(
        thinker_dir / "SmolLM2-135M-Instruct.Q4_1.gguf", sessions=2, context_tokens=1024, threads=args.thinker_threads
    )
    thinker.warm_up()
    middle = time.perf_counter()
    talker = PiperTalker(talker_dir / "en_US-joe-medium.onnx", settings=PiperSettings(threads=args.talker_threads))
    talker.warm_up()
    end = time.perf_counter()
    rows: list[Row] = [
        _row("load and warm up: thinker", "ms", [(middle - begin) * 1e3]),
        _row("load and warm up: talker", "ms", [(end - middle) * 1e3]),
    ]
    rows += bench_thinker(thinker, args.runs)
    rows += bench_talker(talker, args.runs)
    rows += bench_chain(thinker, talker, args.runs)
    rows += bench_cancel(thinker, args.runs)
    talker.close()
    thinker.close()
    print(f"{'':60} {'p50':>8} {'p95':>8} {'n':>4}")
    for row in rows:
        print(f"{row['what']:60} {row['p50']:8.1f} {row['p95']:8.1f} {row['n']:4} {row['unit']}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
