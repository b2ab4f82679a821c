"""Full-Duplex-Bench's files on disk: where its samples are, what they hold, and whether it fits the sound.

    DATA_DIR/candor_pause_handling/12/input.wav            what the user says, streamed in real time
                                      pause.json           an annotation, named after the task
                                      output.wav           what the agent said meanwhile, same length and rate
                                      output.json          its words with their times, from a speech recogniser
                                      output.events.jsonl  what the server reported (ours)

Names and formats are those of github.com/DanielLin94144/Full-Duplex-Bench, ``v1_v1.5/dataset/README.md`` and
the scripts in ``v1_v1.5/evaluation``. Nothing here trusts a file: what is missing, malformed or beyond the end of
the sound is a :class:`SampleError` that names the file and the field, and concerns that sample alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from duplex.errors import DuplexError
from duplex.frames import Samples

CLEAN = "clean_"
EDGE_S = 0.05
"""Annotations are rounded, so this far beyond the end of the sound is still its end."""
LENGTH_S = 0.1
"""Other programs end on a whole frame of theirs (up to 80 ms), so an output may be off by that much."""
WORD_EDGE_S = 1.0
"""A recogniser that puts its last word this far beyond the end is imprecise; further, it heard another file."""

TaskName = Literal["pause_handling", "backchannel", "smooth_turn_taking", "user_interruption", "overlap"]

ANNOTATIONS: Mapping[TaskName, str | None] = {
    "pause_handling": "pause.json",
    "backchannel": None,
    "smooth_turn_taking": "turn_taking.json",
    "user_interruption": "interrupt.json",
    "overlap": "metadata.json",
}
"""Task → its annotation. The first four are v1.0; ``overlap`` is each of the four subsets of v1.5."""

TASK_NAMES: Mapping[str, TaskName] = {
    **{name: name for name in ANNOTATIONS},
    "user_backchannel": "overlap",
    "talking_to_other": "overlap",
    "background_speech": "overlap",
}
"""What ``--task`` takes. ``user_interruption`` is in both versions; its annotation tells which."""


class SampleError(DuplexError):
    """One sample cannot be run or scored. ``file`` is the one to look at, ``field`` the place in it, if any."""

    def __init__(self, file: Path, problem: str, field: str | None = None) -> None:
        self.file, self.field = file, field
        super().__init__(f"{file}{f': {field}' if field else ''}: {problem}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One directory with an ``input.wav``; ``prefix`` is ``clean_`` for the recording without the overlap (v1.5)."""

    directory: Path
    prefix: str = ""

    @property
    def input(self) -> Path:
        return self.directory / f"{self.prefix}input.wav"

    @property
    def output(self) -> Path:
        return self.directory / f"{self.prefix}output.wav"

    @property
    def words(self) -> Path:
        return self.directory / f"{self.prefix}output.json"

    @property
    def events(self) -> Path:
        return self.directory / f"{self.prefix}output.events.jsonl"

    @property
    def intervals(self) -> Path:
        return self.directory / f"{self.prefix}latency_intervals.json"

    def __str__(self) -> str:
        return f"{self.directory.parent.name}/{self.directory.name}{' (clean)' if self.prefix else ''}"


def find_samples(data_dir: Path, *, clean: bool = False) -> list[Sample]:
    """Every sample at or below ``data_dir``, subset by subset, numbers in order of their value.

    With ``clean`` each is followed by its recording without the overlap, where there is one. Raises ``DuplexError``
    if there is none at all.
    """
    if not data_dir.is_dir():
        raise DuplexError(f"{data_dir} is not a directory. Give one with samples, such as …/candor_pause_handling")
    directories = sorted({path.parent for path in data_dir.rglob("input.wav")}, key=_in_order)
    found = []
    for directory in directories:
        found.append(Sample(directory))
        if clean and Sample(directory, CLEAN).input.is_file():
            found.append(Sample(directory, CLEAN))
    if not found:
        raise DuplexError(f"There is no input.wav in {data_dir} or below it. The layout is SUBSET/ID/input.wav")
    return found


def subsets(samples: Sequence[Sample]) -> dict[Path, list[Sample]]:
    """Samples by the directory that holds them, in order."""
    found: dict[Path, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.directory.parent, []).append(sample)
    return found


def task_of(subset: Path, samples: Sequence[Sample], asked: str | None = None) -> TaskName:
    """The task of a subset: what was ``asked`` for, or else what its annotations and its name say.

    Raises ``DuplexError`` if they say nothing.
    """
    have = {name for name, file in ANNOTATIONS.items() if file and any((s.directory / file).exists() for s in samples)}
    if asked is not None:
        task = TASK_NAMES[asked]
        both = task == "user_interruption" and "overlap" in have and "user_interruption" not in have
        return "overlap" if both else task
    for name in ("overlap", "user_interruption", "smooth_turn_taking", "pause_handling"):
        if name in have:
            return TASK_NAMES[name]
    if "backchannel" in subset.name:
        return "backchannel"
    raise DuplexError(f"{subset} has no annotations that tell what it is about. Say --task {' | '.join(TASK_NAMES)}")


# --- sound ---------------------------------------------------------------------------------------------


def read_sound(path: Path) -> tuple[Samples, int]:
    """Mono float32[n] and its rate; channels are averaged. Raises :class:`SampleError`."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:  # soundfile's own error is a RuntimeError
        raise SampleError(path, "is not there" if not path.exists() else f"cannot be read: {error}") from error
    if not len(samples):
        raise SampleError(path, "has no sound in it")
    return np.asarray(samples.mean(axis=1), dtype=np.float32), int(rate)


def duration_s(path: Path) -> float:
    """Length of a sound file. Raises :class:`SampleError`."""
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError) as error:
        raise SampleError(path, "is not there" if not path.exists() else f"cannot be read: {error}") from error
    return float(info.frames) / float(info.samplerate)


def is_answered(sample: Sample) -> bool:
    """Whether there is an output as long as the input, so that a run may pass the sample over."""
    try:
        return abs(duration_s(sample.output) - duration_s(sample.input)) <= LENGTH_S
    except SampleError:
        return False


def check_output(sample: Sample) -> None:
    """Raises :class:`SampleError` unless the output is there and as long as the input."""
    if not sample.output.exists():
        raise SampleError(sample.output, "is not there yet. Make it with: duplex bench fdb run")
    asked_s, answered_s = duration_s(sample.input), duration_s(sample.output)
    if abs(asked_s - answered_s) > LENGTH_S:
        raise SampleError(
            sample.output, f"is {answered_s:.2f} s long and {sample.input.name} {asked_s:.2f} s; they must be aligned"
        )


# --- annotations ------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Raises :class:`SampleError` if it is not there or not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SampleError(path, "is not there") from error
    except (OSError, ValueError) as error:
        raise SampleError(path, f"is not JSON: {error}") from error


def read_spans(sample: Sample, task: TaskName) -> list[tuple[float, float]]:
    """The annotated stretches of ``sample``, seconds, each checked against the length of the input.

    v1.0: ``[i].timestamp`` of a list with at least one item; v1.5: ``timestamps``. Empty for backchannel, which is
    not annotated. Raises :class:`SampleError`.
    """
    file = ANNOTATIONS[task]
    if file is None:
        return []
    path = sample.directory / file
    found, length_s = read_json(path), duration_s(sample.input)
    if task == "overlap":
        if not isinstance(found, dict) or "timestamps" not in found:
            raise SampleError(path, "is missing; it should be [start, end] in seconds", "timestamps")
        return [_span(path, "timestamps", found["timestamps"], length_s, sample.input.name)]
    if not isinstance(found, list) or not found:
        raise SampleError(path, 'should be a list like [{"timestamp": [start, end], …}]')
    return list(_items(path, found, length_s, sample.input.name))


def _items(path: Path, found: Sequence[Any], length_s: float, sound: str) -> Iterator[tuple[float, float]]:
    for index, item in enumerate(found):
        if not isinstance(item, dict) or "timestamp" not in item:
            raise SampleError(path, "is missing; it should be [start, end] in seconds", f"[{index}].timestamp")
        yield _span(path, f"[{index}].timestamp", item["timestamp"], length_s, sound)


def _span(path: Path, field: str, value: Any, length_s: float, sound: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_number(edge) for edge in value):
        raise SampleError(path, f"should be two numbers [start, end], not {json.dumps(value)[:60]}", field)
    start, end = float(value[0]), float(value[1])
    if start < 0 or end < start:
        raise SampleError(path, f"runs from {start:g} to {end:g} s, which is no stretch of time", field)
    if end > length_s + EDGE_S:
        raise SampleError(path, f"ends at {end:g} s, but {sound} is {length_s:.2f} s long", field)
    return start, end


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _in_order(directory: Path) -> tuple[Path, int, str]:
    return directory.parent, int(directory.name) if directory.name.isdecimal() else 1 << 62, directory.name
