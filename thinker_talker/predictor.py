"""The turn-state predictor: from evidence to what the user is doing, one 32 ms window at a time.

Theory of operation
-------------------
Pure and causal: windows of voice probability, end-of-turn probabilities and transcripts come in as
arguments, with the pts they speak of; a :class:`~duplex.turn.User` state comes out, with a distribution over
all of them, and a list of what to ask the models next. Nothing here waits, and nothing asks for the time.

Voice activity cuts the stream into *stretches* of speech and pauses. Who holds the floor decides what they mean:

* The floor is the user's. A pause starts speculation at once (PAUSED_INCOMPLETE) and asks two models:
  has the speaker finished, by ear (prosody) and by words? What they say moves the silence that ends the turn
  (:func:`~.evidence.silence_needed_s`).
* The floor is ours. Speech is an overlap: SPEAKING until the evidence says which kind
  (:func:`~.evidence.overlap_logits`). What our own voice explains, or what is far fainter than this user usually
  is, does not begin one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from duplex.frames import SAMPLE_RATE_HZ
from duplex.turn import Floor, User

from .evidence import Overlap, Pause, completeness, overlap_logits, sigmoid, silence_needed_s, softmax
from .intonation import PitchContour
from .lexicon import is_hanging, own_share, words_of
from .loudness import NoiseFloor, UsualLevel
from .patience import Patience
from .turn_options import TurnOptions

_SOFTNESS_S = 0.05  # how sharply the probability of a turn's end rises around the silence that ends it
_EXPECTATION_WAIT_S = 0.15
_REPEATED = 0.8  # share of our last words in a turn that makes it their echo
_QUESTION_WINDOW_S = 1.0  # an answer may begin this long before our question is over


class Ask(Enum):
    """What the predictor wants to know next."""

    PARTIAL = "partial"  # words so far, when convenient
    FINAL = "final"  # words up to here, now
    PROSODY = "prosody"  # end-of-turn probability of the audio up to here
    EXPECTATION = "expectation"  # how likely a sentence of these words is over


class Edge(Enum):
    STARTED = "started"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class HeardWindow:
    """One window of what was heard, ``n_samples`` long and ending at ``end_pts`` (24 kHz samples).

    ``echo``: share of it that our own voice explains; ``line_echoes``: that comes back on this line, or may.
    ``pitch_hz``: of its voice, if it has one.
    """

    end_pts: int
    n_samples: int
    probability: float
    level_dbfs: float
    echo: float = 0.0
    pitch_hz: float | None = None
    line_echoes: bool = False


@dataclass(frozen=True, slots=True)
class OurSide:
    """What the predictor knows of us. ``left_s``: of the reply that is playing, if its end is known; ``saying``: its
    text, as far as it is made; ``said``: the words that went out in the last seconds."""

    floor: Floor
    left_s: float | None = None
    saying: str = ""
    said: str = ""

    @property
    def asks(self) -> bool:
        """The reply ends in a question."""
        return self.saying.rstrip().endswith("?")

    @property
    def speaking(self) -> bool:
        return self.floor in (Floor.SPEAKING, Floor.HOLDING)


@dataclass(slots=True)
class _Stretch:
    """The user's turn in the making, or an overlap."""

    started_pts: int
    last_voiced_pts: int
    voiced_samples: int = 0
    peak_dbfs: float = -120.0  # of its loudest window
    energy: float = 0.0  # mean-square power times samples, of its voice
    echo: float = 0.0  # share times samples, of its voice and of the echo in between
    echo_samples: int = 0  # of what our own voice explains, and is not counted as its voice
    overlap: bool = False  # it began over our own voice
    our_question: bool = False
    line_echoes: bool = False  # when it began
    own_share_of: tuple[str, str] = ("", "")  # words and what we said, and the share of the first in the second
    own_share: float = 0.0
    final_text: str | None = None  # words up to the current pause
    ended: float | None = None  # and how likely a sentence ends with them, as they sound
    partial_text: str = ""
    prosody: float | None = None  # for the current pause
    prosody_asked: int = 0
    expected: float | None = None  # for the current pause's words
    expectation_asked: bool = False
    final_asked: bool = False
    sound_pts: int | None = None  # a sound without voice after the words were asked for: the faint end of the last one
    final_again: bool = False
    last_partial_pts: int = 0
    interrupting: bool = False
    pitch: PitchContour = field(default_factory=PitchContour)

    @property
    def voiced_s(self) -> float:
        return self.voiced_samples / SAMPLE_RATE_HZ

    @property
    def words(self) -> str:
        return self.final_text if self.final_text is not None else self.partial_text


@dataclass(slots=True)
class TurnPredictor:
    """One session's predictor. Feed it windows; read ``user``; take ``asks`` and ``edges`` (and clear them)."""

    options: TurnOptions = field(default_factory=TurnOptions)
    user: User = User.IDLE
    voice: bool = False
    asks: list[Ask] = field(default_factory=list)
    edges: list[tuple[Edge, int]] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)
    usual: UsualLevel = field(default_factory=UsualLevel)
    patience: Patience = field(default_factory=Patience)
    noise: NoiseFloor = field(default_factory=NoiseFloor)
    _stretch: _Stretch | None = None
    _onset: int = 0  # samples of voice not yet counted as speech
    _pts: int = 0
    _said: str = ""  # our words of the last seconds
    _overlap: Mapping[User, float] = field(default_factory=dict)  # the last overlap's logits

    # --- evidence in -----------------------------------------------------------------------------

    def window(self, heard: HeardWindow, ours: OurSide) -> User:
        """Takes one window; returns the user's state after it."""
        self._pts = heard.end_pts
        self.patience.floor(ours.floor, heard.end_pts)
        self.evidence = {"voice": heard.probability}
        if self._is_voiced(heard, ours):
            self._voiced(heard, ours)
        else:
            self._onset = 0
            if self.voice:
                self.voice = False
                assert self._stretch is not None
                self.edges.append((Edge.STOPPED, self._stretch.last_voiced_pts))
            self._unvoiced(heard.level_dbfs)
        return self.review(ours)

    def _unvoiced(self, level_dbfs: float) -> None:
        stretch = self._stretch
        if stretch is not None and stretch.final_asked and not stretch.final_again and self.noise.sounds(level_dbfs):
            stretch.sound_pts = self._pts
        self.noise.hear(level_dbfs)

    def _is_voiced(self, heard: HeardWindow, ours: OurSide) -> bool:
        o, stretch = self.options, self._stretch
        threshold = o.overlap_threshold if ours.speaking else o.speech_threshold
        if heard.probability < (o.silence_threshold if self.voice else threshold):
            return False
        if stretch is not None:
            stretch.peak_dbfs = max(stretch.peak_dbfs, heard.level_dbfs)
            # The detector holds on for 50 to 150 ms after the voice is gone; its level does not.
            if heard.level_dbfs <= stretch.peak_dbfs - o.silence_drop_db:
                return False
        # Also after we have fallen silent: an echo comes 40 to 400 ms late.
        if heard.echo >= o.echo_threshold and "echo" not in o.without:
            self.evidence["echo"] = heard.echo
            if stretch is not None:
                stretch.echo += heard.echo * heard.n_samples
                stretch.echo_samples += heard.n_samples
            return False
        if not ours.speaking:
            return True
        faint = self.usual.below_db(heard.level_dbfs) >= o.faint_db and "level" not in o.without
        return self.voice or not faint

    def _onset_needed_s(self, heard: HeardWindow, ours: OurSide) -> float:
        o = self.options
        if not ours.speaking:
            return o.onset_s
        if heard.line_echoes and "echo" not in o.without:
            return o.echo_onset_s
        return 0.0 if heard.probability >= o.overlap_sure else o.onset_s

    def _voiced(self, heard: HeardWindow, ours: OurSide) -> None:
        stretch = self._stretch
        if not self.voice:
            self._onset += heard.n_samples
            if self._onset < _samples(self._onset_needed_s(heard, ours)) - 1:
                return
            self.voice = True
            start = heard.end_pts - self._onset
            if stretch is None:
                stretch = self._stretch = _Stretch(start, heard.end_pts, last_partial_pts=start)
                stretch.line_echoes = heard.line_echoes
                self.edges.append((Edge.STARTED, start))
            else:
                stretch.final_text = stretch.prosody = stretch.expected = None
                stretch.prosody_asked, stretch.final_asked, stretch.expectation_asked = 0, False, False
                stretch.sound_pts, stretch.final_again = None, False
                self.edges.append((Edge.STARTED, start))
            stretch.voiced_samples += self._onset - heard.n_samples
            self._onset = 0
        assert stretch is not None
        stretch.voiced_samples += heard.n_samples
        stretch.energy += 10.0 ** (heard.level_dbfs / 10.0) * heard.n_samples
        stretch.echo += heard.echo * heard.n_samples
        stretch.last_voiced_pts = heard.end_pts
        stretch.pitch.add(heard.pitch_hz)
        if ours.speaking and not stretch.overlap:
            stretch.overlap = True
            stretch.our_question = ours.asks and ours.left_s is not None and ours.left_s <= _QUESTION_WINDOW_S

    def review(self, ours: OurSide) -> User:
        """Judges again after new evidence, without waiting for the next window."""
        self._said = ours.said
        self.user = self._judge(ours.speaking)
        return self.user

    def prosody(self, probability: float, asked_pts: int) -> None:
        """The end-of-turn model's answer about audio up to ``asked_pts``; stale answers are ignored."""
        stretch = self._stretch
        if stretch is not None and not self.voice and asked_pts >= stretch.last_voiced_pts:
            stretch.prosody = probability

    def expectation(self, probability: float, asked_pts: int) -> None:
        """The language model's answer about the words up to ``asked_pts``; stale answers are ignored."""
        stretch = self._stretch
        if stretch is not None and not self.voice and asked_pts >= stretch.last_voiced_pts:
            stretch.expected = probability

    def transcript(self, text: str, *, final: bool, asked_pts: int, ended: float | None = None) -> bool:
        """The listener's answer about audio up to ``asked_pts``; ``ended``: probability that a sentence ends there.
        True if it settles the current pause's words."""
        stretch = self._stretch
        if stretch is None:
            return False
        stretch.partial_text = text or stretch.partial_text
        settles = final and not self.voice and asked_pts >= stretch.last_voiced_pts
        if settles:
            if words_of(text) != words_of(stretch.final_text or ""):
                stretch.expected, stretch.expectation_asked = None, False
            stretch.final_text, stretch.ended = text, ended
        return settles

    # --- decisions out ---------------------------------------------------------------------------

    def _judge(self, ours: bool) -> User:
        stretch = self._stretch
        self._overlap = {}
        if stretch is None:
            return User.IDLE
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
        if self._ask_prosody(stretch, quiet_s):
            stretch.prosody_asked += 1
            self.asks.append(Ask.PROSODY)
        if quiet_s >= o.expectation_s - 1e-6:
            self.ask_expectation()
        if quiet_s < self.silence_needed_s():
            return User.PAUSED_INCOMPLETE
        if stretch.final_text == "" or self._is_someone_else(stretch) or self._is_our_echo(stretch):
            self.forget()
            return User.NOT_ADDRESSED  # sound without words, or words of somebody farther away, or our own
        return User.TURN_COMPLETE

    def ask_expectation(self) -> None:
        """Now is a good moment to ask the language model, if there are words to ask about; once a pause."""
        stretch = self._stretch
        if stretch is None or stretch.expectation_asked or not stretch.final_text or self.voice:
            return
        stretch.expectation_asked = True
        if "expectation" not in self.options.without:
            self.asks.append(Ask.EXPECTATION)

    def _is_someone_else(self, stretch: _Stretch) -> bool:
        if "level" in self.options.without or self.usual.below_db(_level_dbfs(stretch)) < self.options.faint_db:
            return False
        self.usual.ignored()
        return True

    def _is_our_echo(self, stretch: _Stretch) -> bool:
        """It began just after our last words, on a line that echoes, and repeats them."""
        if "own words" in self.options.without or stretch.overlap or not stretch.line_echoes:
            return False
        return self._own_share(stretch) >= _REPEATED

    def _ask_partial(self, stretch: _Stretch, every_s: float) -> None:
        if self._pts - stretch.last_partial_pts >= _samples(every_s):
            stretch.last_partial_pts = self._pts
            self.asks.append(Ask.PARTIAL)

    def _ask_final(self, stretch: _Stretch) -> None:
        if not stretch.final_asked:
            stretch.final_asked = True
            self.asks.append(Ask.FINAL)
        elif stretch.sound_pts is not None and self._pts > stretch.sound_pts and not stretch.final_again:
            stretch.final_again = True
            self.asks.append(Ask.FINAL)

    def _ask_prosody(self, stretch: _Stretch, quiet_s: float) -> bool:
        """Once in every pause, and again if the model was unsure and has more silence to go by now."""
        o = self.options
        if "prosody" in o.without or stretch.prosody_asked > 1:
            return False
        if stretch.prosody_asked == 0:
            return quiet_s >= o.prosody_s - 1e-6
        return stretch.prosody is not None and stretch.prosody < o.complete_threshold and quiet_s >= o.prosody_again_s

    def _judge_overlap(self, stretch: _Stretch) -> User:
        o = self.options
        quiet_s = max(0.0, self.quiet_s - self._onset / SAMPLE_RATE_HZ)  # a voice that begins again ends the pause
        if self.voice:
            self._ask_partial(stretch, o.overlap_partial_s)
        elif quiet_s >= o.pause_s - 1e-6:
            self._ask_final(stretch)
        below_db = self.usual.below_db(_level_dbfs(stretch))
        overlap = Overlap(
            voice=self.voice,
            voiced_s=stretch.voiced_s,
            quiet_s=quiet_s,
            words=stretch.words,
            settled=stretch.final_text is not None,
            echo=stretch.echo / max(1, stretch.voiced_samples + stretch.echo_samples),
            below_usual_db=below_db if self.usual.known else None,
            our_question=stretch.our_question,
            own_words=self._own_share(stretch) if stretch.line_echoes else 0.0,
            line_echoes=stretch.line_echoes,
        )
        self._overlap = overlap_logits(overlap, o)
        decided = max(self._overlap, key=lambda user: self._overlap[user])
        match decided:
            case User.INTERRUPTING:
                stretch.interrupting = True  # from here on it is a turn like any other
                self.patience.judged(decided, stretch.started_pts)
            case User.BACKCHANNEL | User.NOT_ADDRESSED:
                self.forget()
            case _:
                return User.SPEAKING if quiet_s < o.pause_s - 1e-6 else User.PAUSED_INCOMPLETE
        return decided

    def _own_share(self, stretch: _Stretch) -> float:
        """It is compared once, and not in every window in which nothing of it has changed."""
        compared = (stretch.words, self._said)
        if stretch.own_share_of != compared:
            stretch.own_share_of, stretch.own_share = compared, own_share(*compared)
        return stretch.own_share

    # --- state -----------------------------------------------------------------------------------

    def probabilities(self) -> dict[User, float]:
        """A distribution over all states, whose largest is (ties apart) the state decided for."""
        spread = dict.fromkeys(User, 0.0)
        if self._overlap:
            spread |= softmax(self._overlap)
            if self.user is User.PAUSED_INCOMPLETE:
                spread[User.PAUSED_INCOMPLETE], spread[User.SPEAKING] = spread[User.SPEAKING], 0.0
        elif self.user in (User.PAUSED_INCOMPLETE, User.TURN_COMPLETE):
            over = sigmoid((self.quiet_s - self.evidence.get("silence_needed_s", 0.0)) / _SOFTNESS_S)
            spread[User.TURN_COMPLETE], spread[User.PAUSED_INCOMPLETE] = over, 1.0 - over
        else:
            spread[self.user] = 1.0
        return spread

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
    def over_us(self) -> bool:
        """The stretch began over our own voice."""
        return self._stretch is not None and self._stretch.overlap

    @property
    def voiced_s(self) -> float:
        """Voice in the open turn or overlap."""
        return 0.0 if self._stretch is None else self._stretch.voiced_s

    @property
    def last_voiced_pts(self) -> int | None:
        return None if self._stretch is None else self._stretch.last_voiced_pts

    def silence_needed_s(self) -> float:
        """The silence that ends the turn, on the evidence so far."""
        o, stretch = self.options, self._stretch
        if stretch is None:
            return o.silence_unknown_s
        pause = self.pause()
        assert pause is not None
        parts = completeness(pause, o)
        needed = silence_needed_s(sum(parts.values()), o)
        if o.patience:
            needed *= self.patience.factor
        if stretch.final_text is None and not is_hanging(stretch.partial_text):
            needed = max(needed, o.silence_unknown_s)  # no words yet, so nothing to answer
        elif stretch.expectation_asked and stretch.expected is None and "expectation" not in o.without:
            needed = max(needed, o.expectation_s + _EXPECTATION_WAIT_S)  # an answer is on its way
        self.evidence |= parts
        self.evidence["silence_needed_s"] = needed
        return needed

    def pause(self) -> Pause | None:
        """The running pause of the user's turn as it is known now; None if there is no turn."""
        stretch = self._stretch
        if stretch is None:
            return None
        return Pause(
            voiced_s=stretch.voiced_s,
            words=stretch.words,
            settled=stretch.final_text is not None,
            ended=stretch.ended if stretch.final_text is not None else None,
            prosody=stretch.prosody,
            fall_st=stretch.pitch.fall_st(),
            slope_st=stretch.pitch.slope_st(),
            expected=stretch.expected,
        )

    def committed(self) -> None:
        """The stretch became a turn of the user's; so this is how loud they are."""
        if self._stretch is not None and self._stretch.voiced_samples:
            self.usual.learn(_level_dbfs(self._stretch))
        self.patience.went_well()
        self.forget()

    def forget(self) -> None:
        """Drops the stretch: it was cleared, or was nothing."""
        self._stretch = None
        self._onset = 0
        self.voice = False
        self.user = User.IDLE

    def reset(self) -> None:
        self.forget()
        self.asks.clear()
        self.edges.clear()
        self.evidence = {}
        self.usual.reset()
        self.patience.reset()
        self.noise.reset()
        self._overlap = {}
        self._pts = 0
        self._said = ""


def _level_dbfs(stretch: _Stretch) -> float:
    """Mean level of a stretch's voice."""
    return 10.0 * math.log10(max(stretch.energy / max(1, stretch.voiced_samples), 1e-12))


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)
