"""The turn-state predictor on recordings, without a call: what it decides, and when.

A recording is heard once by the real models (voice activity for every window; the end-of-turn model and the
listener where the predictor asks, memorised by place). After that any settings can be tried on it in
milliseconds: the predictor is pure, and answers reach it as late as they do on a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import soxr

from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import Span
from duplex.thinker_talker.ear import WINDOW_PTS
from duplex.thinker_talker.evidence import Pause
from duplex.thinker_talker.intonation import pitch_hz
from duplex.thinker_talker.llama import LlamaThinker
from duplex.thinker_talker.moonshine import MoonshineModel
from duplex.thinker_talker.predictor import Ask, HeardWindow, OurSide, TurnPredictor
from duplex.thinker_talker.silero import SILERO_RATE_HZ, WINDOW_SAMPLES, SileroModel
from duplex.thinker_talker.smart_turn import SmartTurn
from duplex.thinker_talker.turn_options import TurnOptions
from duplex.turn import Floor, User
from duplex.weights import ModelStore

PROSODY_LATENCY_S = 0.06  # as measured on two cores: duplex bench voice
WORDS_LATENCY_S = 0.08
EXPECTATION_LATENCY_S = 0.06
LOOK_S = 0.35  # by then every model has answered
BEFORE_S, AFTER_S = 0.5, 3.0  # silence around what was said
_LATENCY_S = {
    Ask.PROSODY: PROSODY_LATENCY_S,
    Ask.FINAL: WORDS_LATENCY_S,
    Ask.PARTIAL: WORDS_LATENCY_S,
    Ask.EXPECTATION: EXPECTATION_LATENCY_S,
}
_LISTENING, _SPEAKING = OurSide(Floor.LISTENING), OurSide(Floor.SPEAKING)


@dataclass(frozen=True, slots=True)
class Spoken:
    """Something said: float32[n] at 24 kHz. ``pauses``: mid-turn pauses, ms; ``end_ms``: its last voiced sample."""

    name: str
    samples: Samples
    end_ms: float
    pauses: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """A pause as it was known ``LOOK_S`` into it, and whether it was the end."""

    pause: Pause
    is_end: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the predictor did with it. ``taken``: the pauses in which it called the turn complete.

    ``delay_s``: from the last voiced sample to "complete"; None if it never came in 3 s.
    """

    spoken: Spoken
    taken: tuple[Span, ...]
    delay_s: float | None
    moments: tuple[Moment, ...]


class Models:
    """The real ones, loaded once; about 300 MB and two seconds. Close it."""

    def __init__(self, store: ModelStore | None = None) -> None:
        store = store or ModelStore()
        self.voice = SileroModel(store.path("silero-vad") / "silero_vad.onnx")
        self.prosody = SmartTurn(store.path("smart-turn") / "smart-turn-v3.2-cpu.onnx")
        self.listener = MoonshineModel(store.path("moonshine-tiny-en"))
        gguf = next(store.path("smollm2-135m").glob("*.gguf"))
        self._thinker = LlamaThinker(gguf, sessions=1, context_tokens=512, threads=1)
        assert self._thinker.expectation is not None
        self.expectation = self._thinker.expectation

    def close(self) -> None:
        self._thinker.close()


@dataclass(slots=True)
class Heard:
    """A recording as the models hear it: every window, and each answer once it was asked for."""

    spoken: Spoken
    models: Models
    windows: list[HeardWindow]
    samples_16k: Samples
    _prosody: dict[tuple[int, int], float] = field(default_factory=dict)
    _words: dict[tuple[int, int, bool], tuple[str, float | None]] = field(default_factory=dict)
    _expected: dict[str, float] = field(default_factory=dict)

    def prosody(self, from_pts: int, to_pts: int) -> float:
        key = (from_pts, to_pts)
        if key not in self._prosody:
            self._prosody[key] = self.models.prosody.probability_complete(self._between(*key))
        return self._prosody[key]

    def words(self, from_pts: int, to_pts: int, *, commands: bool = False) -> tuple[str, float | None]:
        """The words, and how likely a sentence ends with them."""
        key = (from_pts, to_pts, commands)
        if key not in self._words:
            recognised = self.models.listener.recognize(self._between(from_pts, to_pts), commands=commands)
            self._words[key] = self.models.listener.text(recognised.tokens), recognised.ended
        return self._words[key]

    def expected(self, words: str) -> float:
        if words not in self._expected:
            self._expected[words] = self.models.expectation.probability(words)
        return self._expected[words]

    def _between(self, from_pts: int, to_pts: int) -> Samples:
        first, last = (pts * SILERO_RATE_HZ // SAMPLE_RATE_HZ for pts in (from_pts, to_pts))
        return self.samples_16k[max(0, first - 12 * WINDOW_SAMPLES) : last]


def hear(spoken: Spoken, models: Models) -> Heard:
    """Runs voice activity and pitch over it, with silence before and after."""
    quiet = [np.zeros(round(s * SAMPLE_RATE_HZ), dtype=np.float32) for s in (BEFORE_S, AFTER_S)]
    sound = np.concatenate([quiet[0], spoken.samples, quiet[1]])
    heard = soxr.resample(sound, SAMPLE_RATE_HZ, SILERO_RATE_HZ).astype(np.float32)
    stream = models.voice.open()
    windows: list[HeardWindow] = []
    for index in range(len(heard) // WINDOW_SAMPLES):
        window = heard[index * WINDOW_SAMPLES : (index + 1) * WINDOW_SAMPLES]
        [probability] = stream.push(window)
        level = 10.0 * float(np.log10(np.dot(window, window) / WINDOW_SAMPLES + 1e-12))
        pitch = pitch_hz(window) if probability > 0.3 else None
        windows.append(HeardWindow((index + 1) * WINDOW_PTS, WINDOW_PTS, probability, level, pitch_hz=pitch))
    return Heard(spoken, models, windows, heard)


def decide(heard: Heard, options: TurnOptions) -> Outcome:
    """What the predictor decides with these options."""
    predictor = TurnPredictor(options)
    complete_at: list[int] = []
    moments: list[Moment] = []
    looked_at = -1
    end_pts = round((BEFORE_S + heard.spoken.end_ms / 1000.0) * SAMPLE_RATE_HZ)
    for step in _steps(heard, predictor, _LISTENING, unasked=Ask.PARTIAL, commands=False):
        now_pts = step.window.end_pts
        if step.states[-1] is User.TURN_COMPLETE:
            complete_at.append(now_pts)
        voiced_pts = predictor.last_voiced_pts
        if voiced_pts is not None and voiced_pts != looked_at and predictor.quiet_s >= LOOK_S:
            looked_at = voiced_pts
            if (pause := predictor.pause()) is not None:
                moments.append(Moment(pause, now_pts > end_pts))
    times_ms = np.array(complete_at, dtype=float) * 1000.0 / SAMPLE_RATE_HZ - BEFORE_S * 1000.0
    taken = tuple(p for p in heard.spoken.pauses if np.any((times_ms > p.start_ms) & (times_ms < p.end_ms)))
    after = times_ms[times_ms >= heard.spoken.end_ms]
    delay_s = float(after[0] - heard.spoken.end_ms) / 1000.0 if len(after) else None
    return Outcome(heard.spoken, taken, delay_s, tuple(moments))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What speech over our own voice was taken for, when (s after its first sample), and the words it rests on."""

    user: User
    at_s: float
    words: str


def judge_overlap(heard: Heard, options: TurnOptions) -> Verdict:
    """The same, said while we speak: the first decision about it, or the last state if there was none."""
    decided = (User.INTERRUPTING, User.BACKCHANNEL, User.NOT_ADDRESSED)
    user, words = User.IDLE, ""
    for step in _steps(heard, TurnPredictor(options), _SPEAKING, unasked=Ask.PROSODY, commands=True):
        words, user = step.words, step.states[-1]
        for state in step.states:
            if state in decided:
                return Verdict(state, step.window.end_pts / SAMPLE_RATE_HZ - BEFORE_S, words)
    return Verdict(user, float("nan"), words)


@dataclass(frozen=True, slots=True)
class _Step:
    """A window, the states after it and after each answer that had come by then, and the words of the last answer."""

    window: HeardWindow
    states: tuple[User, ...]
    words: str


def _steps(heard: Heard, predictor: TurnPredictor, ours: OurSide, *, unasked: Ask, commands: bool) -> Iterator[_Step]:
    """Drives ``predictor`` over the recording. Answers come as late as on a call; ``unasked`` gets none."""
    due: list[tuple[int, Ask, int, int]] = []  # (when the answer comes, to what, from, up to)
    began, words = 0, ""
    for window in heard.windows:
        states = [predictor.window(window, ours)]
        for _edge, pts in predictor.edges:
            began = began or pts
        predictor.edges.clear()
        for answer in [answer for answer in due if answer[0] <= window.end_pts]:
            due.remove(answer)
            _, ask, from_pts, to_pts = answer
            if ask is Ask.PROSODY:
                predictor.prosody(heard.prosody(from_pts, to_pts), to_pts)
            elif ask is Ask.EXPECTATION:
                pause = predictor.pause()
                if pause is not None and pause.words:
                    predictor.expectation(heard.expected(pause.words), to_pts)
            else:
                words, ended = heard.words(from_pts, to_pts, commands=commands)
                predictor.transcript(words, final=ask is Ask.FINAL, asked_pts=to_pts, ended=ended)
            states.append(predictor.review(ours))
        due += [
            (window.end_pts + round(_LATENCY_S[ask] * SAMPLE_RATE_HZ), ask, began, window.end_pts)
            for ask in predictor.asks
            if ask is not unasked
        ]
        predictor.asks.clear()
        yield _Step(window, tuple(states), words)


@dataclass(frozen=True, slots=True)
class Score:
    """``takeover``: share of pauses taken for an end. ``delay_s``: of the ends, sorted. ``missed``: ends not seen."""

    takeover: float
    pauses: int
    delay_s: tuple[float, ...]
    missed: int

    def delay(self, quantile: float) -> float:
        """The observation at that rank, or the next higher one."""
        return float(np.percentile(self.delay_s, quantile, method="higher")) if self.delay_s else float("nan")


def score(outcomes: Sequence[Outcome]) -> Score:
    pauses = sum(len(o.spoken.pauses) for o in outcomes)
    taken = sum(len(o.taken) for o in outcomes)
    delays = sorted(o.delay_s for o in outcomes if o.delay_s is not None)
    return Score(taken / pauses if pauses else 0.0, pauses, tuple(delays), sum(o.delay_s is None for o in outcomes))
