"""Watching a native agent's two streams, frame by frame: when it speaks, and what the user does meanwhile. Pure.

Theory of operation
-------------------
A native model says a frame of sound and a text token every 80 ms, for ever. *It speaks* from the first word piece or
audible frame until both its text is padding and its sound is silence for ``reply_end_s`` (less while the user speaks:
then it yielded). Text leads sound, so a reply usually begins a frame before it is heard.

*The user* is judged by voice activity (:mod:`.user_voice`) and by overlap. Voice over ours is speech until it has
lasted ``interrupt_s``, an interruption from then on and for as long as we go on speaking, and encouragement if it was
shorter and we still speak when it is over. A turn ends after ``turn_end_s`` of quiet, or at once when the model
begins to speak into a pause: the model decided, and it is only told.

Both are tables below. What is told of frame k rests on frames up to k alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from duplex.agent import SpeechStarted, SpeechStopped, UserState
from duplex.frames import SAMPLE_RATE_HZ
from duplex.turn import User

from .options import WatchOptions
from .user_voice import Hearing

_STILL_TALKING_S = 0.16  # a gap between words this long is no silence
_TOO_LONG = 1.2  # times the longest reply: then it ends in the middle of a word, as an untrained model's must


class Voice(Enum):
    """The agent's."""

    QUIET = "quiet"
    SPEAKING = "speaking"


class VoiceCue(Enum):
    SOUNDS = "sounds"  # a word piece, or an audible frame
    RESTS = "rests"  # neither
    RESTED = "rested"  # neither, for long enough


class Step(Enum):
    """What a frame means for the reply."""

    NOTHING = "nothing"
    BEGIN = "begin"  # this frame is its first
    GO_ON = "go-on"
    END = "end"  # the frame before was its last


VOICE: dict[tuple[Voice, VoiceCue], tuple[Voice, Step]] = {
    (Voice.QUIET, VoiceCue.SOUNDS): (Voice.SPEAKING, Step.BEGIN),
    (Voice.QUIET, VoiceCue.RESTS): (Voice.QUIET, Step.NOTHING),
    (Voice.QUIET, VoiceCue.RESTED): (Voice.QUIET, Step.NOTHING),
    (Voice.SPEAKING, VoiceCue.SOUNDS): (Voice.SPEAKING, Step.GO_ON),
    (Voice.SPEAKING, VoiceCue.RESTS): (Voice.SPEAKING, Step.GO_ON),
    (Voice.SPEAKING, VoiceCue.RESTED): (Voice.QUIET, Step.END),
}


class UserCue(Enum):
    """What a frame shows of the user. *Over*: while the agent is heard."""

    VOICE = "voice"
    LONG_OVER = "long-over"  # voice, and over ours for interrupt_s by now
    BREATH = "breath"  # quiet, too short to mean anything
    PAUSE = "pause"
    AFTER_OVER = "after-over"  # quiet after a short overlap, and we still speak
    DONE = "done"  # quiet for turn_end_s, or we began to speak


N, S, P, X = User.IDLE, User.SPEAKING, User.PAUSED_INCOMPLETE, User.INTERRUPTING
DONE, ENCOURAGED = User.TURN_COMPLETE, User.BACKCHANNEL

# (state, cue) to (what is told, state). TURN_COMPLETE and BACKCHANNEL are told once.
USER: dict[tuple[User, UserCue], tuple[User, User]] = {
    (N, UserCue.VOICE): (S, S),
    (N, UserCue.LONG_OVER): (X, X),
    (N, UserCue.BREATH): (N, N),
    (N, UserCue.PAUSE): (N, N),
    (N, UserCue.AFTER_OVER): (N, N),
    (N, UserCue.DONE): (N, N),
    (S, UserCue.VOICE): (S, S),
    (S, UserCue.LONG_OVER): (X, X),
    (S, UserCue.BREATH): (S, S),
    (S, UserCue.PAUSE): (P, P),
    (S, UserCue.AFTER_OVER): (ENCOURAGED, N),
    (S, UserCue.DONE): (DONE, N),
    (P, UserCue.VOICE): (S, S),
    (P, UserCue.LONG_OVER): (X, X),
    (P, UserCue.BREATH): (P, P),
    (P, UserCue.PAUSE): (P, P),
    (P, UserCue.AFTER_OVER): (ENCOURAGED, N),
    (P, UserCue.DONE): (DONE, N),
    (X, UserCue.VOICE): (S, S),  # we fell silent, and the user has the floor
    (X, UserCue.LONG_OVER): (X, X),
    (X, UserCue.BREATH): (X, X),
    (X, UserCue.PAUSE): (P, P),
    (X, UserCue.AFTER_OVER): (X, X),
    (X, UserCue.DONE): (DONE, N),
}


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """One frame of both sides. ``end_pts``: of the user's; ``text``: the agent's token is a word piece, or words are
    being put in its mouth; ``level_dbfs``: the loudest 20 ms of its sound."""

    end_pts: int
    hearing: Hearing
    text: bool
    level_dbfs: float


Told = UserState | SpeechStarted | SpeechStopped


@dataclass(frozen=True, slots=True)
class Seen:
    """``step``: of the agent's reply. ``told``: of the user, to be told before the step is carried out."""

    step: Step
    told: tuple[Told, ...]


class FloorWatch:
    """One session's. ``frame_s``: a frame's duration."""

    def __init__(self, options: WatchOptions, frame_s: float) -> None:
        self.options = options
        self._frame_s = frame_s
        self.reset()

    def reset(self) -> None:
        self.voice = Voice.QUIET
        self.user = User.IDLE
        self.rest_s = 0.0  # since the agent's last word piece or audible frame
        self._reply_s = 0.0
        self._over_s = 0.0  # of the user's voice over ours, in this stretch
        self._began_over = False
        self._in_stretch = False  # since a voice began, until it is judged
        self._started_told = False

    def silenced(self) -> None:
        """The agent was made to be quiet."""
        self.voice = Voice.QUIET

    @property
    def talking(self) -> bool:
        """It speaks, and was heard to just now."""
        return self.voice is Voice.SPEAKING and self.rest_s <= _STILL_TALKING_S + 1e-9

    def push(self, frame: SeenFrame) -> Seen:
        hearing = frame.hearing
        was_talking = self.talking
        step = self._agent(frame)
        told: list[Told] = []
        if hearing.voiced_s > 0:
            if not self._in_stretch:
                self._in_stretch, self._over_s, self._began_over = True, 0.0, was_talking
            if not self._started_told:
                self._started_told = True
                first_pts = frame.end_pts - round(hearing.voiced_s * SAMPLE_RATE_HZ)
                told.append(SpeechStarted(_or(hearing.started_pts, first_pts)))
            if was_talking:
                self._over_s += hearing.voiced_s
        tells, self.user = USER[self.user, self._cue(hearing, step)]
        judged = tells in (DONE, ENCOURAGED)
        if judged:
            self._in_stretch, self._over_s = False, 0.0
        if self._started_told and (judged or hearing.stopped_pts is not None):
            self._started_told = False
            last_pts = frame.end_pts - round(hearing.quiet_s * SAMPLE_RATE_HZ)
            told.append(SpeechStopped(_or(hearing.stopped_pts, last_pts)))
        told.append(UserState(frame.end_pts, tells))
        return Seen(step, tuple(told))

    def _agent(self, frame: SeenFrame) -> Step:
        options = self.options
        sounds = frame.text or frame.level_dbfs >= options.agent_audible_dbfs
        self.rest_s = 0.0 if sounds else self.rest_s + self._frame_s
        self._reply_s = self._reply_s + self._frame_s if self.voice is Voice.SPEAKING else 0.0
        enough_s = options.reply_end_under_user_s if frame.hearing.voiced_s > 0 else options.reply_end_s
        if self._reply_s > options.longest_reply_s:
            enough_s = self._frame_s
        if sounds and self._reply_s <= _TOO_LONG * options.longest_reply_s:
            cue = VoiceCue.SOUNDS
        else:
            cue = VoiceCue.RESTED if sounds or self.rest_s >= enough_s - 1e-9 else VoiceCue.RESTS
        self.voice, step = VOICE[self.voice, cue]
        return step

    def _cue(self, hearing: Hearing, step: Step) -> UserCue:
        options = self.options
        if hearing.voiced_s > 0:
            long_over = self._over_s >= options.interrupt_s - 1e-9 and self.voice is Voice.SPEAKING
            return UserCue.LONG_OVER if long_over else UserCue.VOICE
        quiet_s = hearing.quiet_s + 1e-9
        speaking = self.voice is Voice.SPEAKING
        if step is Step.BEGIN:
            return UserCue.DONE
        if self.talking and self._in_stretch and self._began_over and self._over_s < options.interrupt_s - 1e-9:
            return UserCue.AFTER_OVER if quiet_s >= options.backchannel_quiet_s else UserCue.BREATH
        if quiet_s >= (options.pause_s if speaking and not self._began_over else options.turn_end_s):
            return UserCue.DONE
        if speaking and self.user is User.INTERRUPTING:
            return UserCue.BREATH  # what was said stands, and we have not stopped
        return UserCue.PAUSE if quiet_s >= options.pause_s else UserCue.BREATH


def _or(pts: int | None, otherwise: int) -> int:
    return otherwise if pts is None else pts
