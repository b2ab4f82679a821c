"""A native model without weights for tests: it hears levels, answers from a script, and is exact to the frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from duplex.bitrate import LinkReport
from duplex.errors import AgentFaultError, AgentFullError, ConfigError
from duplex.frames import SAMPLE_RATE_HZ, Samples, silence
from duplex.scheduler.contract import Memory, SlotFrame, SlotResult, SlotSettings, StepTimes
from duplex.scheduler.deliveries import Deliver, Ready, Stepped
from duplex.testing import tone
from duplex.thinker_talker.native.agent import NativeAgent
from duplex.thinker_talker.native.options import NativeOptions
from duplex.thinker_talker.native.serving import TAGGED, Served

FRAME = 1920
FRAME_S = FRAME / SAMPLE_RATE_HZ
PAD, EPAD = 3, 0
VOICE = tone(FRAME_S, hz=225.0)  # whole periods: frames follow one another without a seam
_PIECES: dict[str, int] = {}
_TEXTS: dict[int, str] = {}


class FakeTokens:
    """Words in pieces of up to four letters, numbered as they are met."""

    @property
    def padding(self) -> tuple[int, int]:
        return PAD, EPAD

    def encode(self, text: str) -> list[int]:
        pieces: list[str] = []
        for word in text.split():
            pieces += [(" " if k == 0 else "") + word[k : k + 4] for k in range(0, len(word), 4)]
        for piece in pieces:
            if piece not in _PIECES:
                _PIECES[piece] = 10 + len(_PIECES)
                _TEXTS[_PIECES[piece]] = piece
        return [_PIECES[piece] for piece in pieces]

    def decode_piece(self, token: int) -> str:
        return _TEXTS.get(token, "")

    def piece_byte(self, token: int) -> int | None:
        return None


@dataclass(frozen=True)
class FakeModel:
    """``answers``: said in turn, a word in ``word_frames``, after ``reacts_frames`` of quiet. ``yields_frames``: of
    voice over it that make it stop, None: it never does. ``fails_at``: frames of a slot that fail."""

    answers: Sequence[str] = ("One two three four five six seven eight",)
    word_frames: int = 4
    reacts_frames: int = 3
    yields_frames: int | None = 4
    fails_at: frozenset[int] = frozenset()
    full_after: int = 64
    prompt_s: float = 0.0
    compute_s: float | tuple[float, ...] | None = 0.03  # virtual, or of frame after frame; None: at once


class FakeBrain:
    """What the model remembers of one call. ``seen``: every frame as (forced token, silent)."""

    def __init__(self, model: FakeModel) -> None:
        self.model = model
        self.seen: list[tuple[int | None, bool]] = []
        self._answered = 0
        self._forget()

    def _forget(self) -> None:
        self._voiced = self._quiet = self._sounding = 0  # frames; of sounding: still to come
        self._heard_speech = self._sound_next = False
        self._script: list[int] = []

    def step(self, samples: Samples, forced: int | None, silent: bool, key: int = 0) -> SlotResult:
        assert samples.shape == (FRAME,)
        self.seen.append((forced, silent))
        if len(self.seen) - 1 in self.model.fails_at:
            self._forget()
            return SlotResult(key, error=AgentFaultError("not a number"))
        voiced = float(np.sqrt(np.mean(samples**2))) > 0.02
        self._voiced, self._quiet = (self._voiced + 1, 0) if voiced else (0, self._quiet + 1)
        self._heard_speech |= self._voiced >= 3
        model = self.model
        talked_down = model.yields_frames is not None and self._voiced >= model.yields_frames
        if silent or (self._script and talked_down):
            self._script, self._sounding = [], 0
        elif not self._script and self._heard_speech and self._quiet >= model.reacts_frames and forced is None:
            self._answer()
        token = self._script.pop(0) if self._script else PAD
        if forced is not None:
            token = forced
        if token not in (PAD, EPAD) and not silent:
            self._sounding = model.word_frames
        sounds, self._sound_next = self._sound_next, self._sounding > 0 and not silent  # sound is a frame late
        self._sounding = max(0, self._sounding - 1)
        return SlotResult(key, VOICE if sounds else silence(FRAME), token)

    def _answer(self) -> None:
        text = self.model.answers[self._answered % len(self.model.answers)]
        self._answered += 1
        self._heard_speech = False
        for word in text.split():
            pieces = [EPAD, *FakeTokens().encode(word)]
            self._script += pieces + [PAD] * max(0, self.model.word_frames - len(pieces))


@dataclass
class FakeSlot:
    """One call on virtual time, without a scheduler."""

    brain: FakeBrain
    settings: SlotSettings
    deliver: Deliver
    left: Callable[[], None]
    closed: bool = False
    links: list[LinkReport] = field(default_factory=list)

    @property
    def seen(self) -> list[tuple[int | None, bool]]:
        return self.brain.seen

    def submit(
        self,
        samples: Samples,
        *,
        forced_text: int | None = None,
        silent: bool = False,
        codebooks: int | None = None,
        link: LinkReport | None = None,
    ) -> bool:
        self.links += [] if link is None else [link]
        seq = len(self.seen)
        stepped = Stepped(seq, self.brain.step(samples, forced_text, silent), 0.0, 0.0, 0.0)
        compute_s = self.brain.model.compute_s
        if compute_s is None:
            self.deliver(stepped)
        else:
            after_s = compute_s[seq % len(compute_s)] if isinstance(compute_s, tuple) else compute_s
            asyncio.get_running_loop().call_later(after_s, self._deliver, stepped)
        return True

    def _deliver(self, stepped: Stepped) -> None:
        if not self.closed:
            self.deliver(stepped)

    def leave(self) -> None:
        assert not self.closed
        self.closed = True
        self.left()


class FakeServing:
    """Implements ``Serving``; ``slots``: every one that was opened."""

    registry = None

    def __init__(self, model: FakeModel) -> None:
        self.model = model
        self.slots: list[FakeSlot] = []
        self.live = 0
        self.closed = False

    async def start(self) -> Served:
        return Served(self._open, FakeTokens(), TAGGED, self._admit)

    def _admit(self) -> None:
        if self.live >= self.model.full_after:
            raise AgentFullError("Every slot of the device is taken.")

    def _open(self, settings: SlotSettings, deliver: Deliver) -> FakeSlot:
        self._admit()
        self.live += 1
        slot = FakeSlot(FakeBrain(self.model), settings, deliver, self._left)
        self.slots.append(slot)
        if self.model.prompt_s:
            asyncio.get_running_loop().call_later(self.model.prompt_s, deliver, Ready(self.model.prompt_s))
        else:
            deliver(Ready(0.0))
        return slot

    def _left(self) -> None:
        self.live -= 1

    async def close(self) -> None:
        self.closed = True


def fake_agent(model: FakeModel = FakeModel(), **options: Any) -> tuple[NativeAgent, FakeServing]:
    serving = FakeServing(model)
    return NativeAgent(NativeOptions(seed=7, **options), serving, ("ada", "bo")), serving


class FakeEngine:
    """Implements the scheduler's ``Engine``: a brain a slot, no device. ``settings``: of every slot, in order."""

    frame_s, frame_samples, codebooks, max_slots, batch_sizes = FRAME_S, FRAME, 8, 8, (1, 2, 4, 8)

    def __init__(self, model: FakeModel, prompt_steps: int = 5) -> None:
        self.model, self.prompt_steps = model, prompt_steps
        self.brains: dict[int, FakeBrain] = {}
        self.settings: list[SlotSettings] = []
        self.closed = False
        self._unread: dict[int, int] = {}
        self._keys = 0

    def start(self) -> None: ...

    def join(self, settings: SlotSettings) -> int:
        if settings.voice == "broken":
            raise ConfigError("The voice file is no voice.")
        self._keys += 1
        self.settings.append(settings)
        self.brains[self._keys], self._unread[self._keys] = FakeBrain(self.model), self.prompt_steps
        return self._keys

    def prefill(self, key: int, max_steps: int) -> int:
        self._unread[key] = max(0, self._unread[key] - max_steps)
        return self._unread[key]

    def step(self, frames: Sequence[SlotFrame]) -> tuple[Sequence[SlotResult], StepTimes]:
        assert not any(self._unread[frame.key] for frame in frames)
        results = [self.brains[f.key].step(f.samples, f.forced_text, f.silent, f.key) for f in frames]
        for result in results:
            self._unread[result.key] = self.prompt_steps if result.error is not None else 0
        return results, StepTimes(len(frames))

    def reset(self, key: int) -> None:
        self.brains[key]._forget()
        self._unread[key] = self.prompt_steps

    def leave(self, key: int) -> None:
        del self.brains[key], self._unread[key]

    def snapshot(self, key: int) -> Any:
        raise NotImplementedError

    def restore(self, snapshot: Any) -> int:
        raise NotImplementedError

    def memory(self) -> Memory:
        return Memory(0, 0, 0, 1 << 40)

    def close(self) -> None:
        self.closed = True
