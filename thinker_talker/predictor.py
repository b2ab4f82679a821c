"""The turn-state predictor: from evidence to what the user is doing, one 32 ms window at a time.

Theory of operation
-------------------
Pure and causal: windows of voice probability, end-of-turn probabilities and transcripts come in as
arguments, with the pts they speak of; a :class:`~duplex.turn.User` state comes out, and a list of what
to ask the models next. Nothing here waits, and nothing asks for the time.

Voice activity cuts the stream into *speech* and *pauses*. Who holds the floor decides what they mean:

* The floor is the user's. A pause starts speculation at once (PAUSED_INCOMPLETE) and asks two models:
  has the speaker finished, by ear (prosody) and by words? Their answers shorten or lengthen the silence
  that ends the turn (:meth:`TurnPredictor.silence_needed_s`); with no answer it is a plain timer.
* The floor is ours. Speech is an overlap: SPEAKING until its words, or its length, say which kind.
  "Stop" and words of content interrupt at once; so does an overlap that goes on. One that ends is judged
  by its words: encouragement, or nothing intelligible, hands the floor back to us.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from duplex.frames import SAMPLE_RATE_HZ
from duplex.turn import Floor, User

from .cascade_options import TurnOptions
from .lexicon import content_words, is_backchannel, is_hanging, says_stop


class Ask(Enum):
    """What the predictor wants to know next."""

    PARTIAL = "partial"  # words so far, when convenient
    FINAL = "final"  # words up to here, now
    PROSODY = "prosody"  # end-of-turn probability of the audio up to here


class Edge(Enum):
    STARTED = "started"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Stretch:
    """The user's turn in the making, or an overlap."""

    started_pts: int
    last_voiced_pts: int
    voiced_samples: int = 0
    peak_dbfs: float = -120.0  # of its loudest window
    overlap: bool = False  # it began over our own voice
    final_text: str | None = None  # words up to the current pause
    partial_text: str = ""
    confidence: float = 0.0
    prosody: float | None = None  # for the current pause
    prosody_asked: int = 0
    final_asked: bool = False
    last_partial_pts: int = 0
    interrupting: bool = False


@dataclass(slots=True)
class TurnPredictor:
    """One session's predictor. Feed it windows; read ``user``; take ``asks`` and ``edges`` (and clear them)."""

    options: TurnOptions = field(default_factory=TurnOptions)
    user: User = User.IDLE
    voice: bool = False
    asks: list[Ask] = field(default_factory=list)
    edges: list[tuple[Edge, int]] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)
    _stretch: _Stretch | None = None
    _onset: int = 0  # samples of voice not yet counted as speech
    _pts: int = 0

    # --- evidence in -----------------------------------------------------------------------------

    def window(self, end_pts: int, n_samples: int, probability: float, level_dbfs: float, floor: Floor) -> User:
        """One window of voice activity, ending at ``end_pts`` (24 kHz samples), ``n_samples`` long."""
        o = self.options
        self._pts = end_pts
        self.evidence["voice"] = probability
        ours = floor in (Floor.SPEAKING, Floor.HOLDING)
        threshold = o.overlap_threshold if ours else o.speech_threshold
        voiced = probability >= (o.silence_threshold if self.voice else threshold)
        if self._stretch is not None:
            self._stretch.peak_dbfs = max(self._stretch.peak_dbfs, level_dbfs)
            # The detector holds on for 50 to 150 ms after the voice is gone; its level does not.
            voiced = voiced and level_dbfs > self._stretch.peak_dbfs - o.silence_drop_db
        if voiced:
            self._voiced(end_pts, n_samples, ours)
        else:
            self._onset = 0
            if self.voice:
                self.voice = False
                assert self._stretch is not None
                self.edges.append((Edge.STOPPED, self._stretch.last_voiced_pts))
        self.user = self._judge(ours)
        return self.user

    def _voiced(self, end_pts: int, n_samples: int, ours: bool) -> None:
        stretch = self._stretch
        if not self.voice:
            self._onset += n_samples
            need_s = self.options.overlap_onset_s if ours and stretch is None else self.options.onset_s
            if self._onset < _samples(need_s) - 1:
                return
            self.voice = True
            if stretch is None:
                start = end_pts - self._onset
                stretch = self._stretch = _Stretch(start, end_pts, overlap=ours, last_partial_pts=start)
                self.edges.append((Edge.STARTED, start))
            else:
                stretch.final_text, stretch.prosody = None, None
                stretch.prosody_asked, stretch.final_asked = 0, False
                self.edges.append((Edge.STARTED, end_pts - self._onset))
            stretch.voiced_samples += self._onset - n_samples
            self._onset = 0
        assert stretch is not None
        stretch.voiced_samples += n_samples
        stretch.last_voiced_pts = end_pts

    def review(self, floor: Floor) -> User:
        """Judges again after new evidence, without waiting for the next window."""
        self.user = self._judge(floor in (Floor.SPEAKING, Floor.HOLDING))
        return self.user

    def prosody(self, probability: float, asked_pts: int) -> None:
        """The end-of-turn model's answer about audio up to ``asked_pts``; stale answers are ignored."""
        stretch = self._stretch
        if stretch is not None and not self.voice and asked_pts >= stretch.last_voiced_pts:
            stretch.prosody = probability
            self.evidence["prosody"] = probability

    def transcript(self, text: str, confidence: float, *, final: bool, asked_pts: int) -> bool:
        """The listener's answer about audio up to ``asked_pts``. True if it settles the current pause's words."""
        stretch = self._stretch
        if stretch is None:
            return False
        stretch.partial_text = text or stretch.partial_text
        stretch.confidence = confidence
        settles = final and not self.voice and asked_pts >= stretch.last_voiced_pts
        if settles:
            stretch.final_text = text
        return settles

    # --- decisions out ---------------------------------------------------------------------------

    def _judge(self, ours: bool) -> User:
        stretch = self._stretch
        if stretch is None:
            return User.IDLE
        if ours and not stretch.overlap:
            stretch.overlap = True
        if ours and not stretch.interrupting:
            return self._judge_overlap(stretch)
        return self._judge_turn(stretch)

    def _judge_turn(self, stretch: _Stretch) -> User:
        o = self.options
        if self.voice:
            self._ask_partial(stretch, o.partial_every_s)
            return User.SPEAKING
        quiet_s = self.quiet_s
        if quiet_s < o.pause_s - 1e-6:
            return User.SPEAKING
        if stretch.voiced_samples < _samples(o.min_turn_s) and quiet_s > o.decide_s:
            self.forget()
            return User.IDLE
        self._ask_final(stretch)
        if stretch.prosody_asked == 0 or self._ask_again(stretch, quiet_s):
            stretch.prosody_asked += 1
            self.asks.append(Ask.PROSODY)
        if quiet_s < self.silence_needed_s():
            return User.PAUSED_INCOMPLETE
        if stretch.final_text == "":
            self.forget()
            return User.NOT_ADDRESSED  # sound without words
        return User.TURN_COMPLETE

    def _ask_partial(self, stretch: _Stretch, every_s: float) -> None:
        if self._pts - stretch.last_partial_pts >= _samples(every_s):
            stretch.last_partial_pts = self._pts
            self.asks.append(Ask.PARTIAL)

    def _ask_final(self, stretch: _Stretch) -> None:
        if not stretch.final_asked:
            stretch.final_asked = True
            self.asks.append(Ask.FINAL)

    def _ask_again(self, stretch: _Stretch, quiet_s: float) -> bool:
        """Whether a second look may change the answer: the model was unsure, and has more silence to go by now."""
        o = self.options
        unsure = stretch.prosody is not None and stretch.prosody < o.complete_threshold
        return stretch.prosody_asked == 1 and unsure and quiet_s >= o.prosody_again_s

    def _judge_overlap(self, stretch: _Stretch) -> User:
        o = self.options
        voiced_s = stretch.voiced_samples / SAMPLE_RATE_HZ
        words = stretch.final_text if stretch.final_text is not None else stretch.partial_text
        if says_stop(words) or content_words(words) >= o.interrupt_words:
            return self._interrupt(stretch)
        if self.voice:
            if voiced_s >= o.interrupt_s and not is_backchannel(words):
                return self._interrupt(stretch)
            self._ask_partial(stretch, o.overlap_partial_s)
            return User.SPEAKING
        quiet_s = self.quiet_s
        if quiet_s < o.pause_s - 1e-6:
            return User.SPEAKING
        self._ask_final(stretch)
        if stretch.final_text is None:
            if quiet_s < o.decide_limit_s:
                return User.PAUSED_INCOMPLETE
            return self._interrupt(stretch) if voiced_s > o.backchannel_s else self._dismiss(User.BACKCHANNEL)
        if is_backchannel(stretch.final_text):
            return self._dismiss(User.BACKCHANNEL)
        if content_words(stretch.final_text) >= o.interrupt_words or voiced_s > o.backchannel_s:
            return self._interrupt(stretch)
        if quiet_s < o.decide_s:
            return User.PAUSED_INCOMPLETE
        return self._dismiss(User.BACKCHANNEL if stretch.final_text else User.NOT_ADDRESSED)

    def _interrupt(self, stretch: _Stretch) -> User:
        stretch.interrupting = True  # from here on it is a turn like any other
        return User.INTERRUPTING

    def _dismiss(self, user: User) -> User:
        self.forget()
        return user

    # --- state -----------------------------------------------------------------------------------

    @property
    def quiet_s(self) -> float:
        """Silence since the last voiced sample; 0 while there is voice."""
        if self._stretch is None or self.voice:
            return 0.0
        return (self._pts - self._stretch.last_voiced_pts) / SAMPLE_RATE_HZ

    @property
    def in_stretch(self) -> bool:
        return self._stretch is not None

    @property
    def last_voiced_pts(self) -> int | None:
        return None if self._stretch is None else self._stretch.last_voiced_pts

    def silence_needed_s(self) -> float:
        """The silence that ends the turn, on the evidence so far."""
        o, stretch = self.options, self._stretch
        if stretch is None or stretch.prosody is None:
            needed = o.silence_unknown_s
        elif stretch.prosody >= o.complete_threshold:
            needed = o.silence_likely_s
        else:
            # From "can't tell" just below the threshold to "surely not" at zero.
            doubt = 1.0 - stretch.prosody / o.complete_threshold
            needed = o.silence_unknown_s + doubt * (o.silence_unlikely_s - o.silence_unknown_s)
        if stretch is not None:
            if stretch.final_text is None and stretch.prosody is not None:
                needed = max(needed, o.silence_unknown_s)  # no words yet, so nothing to answer
            elif stretch.final_text and is_hanging(stretch.final_text):
                needed += o.hanging_extra_s
        self.evidence["silence_needed_s"] = needed
        return needed

    def forget(self) -> None:
        """Drops the stretch: it was committed, cleared, or was nothing."""
        self._stretch = None
        self._onset = 0
        if self.voice:
            self.voice = False
        self.user = User.IDLE

    def reset(self) -> None:
        self.forget()
        self.asks.clear()
        self.edges.clear()
        self.evidence.clear()
        self._pts = 0


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)
