"""Does this machine keep up? Runs each default model briefly, for ``duplex doctor``.

The models run in a child process (``python -m duplex.cli_doctor_speed DIR NAME…``), which writes a line when it
begins a model and a line with its figures. A native library that dies on this machine, an instruction it lacks
for one, ends the child and not the doctor: the model begun last is to blame, and a new child goes on with the
rest. Part of the composition root: this module may import the model wrappers.
"""

from __future__ import annotations

import json
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

MARK = "@doctor "  # libraries may print on the child's standard output; ours are the marked lines
STALL_S = 90.0
SENTENCE = "The quick brown fox jumps over the lazy dog."
ORDER = ("piper-joe", "silero-vad", "smart-turn", "moonshine-tiny-en", "smollm2-135m")
"""The talker comes first: the others are given the speech it makes."""

Level = Literal["ok", "slow", "behind"]
"""``slow``: keeps up, but a conversation will drag. ``behind``: does not keep up with real time."""
Figures = Mapping[str, float | str]


@dataclass(frozen=True)
class Budget:
    """``aim``: what a good conversation needs. ``limit``: past it, real time is lost. ``figure`` names it."""

    figure: str
    aim: float
    limit: float
    more_is_better: bool = False

    def level(self, value: float) -> Level:
        if self.more_is_better:
            return "ok" if value >= self.aim else "slow" if value >= self.limit else "behind"
        return "ok" if value <= self.aim else "slow" if value <= self.limit else "behind"


# A window lasts 32 ms; people speak about 3 words, 4 tokens, a second; the listener's aim is a final text
# within 150 ms of being asked, and its limit the 3 s of speech themselves.
BUDGETS: Mapping[str, tuple[Budget, ...]] = {
    "silero-vad": (Budget("window_ms", 3.0, 24.0),),
    "smart-turn": (Budget("call_ms", 150.0, 1000.0),),
    "moonshine-tiny-en": (Budget("three_s_ms", 150.0, 3000.0),),
    "smollm2-135m": (
        Budget("first_token_ms", 200.0, 3000.0),
        Budget("tokens_per_s", 20.0, 5.0, more_is_better=True),
    ),
    "piper-joe": (Budget("times_real_time", 4.0, 1.0, more_is_better=True),),
}
_WORST: Mapping[Level, int] = {"ok": 0, "slow": 1, "behind": 2}


def judge(name: str, figures: Figures) -> tuple[Level, str, str]:
    """The level of a model's figures, the figures in words, and what was aimed at, in words."""
    level: Level = "ok"
    for budget in BUDGETS[name]:
        level = max(level, budget.level(float(figures[budget.figure])), key=_WORST.__getitem__)
    said = {
        "silero-vad": "{window_ms:.2f} ms per 32 ms window",
        "smart-turn": "{call_ms:.0f} ms per call",
        "moonshine-tiny-en": "{three_s_ms:.0f} ms for 3 s of speech",
        "smollm2-135m": "first token {first_token_ms:.0f} ms, {tokens_per_s:.0f} tokens/s",
        "piper-joe": "{times_real_time:.1f} × real time, first sound {first_sound_ms:.0f} ms",
    }[name].format(**figures)
    aims = [f"{'≥' if b.more_is_better else '≤'} {b.aim:g}" for b in BUDGETS[name]]
    return level, said, f"aim {', '.join(aims)}"


@dataclass(frozen=True)
class Outcome:
    """What came of one model: its figures, or a sentence about why there are none."""

    name: str
    figures: Figures | None
    error: str = ""


def measure(
    root: Path, names: Sequence[str], command: Callable[[Sequence[str]], list[str]] | None = None
) -> Iterator[Outcome]:
    """Outcomes for ``names`` (of :data:`ORDER`), as they come. ``root``: the model store's directory.

    ``command`` builds the child's command line for the names that are left; for tests.
    """
    build = command or (lambda left: [sys.executable, "-P", "-m", "duplex.cli_doctor_speed", str(root), *left])
    left = [name for name in ORDER if name in names]
    while left:
        begun, told = left[0], len(left)
        for line in _child_lines(build(left)):
            if isinstance(line, str):
                yield Outcome(begun, None, line)
                left.remove(begun)
            elif "begin" in line:
                begun = str(line["name"])
            else:
                yield Outcome(begun, line.get("figures"), str(line.get("error", "")))
                left.remove(begun)
                begun = left[0] if left else begun
        if len(left) == told:  # it ended in peace and told nothing: asking again would not help
            yield from (Outcome(name, None, "the process ended without a word") for name in left)
            return


def _child_lines(command: list[str]) -> Iterator[dict[str, Any] | str]:
    """The child's marked lines; a sentence at the end if it died or went silent before its time."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    lines: queue.Queue[str | None] = queue.Queue(maxsize=1000)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="doctor-reader", daemon=True).start()
    try:
        while (line := lines.get(timeout=STALL_S)) is not None:
            if line.startswith(MARK):
                yield json.loads(line.removeprefix(MARK))
        if code := process.wait():
            yield f"the process died ({_how(code)})"
    except queue.Empty:
        yield f"no answer in {STALL_S:g} s"
    finally:
        process.kill()
        process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}: this processor lacks an instruction the library uses" if name == "SIGILL" else name


# -- the child ----------------------------------------------------------------------------------------------


def _main(root: Path, names: Sequence[str]) -> None:
    speech_24k = np.zeros(0, dtype=np.float32)
    for name in names:
        _tell(name=name, begin=True)
        try:
            figures, made_24k = _PROBES[name](root / name, speech_24k)
        except Exception as error:  # whatever a broken library raises becomes a line, never a traceback
            _tell(name=name, error=" ".join(str(error).split()) or type(error).__name__)
            continue
        if len(made_24k):
            speech_24k = made_24k
        _tell(name=name, figures=figures)


def _tell(**line: object) -> None:
    print(f"\n{MARK}{json.dumps(line)}", flush=True)


Samples = np.ndarray[Any, np.dtype[np.float32]]
_NOTHING: Samples = np.zeros(0, dtype=np.float32)


def _median_ms(run: Callable[[], object], times: int) -> float:
    """Median of ``times`` runs after one that does not count, in milliseconds."""
    run()
    spent_s: list[float] = []
    for _ in range(times):
        began_s = time.perf_counter()
        run()
        spent_s.append(time.perf_counter() - began_s)
    return 1000 * statistics.median(spent_s)


def _three_seconds_16k(speech_24k: Samples) -> Samples:
    """Three seconds at 16 kHz, ending in a little silence: of speech if there is any, else of noise."""
    import soxr

    heard: Samples = np.zeros(48_000, dtype=np.float32)
    if len(speech_24k):
        last = soxr.resample(speech_24k, 24_000, 16_000).astype(np.float32)[-46_400:]
        heard[46_400 - len(last) : 46_400] = last
    else:
        heard[:46_400] = np.random.default_rng(0).normal(0, 0.05, 46_400)
    return heard


def _probe_silero(directory: Path, speech_24k: Samples) -> tuple[Figures, Samples]:
    from duplex.thinker_talker.silero import SileroModel

    stream = SileroModel(directory / "silero_vad.onnx").open()
    windows = iter(np.tile(_three_seconds_16k(speech_24k), 3)[: 201 * 512].reshape(201, 512))
    return {"window_ms": _median_ms(lambda: stream.push(next(windows)), 200)}, _NOTHING


def _probe_smart_turn(directory: Path, speech_24k: Samples) -> tuple[Figures, Samples]:
    from duplex.thinker_talker.smart_turn import SmartTurn

    model, heard = SmartTurn(directory / "smart-turn-v3.2-cpu.onnx"), _three_seconds_16k(speech_24k)
    return {"call_ms": _median_ms(lambda: model.probability_complete(heard), 3)}, _NOTHING


def _probe_moonshine(directory: Path, speech_24k: Samples) -> tuple[Figures, Samples]:
    from duplex.thinker_talker.moonshine import MoonshineModel

    model, heard = MoonshineModel(directory), _three_seconds_16k(speech_24k)
    spent_ms = _median_ms(lambda: model.recognize(heard), 3)
    return {"three_s_ms": spent_ms, "heard": model.recognize(heard).text}, _NOTHING


def _probe_llama(directory: Path, speech_24k: Samples) -> tuple[Figures, Samples]:
    from duplex.thinker_talker.cascade_options import CascadeOptions
    from duplex.thinker_talker.llama import LlamaThinker
    from duplex.thinker_talker.thinker import CollectingSink, Message, ThinkRequest

    class Timed(CollectingSink):
        first_s = 0.0

        def on_text(self, delta: str) -> None:
            self.first_s = self.first_s or time.perf_counter()
            super().on_text(delta)

    options = CascadeOptions()
    thinker = LlamaThinker(next(directory.glob("*.gguf")), sessions=1, threads=options.thinker_threads)
    try:
        session = thinker.open()
        first_ms, tokens_per_s = [], []
        # The first question fills the prompt cache with the instructions, as a session's start does.
        for question in ("Hello.", "What is the capital of France?", "Why is the sky blue?"):
            messages = (Message("system", options.instructions), Message("user", question))
            sink, began_s = Timed(), time.perf_counter()
            session.think(ThinkRequest(messages, max_tokens=24), sink).wait_over(STALL_S)
            if sink.error is not None:
                raise sink.error
            first_ms.append(1000 * (sink.first_s - began_s))
            spent_s = time.perf_counter() - sink.first_s
            if sink.usage is not None and sink.usage.reply_tokens > 4:
                tokens_per_s.append((sink.usage.reply_tokens - 1) / spent_s)
    finally:
        thinker.close()
    return {
        "first_token_ms": statistics.median(first_ms[1:]),
        "tokens_per_s": statistics.median(tokens_per_s[1:] or tokens_per_s),
    }, _NOTHING


def _probe_piper(directory: Path, speech_24k: Samples) -> tuple[Figures, Samples]:
    from duplex.thinker_talker.cascade_options import CascadeOptions
    from duplex.thinker_talker.piper import PiperSettings, PiperTalker
    from duplex.thinker_talker.talker import CollectingTalkSink, Speech

    class Timed(CollectingTalkSink):
        first_s = 0.0

        def on_speech(self, speech: Speech) -> None:
            self.first_s = self.first_s or time.perf_counter()
            super().on_speech(speech)

    settings = PiperSettings(threads=CascadeOptions().talker_threads)
    talker = PiperTalker(next(directory.glob("*.onnx")), settings=settings)
    try:
        talker.warm_up()
        first_ms, times = [], []
        for _ in range(3):
            sink, began_s = Timed(), time.perf_counter()
            utterance = talker.begin(sink)
            utterance.say(SENTENCE)
            utterance.end()
            while not sink.done and sink.error is None and time.perf_counter() < began_s + STALL_S:
                time.sleep(0.002)
            if sink.error is not None:
                raise sink.error
            first_ms.append(1000 * (sink.first_s - began_s))
            times.append(len(sink.samples) / 24_000 / (time.perf_counter() - began_s))
    finally:
        talker.close()
    return {"times_real_time": statistics.median(times), "first_sound_ms": statistics.median(first_ms)}, sink.samples


_PROBES: Mapping[str, Callable[[Path, Samples], tuple[Figures, Samples]]] = {
    "piper-joe": _probe_piper,
    "silero-vad": _probe_silero,
    "smart-turn": _probe_smart_turn,
    "moonshine-tiny-en": _probe_moonshine,
    "smollm2-135m": _probe_llama,
}

if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
