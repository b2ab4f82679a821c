"""Piper voices as a talker: clause by clause, first sound early, a place for every word.

Theory of operation. One thread does all synthesis. For each clause it runs the voice's first half
once (text to latent frames with durations; see ``piper_graph``), which also settles where each word
will lie, then the second half piece by piece, short pieces first. After each piece it serves the
utterance with the least speech so far. Cancelling therefore takes effect within a piece (~10-40 ms).

What happens to the sound: the silence Piper puts around a clause is cut to a few milliseconds and
replaced by a gap that fits the punctuation; both ends are faded; a fixed gain, measured once when the
voice is loaded, brings speech to ``level_dbfs`` (scaling each clause by its own peak, as Piper does by
default, makes short clauses jump out); rare peaks are rounded off instead of clipped; and a streaming
resampler takes the voice's rate to 24 kHz.

piper-tts is GPL-3.0; it is imported only here and only when a Piper voice is asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from duplex.agent import Word
from duplex.errors import (
    AgentFaultError,
    ConfigError,
    DuplexError,
    MissingDependencyError,
    WeightsCorruptError,
    WeightsMissingError,
)
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.rates import StreamResampler

from .clauses import ClauseLimits
from .piper_graph import Latents, PiperGraph, piece_edges
from .supervised import SupervisedThread
from .talker import Speech, TalkGate, TalkSink
from .word_spans import Span, word_spans

_MAX_WAITING_CLAUSES = 64
_FIRST_PIECE_FRAMES = 20  # 232 ms at 22.05 kHz: long enough to hide the making of the next piece
_LARGEST_PIECE_FRAMES = 80
_FADE_MS = 5.0
_LEAD_MS = 10.0  # silence kept before the first sound of a clause
_TAIL_MS = 30.0  # ... and after its last
_AUDIBLE = 0.003  # -50 dBFS, before gain
_CALIBRATION = "The quick brown fox jumps over the lazy dog, and then it rests for a while."
# Pause after a clause, by its last character.
_GAPS_MS = {",": 120.0, ";": 160.0, ":": 160.0, "—": 160.0, "–": 160.0, "…": 250.0, ".": 250.0, "!": 250.0, "?": 250.0}
_SPOKEN_CURRENCY = re.compile(r"^([\"'(]*)([$€£])(\d[\d,]*(?:\.\d+)?)([^\d]*)$")
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds"}
# espeak ends a sentence at the full stop of these.
_TITLES = {"dr.": "doctor", "mr.": "mister", "mrs.": "missis", "ms.": "miz", "prof.": "professor", "st.": "saint"}


@dataclass(frozen=True, slots=True)
class PiperSettings:
    """``speed`` 1.25 speaks a quarter faster. ``speaker``: index, for voices with several.
    ``level_dbfs``: RMS of active speech. ``threads``: CPU threads for one piece."""

    speed: float = 1.0
    speaker: int = 0
    level_dbfs: float = -20.0
    threads: int = 1  # 2 made no difference beside the thinker on two cores (paired, n=24)

    def __post_init__(self) -> None:
        if not 0.5 <= self.speed <= 2.0:
            raise ConfigError(f"talker speed must be between 0.5 and 2.0, got {self.speed}")
        if not -40.0 <= self.level_dbfs <= -12.0:
            raise ConfigError(f"talker level_dbfs must be between -40 and -12, got {self.level_dbfs}")
        if self.threads < 1:
            raise ConfigError(f"talker threads must be at least 1, got {self.threads}")


class PiperTalker:
    """The engine. Loading blocks for about two seconds; do it off the event loop.

    ``model_path``: the voice's ``.onnx``; its configuration is ``config_path``, by default the same
    name with ``.json`` appended.
    """

    def __init__(
        self, model_path: Path, config_path: Path | None = None, settings: PiperSettings | None = None
    ) -> None:
        self.settings = settings or PiperSettings()
        self._voice = _Voice(model_path, config_path or Path(f"{model_path}.json"), self.settings)
        self._work = threading.Condition()
        self._utterances: list[PiperUtterance] = []
        self._closed = False
        self._thread = SupervisedThread(self._run, "talker")
        self._thread.start()

    def begin(self, sink: TalkSink) -> PiperUtterance:
        with self._work:
            if self._closed:
                raise AgentFaultError("The talker is closed.")
            utterance = PiperUtterance(self, sink)
            self._utterances.append(utterance)
            return utterance

    def warm_up(self) -> None:
        """Says a clause of the greatest length, so that the memory it takes is not taken in a call, and a short one."""
        for text in (" ".join(["Hello, how are you?"] * (ClauseLimits().max_chars // 20)), "Hello, how are you?"):
            for _ in self._voice.speak(text):
                pass

    def close(self) -> None:
        with self._work:
            self._closed = True
            left = list(self._utterances)
            self._work.notify()
        for utterance in left:
            utterance.cancel()
        self._thread.join()

    def _changed(self) -> None:
        with self._work:
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._pick() is not None)
                if self._closed:
                    return
                chosen = self._pick()
            if chosen is not None and not chosen._advance(self._voice):
                with self._work, contextlib.suppress(ValueError):
                    self._utterances.remove(chosen)

    def _pick(self) -> PiperUtterance | None:
        ready = [u for u in self._utterances if u._has_work()]
        return min(ready, key=lambda u: u._pts) if ready else None


class PiperUtterance:
    """One reply. Clauses are spoken in order, each with the gap its predecessor's punctuation asks for."""

    def __init__(self, talker: PiperTalker, sink: TalkSink) -> None:
        self._talker = talker
        self._gate = TalkGate(sink)
        self._clauses: deque[str] = deque()
        self._ended = False
        self._pieces: Iterator[tuple[Samples, tuple[Word, ...]]] | None = None
        self._clause = ""
        self._gap_samples = 0
        self._pts = 0

    def say(self, clause: str) -> None:
        if self._ended:
            raise AgentFaultError("This utterance has ended; begin another.")
        if len(self._clauses) >= _MAX_WAITING_CLAUSES:
            raise AgentFaultError(f"{_MAX_WAITING_CLAUSES} clauses are already waiting to be spoken.")
        self._clauses.append(clause)
        self._talker._changed()

    def end(self) -> None:
        self._ended = True
        self._talker._changed()

    def cancel(self) -> None:
        self._gate.close()
        self._clauses.clear()
        self._talker._changed()

    @property
    def live(self) -> bool:
        return self._gate.live

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Block until done, failed or cancelled. For tests, benchmarks and scripts."""
        return self._gate.wait_over(timeout_s)

    # -- on the talker's thread --------------------------------------------------------------------

    def _has_work(self) -> bool:
        return not self._gate.live or self._pieces is not None or bool(self._clauses) or self._ended

    def _advance(self, voice: _Voice) -> bool:
        """One piece of work. False when this utterance is over and may be forgotten."""
        try:
            if not self._gate.live:
                return False
            if self._pieces is None:
                return self._next_clause(voice)
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
                return True
            return self._emit(*piece)
        except DuplexError as error:
            fault = error
        except Exception as error:  # onnxruntime's and espeak's own errors have no common base
            fault = AgentFaultError(f"The voice failed on {self._clause!r}: {error}")
        self._gate.close(lambda sink: sink.on_error(fault))
        return False

    def _next_clause(self, voice: _Voice) -> bool:
        try:
            self._clause = self._clauses.popleft()
        except IndexError:
            if self._ended:
                self._gate.close(lambda sink: sink.on_done())
                return False
            return True
        self._pieces = voice.speak(self._clause)
        self._announce = self._clause
        return True

    def _emit(self, samples: Samples, words: tuple[Word, ...]) -> bool:
        """Pass a piece on. Its words count from the start of the clause; here they get their place."""
        clause, self._announce = self._announce, ""
        if clause:
            if self._gap_samples:
                samples = np.concatenate([np.zeros(self._gap_samples, np.float32), samples])
            self._clause_pts = self._pts + self._gap_samples
            self._gap_samples = gap_samples(clause)
        base = self._clause_pts
        placed = tuple(Word(w.text, base + w.start_samples, base + w.end_samples, w.estimated) for w in words)
        speech = Speech(samples, self._pts, placed, clause)
        self._pts = speech.end_pts
        return self._gate.speech(speech)

    _announce = ""  # text of the clause that has not sounded yet
    _clause_pts = 0


def gap_samples(clause: str) -> int:
    """The pause after ``clause``, in samples at 24 kHz; 0 where it was cut without punctuation."""
    last = clause.rstrip(" \"')]”’")[-1:]
    return round(_GAPS_MS.get(last, 0.0) * SAMPLE_RATE_HZ / 1000)


class _Voice:
    """Text to sound, one clause at a time, on one thread."""

    def __init__(self, model_path: Path, config_path: Path, settings: PiperSettings) -> None:
        try:
            import piper
            import piper.config
        except ImportError as error:
            raise MissingDependencyError("piper", "local") from error
        if not config_path.is_file():
            raise WeightsMissingError(f"{config_path} is not there. Run: duplex models pull")
        try:
            self.config: Any = piper.config.PiperConfig.from_dict(json.loads(config_path.read_text("utf-8")))
        except (ValueError, KeyError) as error:
            raise WeightsCorruptError(f"{config_path} is not a Piper voice's configuration: {error!r}") from error
        if not 0 <= settings.speaker < max(1, self.config.num_speakers):
            raise ConfigError(f"This voice has speakers 0 to {self.config.num_speakers - 1}, not {settings.speaker}")
        self.rate_hz = int(self.config.sample_rate)
        self.settings = settings
        self.graph = PiperGraph(model_path, threads=settings.threads, hop_samples=int(self.config.hop_length))
        # Only its phonemizer is used; the network runs in the two sessions of the graph.
        self._piper = piper.PiperVoice(session=None, config=self.config)
        self._pronounce = lru_cache(maxsize=4096)(self._phonemes)
        self.gain = 1.0
        self.gain = self._measure_gain()

    def speak(self, clause: str) -> Iterator[tuple[Samples, tuple[Word, ...]]]:
        """The clause as float32 pieces at 24 kHz, each with the words that begin in it. Positions count
        from the clause's first sample. A clause without anything to say gives nothing."""
        written = clause.split()
        spoken = [_spoken(w) for w in written]
        text = " ".join(spoken)
        if text and text[-1].isalnum():
            text += ","  # cut short of punctuation: keep the voice up, there is more to come
        phonemes = self._phonemes(text)
        if not any(p.isalpha() for p in phonemes):
            return
        ids, owners = self._ids(phonemes)
        latents = self._encode(ids)
        edges = np.concatenate([[0], np.cumsum(latents.durations)])
        spans = word_spans(spoken, phonemes, self._pronounce)
        yield from self._pieces(latents, written, spans, edges, owners)

    def _pieces(
        self, latents: Latents, written: list[str], spans: list[Span], edges: Any, owners: list[tuple[int, int]]
    ) -> Iterator[tuple[Samples, tuple[Word, ...]]]:
        hop = self.graph.hop_samples
        sounding = [s for s in spans if s.stop > s.start]
        first_frame = int(edges[owners[sounding[0].start][0]]) if sounding else 0
        last_frame = int(edges[owners[sounding[-1].stop - 1][1]]) if sounding else latents.n_frames
        # The durations are good to a frame or two: start early, end late, and let the sound itself decide.
        start = max(0, first_frame - 4)
        stop = min(latents.n_frames, last_frame + 12)
        trimmer = _Trimmer(self.rate_hz)
        resampler = StreamResampler(self.rate_hz, SAMPLE_RATE_HZ)
        ratio = SAMPLE_RATE_HZ / self.rate_hz
        waiting: deque[Word] | None = None
        sent = 0
        for a, b in piece_edges(start, stop, _FIRST_PIECE_FRAMES, _LARGEST_PIECE_FRAMES):
            last = b == stop
            sound = trimmer.take(self.graph.generate(latents, a, b), last=last)
            out = resampler.push(_soft(sound * np.float32(self.gain)))
            if last:
                out = np.concatenate([out, resampler.end()])
            if waiting is None and trimmer.started:
                origin = start * hop + trimmer.dropped
                waiting = deque(_place(written, spans, edges, owners, hop, origin, ratio))
            if waiting is None or not (len(out) or last):
                continue
            sent += len(out)
            words = []
            while waiting and (last or waiting[0].start_samples < sent):
                words.append(waiting.popleft())
            yield out, tuple(_within(w, sent) for w in words) if last else tuple(words)

    def _phonemes(self, text: str) -> list[str]:
        """One flat list for the clause, sentences joined by a space."""
        out: list[str] = []
        for sentence in self._piper.phonemize(text):
            if out:
                out.append(" ")
            out.extend(sentence)
        return out

    def _ids(self, phonemes: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Phoneme ids with Piper's padding, and for each phoneme its [start, stop) among them."""
        known = self.config.phoneme_id_map
        pad = list(known.get("_", [0]))
        ids = [*known["^"], *pad]
        owners: list[tuple[int, int]] = []
        for phoneme in phonemes:
            start = len(ids)
            if phoneme in known:
                ids += [*known[phoneme], *pad]
            owners.append((start, len(ids)))
        return [*ids, *known["$"]], owners

    def _encode(self, ids: list[int]) -> Latents:
        c = self.config
        scales = (c.noise_scale, c.length_scale / self.settings.speed, c.noise_w_scale)
        return self.graph.encode(ids, scales, self.settings.speaker)

    def _measure_gain(self) -> float:
        """The factor that takes this voice's active speech to the level asked for."""
        ids, _ = self._ids(self._phonemes(_CALIBRATION))
        latents = self._encode(ids)
        return gain_for(self.graph.generate(latents, 0, latents.n_frames), self.rate_hz, self.settings.level_dbfs)


class _Trimmer:
    """Cuts the silence around one clause and fades both ends. Streaming: holds back what may be tail."""

    def __init__(self, rate_hz: int) -> None:
        self._fade = round(_FADE_MS * rate_hz / 1000)
        self._lead = round(_LEAD_MS * rate_hz / 1000)
        self._tail = round(_TAIL_MS * rate_hz / 1000)
        self.started = False
        self.dropped = 0  # samples cut from the front
        self._held = np.zeros(0, np.float32)

    def take(self, sound: Samples, *, last: bool) -> Samples:
        sound = np.concatenate([self._held, sound])
        self._held = sound[:0]
        loud = np.flatnonzero(np.abs(sound) > _AUDIBLE)
        if not self.started:
            if not len(loud):
                self.dropped += len(sound)
                return sound[:0]
            cut = max(0, int(loud[0]) - self._lead)
            self.dropped += cut
            sound = sound[cut:].copy()
            loud = loud - cut
            self.started = True
            n = min(self._fade, len(sound))
            sound[:n] *= np.linspace(0, 1, n, endpoint=False, dtype=np.float32)
        end = min(len(sound), (int(loud[-1]) if len(loud) else 0) + self._tail)
        if last:
            sound = sound[:end].copy()
            n = min(self._fade, len(sound))
            sound[len(sound) - n :] *= np.linspace(1, 0, n, dtype=np.float32)
            return sound
        # A silence at the end of a piece may be the clause's tail: it is decided with the next piece.
        self._held = sound[end:]
        return sound[:end]


def _place(
    written: list[str],
    spans: list[Span],
    edges: Any,
    owners: list[tuple[int, int]],
    hop: int,
    origin: int,
    ratio: float,
) -> Iterator[Word]:
    """Words with their place in the clause, in samples at 24 kHz. ``origin``: the voice's sample that
    became the clause's first."""

    def at(frame: Any) -> int:
        return max(0, round((int(frame) * hop - origin) * ratio))

    cursor = 0
    for text, span in zip(written, spans, strict=True):
        if span.stop > span.start:
            begin, cursor = at(edges[owners[span.start][0]]), at(edges[owners[span.stop - 1][1]])
        else:
            begin = cursor
        yield Word(text, begin, max(begin, cursor), span.estimated)


def _within(word: Word, end: int) -> Word:
    """The same word, not past the end of its clause."""
    return Word(word.text, min(word.start_samples, end), min(word.end_samples, end), word.estimated)


def _spoken(word: str) -> str:
    """A written word as espeak should get it, where it would read it badly or split the sentence."""
    title = _TITLES.get(word.lower())
    if title is not None:
        return title
    money = _SPOKEN_CURRENCY.match(word)
    if money:
        before, sign, amount, after = money.groups()
        return f"{before}{amount} {_CURRENCIES[sign]}{after}"
    return word


def gain_for(sound: Samples, rate_hz: int, level_dbfs: float) -> float:
    """The factor that brings the active part of ``sound`` to ``level_dbfs`` RMS. Active: 20 ms windows
    within 30 dB of the loudest one. Never more than 20 dB up."""
    window = rate_hz // 50
    n = len(sound) // window
    power = np.square(sound[: n * window].reshape(n, window)).mean(axis=1) if n else np.zeros(1)
    active = power[power > power.max() * 1e-3]
    rms = float(np.sqrt(active.mean())) if len(active) else 0.0
    return min(10.0, 10 ** (level_dbfs / 20) / rms) if rms > 0 else 1.0


def _soft(sound: Samples, knee: float = 0.8) -> Samples:
    """Straight up to ``knee``, then a curve that never reaches 1."""
    over = np.abs(sound) > knee
    if not over.any():
        return sound
    rounded = np.sign(sound) * (knee + (1 - knee) * np.tanh((np.abs(sound) - knee) / (1 - knee)))
    return np.where(over, rounded, sound).astype(np.float32)
