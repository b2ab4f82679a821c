"""How quickly, and how well, the listener writes down what a person said.

    duplex bench listener [--repeat 10] [--json FILE]
    duplex bench listener --line telephone [--split reporting] [--levels=-20,-30,-40] [--plot PNG]

Speech is LibriVox (Sense and Sensibility), read by a person, with transcripts: Debian's
``pocketsphinx-testdata``. Latency is from ``request`` to ``on_result``, measured with the engine's own
threads, for 1, 3, 6 and 10 s of a reading:

    after a partial  a partial was answered 0.5 s of speech earlier: how a session uses it
    cold             nothing was asked before
    behind partial   another session's partial (8 s of speech) is being recognised: it has to give way
    library          the ``moonshine-voice`` package's own ``transcribe_without_streaming``, for comparison

With ``--line telephone`` it is what is understood that is measured, not how fast: the recordings of a split, wide and
over a telephone line (:mod:`duplex.benchmarks.narrowband`), at several levels, as a session hears them
(:mod:`duplex.benchmarks.listener_lines`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from duplex.benchmarks.listener_lines import word_errors
from duplex.benchmarks.narrowband import LINES, WIDE
from duplex.errors import ConfigError
from duplex.thinker_talker.listener import LISTENER_RATE_HZ, Listener, Samples16k, Transcript
from duplex.thinker_talker.moonshine import MoonshineListener
from duplex.weights import ModelStore

RECORDINGS = Path("/usr/share/pocketsphinx/test/data/librivox")
LENGTHS_S = (1, 3, 6, 10)
TIMEOUT_S = 60.0


def load_recordings(directory: Path) -> list[tuple[Samples16k, str]]:
    """Each reading (float32[n] at 16 kHz) with what was read."""
    index = directory / "transcription"
    if not index.is_file():
        raise ConfigError(
            f"No recordings in {directory}. Run: sudo apt-get install pocketsphinx-testdata, or give --recordings DIR"
        )
    readings = []
    for text, name in re.findall(r"<s> (.*?) </s> \((.*?)\)", index.read_text()):
        samples, rate_hz = soundfile.read(directory / f"{name}.wav", dtype="float32")
        assert rate_hz == LISTENER_RATE_HZ
        readings.append((samples, text))
    return readings


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("mr.", "mister"))


class Ear:
    """A stream whose answers are waited for."""

    def __init__(self, listener: Listener) -> None:
        self._told: queue.Queue[Transcript] = queue.Queue()
        self.stream = listener.open(self._told.put)

    def ask(self, kind: str, request_id: int = 0) -> Transcript:
        self.stream.request("final" if kind == "final" else "partial", request_id)
        return self.wait()

    def wait(self) -> Transcript:
        transcript = self._told.get(timeout=TIMEOUT_S)
        if transcript.error is not None:
            raise transcript.error
        return transcript


def final_after_a_partial(listener: Listener, audio: Samples16k) -> tuple[float, float]:
    """(the final's ms, the ms of the partial half a second before)"""
    ear = Ear(listener)
    before = max(len(audio) - LISTENER_RATE_HZ // 2, len(audio) // 2)
    ear.stream.push(audio[:before])
    ear.ask("partial")
    ear.stream.push(audio[before:])
    final_ms = ear.ask("final").elapsed_ms
    ear.stream.reset()
    ear.stream.push(audio[:before])
    partial_ms = ear.ask("partial").elapsed_ms
    ear.stream.close()
    return final_ms, partial_ms


def final_cold(listener: Listener, audio: Samples16k) -> float:
    ear = Ear(listener)
    ear.stream.push(audio)
    final_ms = ear.ask("final").elapsed_ms
    ear.stream.close()
    return final_ms


def final_behind_a_partial(listener: Listener, audio: Samples16k, other: Samples16k) -> float:
    busy, ear = Ear(listener), Ear(listener)
    busy.stream.push(other)
    ear.stream.push(audio)
    busy.stream.request("partial", 1)
    time.sleep(0.03)  # it is being recognised now
    final_ms = ear.ask("final").elapsed_ms
    busy.wait()  # answered in the end, too
    busy.stream.close()
    ear.stream.close()
    return final_ms


def library_call(directory: Path) -> Callable[[Samples16k], float] | None:
    """Times the package that carries the model, where it is installed."""
    try:
        from moonshine_voice import ModelArch, Transcriber
    except ImportError:
        return None
    transcriber = Transcriber(model_path=directory, model_arch=ModelArch.TINY)

    def call(audio: Samples16k) -> float:
        begun_s = time.perf_counter()
        transcriber.transcribe_without_streaming(audio, LISTENER_RATE_HZ)
        return (time.perf_counter() - begun_s) * 1000.0

    return call


def summary(values_ms: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(float(np.percentile(values_ms, 50)), 1),
        "p95_ms": round(float(np.percentile(values_ms, 95)), 1),
        "n": len(values_ms),
    }


def machine_line() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = found[1]
    load = os.getloadavg()[0]
    return f"{cpu}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def measure_latency(
    listener: Listener, library: Callable[[Samples16k], float] | None, speech: Samples16k, repeat: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By situation, then by length. The situations take turns, so that all suffer the same noise."""
    values: dict[str, dict[str, list[float]]] = {}

    def note(situation: str, length_s: int, value_ms: float) -> None:
        values.setdefault(situation, {}).setdefault(f"{length_s} s", []).append(value_ms)

    other = speech[: 8 * LISTENER_RATE_HZ]
    for turn in range(repeat):
        for length_s in LENGTHS_S:
            n = length_s * LISTENER_RATE_HZ
            start = (turn * 7 * LISTENER_RATE_HZ // 3) % (len(speech) - n)
            audio = speech[start : start + n]
            final_ms, partial_ms = final_after_a_partial(listener, audio)
            note("final, after a partial", length_s, final_ms)
            note("partial, cold", length_s, partial_ms)
            note("final, cold", length_s, final_cold(listener, audio))
            note("final, behind partial", length_s, final_behind_a_partial(listener, audio, other))
            if library is not None:
                note("library", length_s, library(audio))
    return {name: {length: summary(ms) for length, ms in rows.items()} for name, rows in values.items()}


def measure_words(listener: Listener, readings: list[tuple[Samples16k, str]]) -> dict[str, float]:
    """Word errors of the finals, each reading with a partial every 0.5 s before it."""
    errors = spoken = partials = 0
    partial_ms = 0.0
    for samples, text in readings:
        ear = Ear(listener)
        step = LISTENER_RATE_HZ // 2
        for start in range(0, len(samples), step):
            ear.stream.push(samples[start : start + step])
            partial_ms += ear.ask("partial").elapsed_ms
            partials += 1
        errors += word_errors(words(ear.ask("final").text), words(text))
        spoken += len(words(text))
        ear.stream.close()
    seconds = sum(len(samples) for samples, _ in readings) / LISTENER_RATE_HZ
    return {
        "word_error_rate": round(errors / spoken, 4),
        "word_errors": errors,
        "words": spoken,
        "partials": partials,
        "partial_mean_ms": round(partial_ms / partials, 1),
        "share_of_real_time": round(partial_ms / 1000.0 / seconds, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="duplex bench listener", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=10, help="measurements of each figure (default: 10)")
    parser.add_argument("--encoder-threads", type=int, default=1)
    parser.add_argument("--decoder-threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", type=Path, help="directory of Moonshine Tiny (default: the pulled one)")
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    lines = parser.add_argument_group("words on another line")
    lines.add_argument(
        "--line", choices=tuple(LINES), default=WIDE.name, help="beside a wide one (default: wide alone)"
    )
    lines.add_argument("--split", choices=("tuning", "reporting"), default="reporting")
    lines.add_argument("--levels", default="-20,-30,-40", metavar="DBFS,…", help="levels of speech (-20,-30,-40)")
    lines.add_argument(
        "--gain", action="store_true", help="the detector hears with thinker_talker/gain.py, as on one call"
    )
    lines.add_argument("--plot", type=Path, metavar="PNG")
    options = parser.parse_args(argv)
    if options.line != WIDE.name:
        from duplex.benchmarks.listener_report import measure_lines

        return measure_lines(options)

    readings = load_recordings(options.recordings)
    directory = options.model or ModelStore().path("moonshine-tiny-en")
    listener = MoonshineListener(
        directory,
        workers=options.workers,
        encoder_threads=options.encoder_threads,
        decoder_threads=options.decoder_threads,
    )
    listener.warm_up()
    machine = machine_line()
    latency = measure_latency(
        listener, library_call(directory), np.concatenate([samples for samples, _ in readings]), options.repeat
    )
    accuracy = measure_words(listener, readings)
    listener.close()

    print(machine)
    print(f"{'p50 / p95 ms':24s}" + "".join(f"{length} s".rjust(16) for length in LENGTHS_S))
    for situation, rows in latency.items():
        cells = (f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f}".rjust(16) for row in rows.values())
        print(f"{situation:24s}" + "".join(cells))
    print(f"n = {options.repeat} of each")
    print(
        f"word error rate {accuracy['word_error_rate']:.3f} ({accuracy['word_errors']} of {accuracy['words']}); "
        f"with a partial every 0.5 s: {accuracy['partial_mean_ms']} ms each, "
        f"{accuracy['share_of_real_time']:.0%} of real time"
    )
    if options.json:
        report = {"machine": machine, "latency": latency, "accuracy": accuracy}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
