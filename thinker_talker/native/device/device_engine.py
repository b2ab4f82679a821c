"""An engine on one device: what the scheduler steps, over a codec and a backbone.

Theory of operation
-------------------
All state is allocated at start-up for every slot there can be, and never moves. Live slots lie in its first rows
(:mod:`.placement`); a tick runs on the smallest batch size that covers those with a frame, the rest of the prefix is
masked and stands still. So one state serves a graph for each size, and nothing is allocated in a tick.

    samples, masks, what is forced ─ one copy ─► encode ─► temporal ─► depth ─► decode ─ one copy ─► sound, text, codes
                                                                                    then the one synchronisation ▲

A slot's tokens do not depend on who else runs, on its row, or on the size: rows do not mix, and sampling is counted
per slot, not drawn from a shared stream.

What goes wrong stays in its slot: a row in which something was not finite is made as new, and its result says so. Only
a device that runs out of memory in the middle of a tick takes down all that were in this tick; those that stood still
go on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from duplex.clock import Clock, MonotonicClock
from duplex.codec import SlotState
from duplex.errors import AgentFaultError, AgentFullError, ConfigError, DuplexError
from duplex.scheduler.contract import Memory, SlotFrame, SlotResult, SlotSettings, StepTimes
from duplex.thinker_talker.native.device.engine_parts import EngineParts, Prompt
from duplex.thinker_talker.native.device.graphs import GraphBackend
from duplex.thinker_talker.native.device.lanes import Lane
from duplex.thinker_talker.native.device.memory import free_bytes, in_words, tensor_bytes
from duplex.thinker_talker.native.device.part_times import ClockPartTimes, CudaPartTimes, PartTimes
from duplex.thinker_talker.native.device.placement import Placement, batch_sizes, smallest_that_fits
from duplex.thinker_talker.native.device.undo import Undo
from duplex.thinker_talker.native.model.slot_rows import SavedRow, check_row, copy_row, load_row, save_row, transfer_row
from duplex.thinker_talker.native.model.tensors import CHOOSE

_log = logging.getLogger(__name__)

_SILENT_FRAMES = 12  # encoded before the codes of silence are read: past the codec's onset


@dataclass(slots=True)
class _Slot:
    settings: SlotSettings
    seed: int
    prompt: Prompt
    read: int = 0
    """Steps of the prompt that have been read."""

    @property
    def left(self) -> int:
        return len(self.prompt) - self.read


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """A live slot, all of it; its tensors share nothing with the engine. ``rows``: the backbone's and the codec's."""

    settings: SlotSettings
    seed: int
    prompt_read: int
    rows: tuple[SavedRow, ...]


class DeviceEngine:
    """A :class:`duplex.scheduler.contract.Engine`. ``backend``: how parts become graphs; ``None``: they are called."""

    def __init__(
        self, parts: EngineParts, max_slots: int, *, backend: GraphBackend | None = None, clock: Clock | None = None
    ) -> None:
        self.parts = parts
        self.device = parts.device
        self._max_slots = max_slots
        self._sizes = batch_sizes(max_slots)
        self._backend = backend
        now = (clock or MonotonicClock()).now
        self._times: PartTimes = CudaPartTimes() if self.device.type == "cuda" else ClockPartTimes(now)
        self._placement = Placement(max_slots)
        self._slots: dict[int, _Slot] = {}
        self._tick: Lane | None = None
        self._undo: Undo | None = None
        self._reading: Lane | None = None
        self._reader: int | None = None  # the key whose backbone state lies in the prompt lane

    # --- what it is ------------------------------------------------------------------------------------------

    @property
    def frame_samples(self) -> int:
        return self.parts.codec.info.frame_samples

    @property
    def frame_s(self) -> float:
        return self.frame_samples / self.parts.codec.info.sample_rate_hz

    @property
    def codebooks(self) -> int:
        return min(self.parts.backbone.dep_q, self.parts.codec.info.codebooks)

    @property
    def max_slots(self) -> int:
        return self._max_slots

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._sizes

    @property
    def live(self) -> int:
        """Slots that are taken."""
        return len(self._placement)

    @property
    def states(self) -> tuple[SlotState, ...]:
        """What is remembered of every slot, live ones first: the backbone's, the codec's. For tests and benchmarks."""
        return self._started().states

    def memory(self) -> Memory:
        """``free`` counts the rows nobody has: they were allocated at the start, and a join needs nothing more."""
        lanes = [lane for lane in (self._tick, self._reading) if lane is not None]
        states = tensor_bytes(t for lane in lanes for state in lane.states for t in state.tensors().values())
        rows = [t for state in self._tick.states for t in state.tensors().values()] if self._tick else []
        per_slot = sum(t[0].numel() * t.element_size() for t in rows)
        unused = (self._max_slots - len(self._placement)) * per_slot
        return Memory(self.parts.weight_bytes, states, per_slot, free_bytes(self.device) + unused)

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Allocates every slot, learns what silence sounds like, warms up, captures. Raises ``ConfigError`` when the
        device has not the memory, ``GraphError`` when a part cannot be captured."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread: events and streams are made on the current one
        try:
            backbone, codec = self.parts.backbone, self.parts.codec
            self._tick = Lane("tick", backbone, codec, self._sizes, self.device, self._backend)
            self._reading = Lane("prompt", backbone, None, (1,), self.device, self._backend)
            with torch.inference_mode():
                self._silence = self._codes_of_silence()
                for lane in (self._tick, self._reading):
                    lane.warm_up_and_capture()
                self._undo = Undo(self._tick.states, self._sizes)
            self._make_voices()
        except torch.OutOfMemoryError as error:
            self._tick = self._reading = self._undo = None
            raise ConfigError(
                f"{self._max_slots} slots do not fit the memory of {self.device}: {_first_line(error)} The weights "
                f"take {in_words(self.parts.weight_bytes)}. Fewer slots, a shorter context or an int8 cache need less."
            ) from error
        self._synchronise()

    def _make_voices(self) -> None:
        for voice in self.parts.voices:
            try:
                self.parts.prompt(SlotSettings(voice=voice), self._silence)
            except ConfigError as error:
                _log.warning("a voice cannot be used: %s", error)

    def close(self) -> None:
        """Gives the device's memory back."""
        self._tick = self._reading = self._reader = self._undo = None
        self._slots.clear()
        self._placement = Placement(self._max_slots)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def join(self, settings: SlotSettings) -> int:
        prompt = self.parts.prompt(settings, self._silence)
        seed = settings.seed if settings.seed is not None else self.parts.seed
        slot = _Slot(settings, secrets.randbits(62) if seed is None else seed, prompt)
        with self._joined() as key:
            self._slots[key] = slot
            self._make_new(key)
        return key

    @torch.inference_mode()
    def leave(self, key: int) -> None:
        lane = self._started()
        move = self._placement.leave(key)
        del self._slots[key]
        if self._reader == key:
            self._reader = None
        if move is not None:
            for state in lane.states:
                copy_row(state, move.source, move.target)

    @torch.inference_mode()
    def reset(self, key: int) -> None:
        self._make_new(key)

    @torch.inference_mode()
    def prefill(self, key: int, max_steps: int) -> int:
        """Raises ``AgentFaultError`` if something in the prompt made the slot fail; it is as new then."""
        slot = self._slots[key]
        n_steps = min(max_steps, slot.left)
        if n_steps <= 0:
            return slot.left
        lane, prompt = self._bring_to_reading(key), slot.prompt
        at, end = slot.read, slot.read + n_steps
        finite = True
        while at < end and finite:
            forced = prompt.forced_from(at, end - at)
            if forced:
                finite = bool(self.parts.backbone.prefill(lane.model_state, 0, prompt.tokens(at, at + forced)))
            else:
                finite = self._read_step(lane, prompt, at)
            at += max(1, forced)
        if not finite:
            self._make_new(key)
            raise AgentFaultError("The model's numbers overflowed while the call's prompt was read.")
        slot.read += n_steps
        if not slot.left:
            self._send_back()
        return slot.left

    def _read_step(self, lane: Lane, prompt: Prompt, at: int) -> bool:
        """One step in which the model chooses. Whether all was finite."""
        given = lane.given.host
        given["active"][0] = True
        given["forced_text"][0] = prompt.text[at]
        given["forced_audio"][0] = prompt.audio[at]
        given["user_codes"][0] = prompt.user[at]
        self._times.begin()
        lane.given.upload(1)
        lane.run(1, self._times)
        lane.made.download(1)
        self._synchronise()
        return bool(lane.made.host["finite"][0])

    # --- a tick ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, frames: Sequence[SlotFrame]) -> tuple[Sequence[SlotResult], StepTimes]:
        """A slot whose prompt is not read to its end starts without the rest of it. If it raises, ``undo``."""
        if not frames:
            return [], StepTimes(0)
        lane, undo = self._started(), self._undo
        assert undo is not None
        rows = [self._placement.row(frame.key) for frame in frames]
        size = smallest_that_fits(self._sizes, 1 + max(rows))
        self._times.begin()
        refused = self._stage(lane, frames, rows, size)
        try:
            lane.given.upload(size)
            undo.keep(size)
            self._times.end_of("copy")
            lane.run(size, self._times)
            lane.made.download(size)
            self._times.end_of("copy")
            self._synchronise()
        except torch.OutOfMemoryError as error:
            undo.forget()
            return self._all_failed(frames, error), StepTimes(size)
        undo.forget()
        results = self._results(lane, frames, rows, size, refused)
        return results, StepTimes(size, self._times.read())

    @torch.inference_mode()
    def undo(self) -> None:
        if self._undo is not None:
            self._undo.take_back()

    def _stage(self, lane: Lane, frames: Sequence[SlotFrame], rows: Sequence[int], size: int) -> dict[int, DuplexError]:
        """Fills the host's rows. Frames that cannot be stepped are left out; by key, why."""
        given = lane.given.host
        given["active"][:size] = False
        all_codebooks = self.parts.codec.info.codebooks
        refused: dict[int, DuplexError] = {}
        for frame, row in zip(frames, rows, strict=True):
            if (problem := self._problem(frame)) is not None:
                refused[frame.key] = problem
                continue
            if given["active"][row]:
                raise ValueError(f"two frames of slot {frame.key} in one tick")
            self._give_up_prompt(frame.key)
            given["active"][row] = True
            given["samples"][row] = frame.samples
            given["n_codebooks"][row] = min(frame.codebooks or all_codebooks, all_codebooks)
            chosen = self.parts.text_padding if frame.silent else CHOOSE
            given["forced_text"][row] = chosen if frame.forced_text is None else frame.forced_text
            given["forced_audio"][row] = self._silence[: self.parts.backbone.dep_q] if frame.silent else CHOOSE
        return refused

    def _problem(self, frame: SlotFrame) -> DuplexError | None:
        samples = frame.samples
        if samples.shape != (self.frame_samples,):
            return ConfigError(f"A frame has {self.frame_samples} samples, not {samples.shape}.")
        # Its sum is finite exactly if all samples are, unless they are absurdly large: those are refused as well.
        if not np.isfinite(np.dot(samples, samples)):
            return ConfigError("The frame has samples that are no finite numbers.")
        token, vocabulary = frame.forced_text, self.parts.backbone.text_card
        if token is not None and not 0 <= token < vocabulary:
            return ConfigError(f"The text vocabulary has tokens 0 to {vocabulary - 1}, and {token} is none.")
        if frame.codebooks is not None and frame.codebooks < 1:
            return ConfigError(f"At least one codebook must be decoded, not {frame.codebooks}.")
        return None

    def _results(
        self,
        lane: Lane,
        frames: Sequence[SlotFrame],
        rows: Sequence[int],
        size: int,
        refused: Mapping[int, DuplexError],
    ) -> list[SlotResult]:
        """Out of the host's rows, which the next tick overwrites: each field is copied once, for all."""
        made = lane.made.host
        finite, ready, text = (made[name][:size].tolist() for name in ("finite", "ready", "text"))
        sound, codes = made["sound"][:size].copy(), made["codes"][:size].copy()
        results = []
        for frame, row in zip(frames, rows, strict=True):
            key = frame.key
            if key in refused:
                results.append(SlotResult(key, error=refused[key]))
            elif not finite[row]:
                self._make_new(key)
                fault = AgentFaultError("The model's numbers overflowed in this call; it begins anew.")
                results.append(SlotResult(key, error=fault))
            elif ready[row]:
                results.append(SlotResult(key, sound[row], text[row], codes[row]))
            else:
                results.append(SlotResult(key, text_token=text[row]))
        return results

    def _all_failed(self, frames: Sequence[SlotFrame], error: Exception) -> list[SlotResult]:
        """Parts of the tick may have run, so every slot in it is made as new."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        fault = AgentFaultError(f"The device ran out of memory in the middle of a tick: {_first_line(error)}")
        for frame in frames:
            self._make_new(frame.key)
        return [SlotResult(frame.key, error=fault) for frame in frames]

    # --- taking a slot along ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def snapshot(self, key: int) -> SlotSnapshot:
        """On the device. Raises ``AgentFullError`` if it has no memory for it."""
        slot, lane, row = self._slots[key], self._started(), self._placement.row(key)
        if self._reader == key:
            self._send_back()
        try:
            rows = tuple(save_row(state, row) for state in lane.states)
        except torch.OutOfMemoryError as error:
            raise AgentFullError(f"No memory on the device for a snapshot: {_first_line(error)}") from error
        return SlotSnapshot(slot.settings, slot.seed, slot.read, rows)

    @torch.inference_mode()
    def restore(self, snapshot: SlotSnapshot) -> int:
        lane = self._started()
        if not isinstance(snapshot, SlotSnapshot) or len(snapshot.rows) != len(lane.states):
            raise ConfigError("This is no snapshot of such an engine.")
        for state, saved in zip(lane.states, snapshot.rows, strict=True):
            check_row(state, saved)
        prompt = self.parts.prompt(snapshot.settings, self._silence)
        with self._joined() as key:
            self._slots[key] = _Slot(snapshot.settings, snapshot.seed, prompt, snapshot.prompt_read)
            for state, saved in zip(lane.states, snapshot.rows, strict=True):
                load_row(state, self._placement.row(key), saved)
        return key

    # --- the rest --------------------------------------------------------------------------------------------

    def _started(self) -> Lane:
        if self._tick is None:
            raise RuntimeError("the engine is not started")
        return self._tick

    @contextmanager
    def _joined(self) -> Iterator[int]:
        """A key with a row, which is given back if the block fails; a lack of memory there means that we are full."""
        lane = self._started()
        with torch.inference_mode():
            key = self._placement.join()
            try:
                lane.verify()
                yield key
            except BaseException as error:
                self._placement.leave(key)
                self._slots.pop(key, None)
                if isinstance(error, torch.OutOfMemoryError):
                    raise AgentFullError(f"The device has no memory for another call: {_first_line(error)}") from error
                raise

    def _make_new(self, key: int) -> None:
        """As after ``join``: states cleared, the prompt still to be read."""
        slot, lane, row = self._slots[key], self._started(), self._placement.row(key)
        slot.read = 0
        if self._reader == key:
            self._reader = None
        for state in lane.states:
            state.reset(row)
        lane.model_state.set_sampling(row, self.parts.sampling(slot.settings, slot.seed))

    def _bring_to_reading(self, key: int) -> Lane:
        """The slot's backbone state lies in the prompt lane afterwards."""
        tick, reading = self._started(), self._reading
        assert reading is not None
        if self._reader != key:
            self._send_back()
            transfer_row(tick.model_state, self._placement.row(key), reading.model_state, 0)
            self._reader = key
        return reading

    def _send_back(self) -> None:
        if self._reader is not None:
            assert self._reading is not None
            row = self._placement.row(self._reader)
            transfer_row(self._reading.model_state, 0, self._started().model_state, row)
            self._reader = None

    def _give_up_prompt(self, key: int) -> None:
        slot = self._slots[key]
        if slot.left:
            if self._reader == key:
                self._send_back()
            slot.read = len(slot.prompt)

    def _codes_of_silence(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """int64[codebooks]: what the codec makes of silence once it has settled."""
        codec = self.parts.codec
        state = codec.new_state(1)
        samples = torch.zeros(1, self.frame_samples, device=self.device)
        active = torch.ones(1, dtype=torch.bool, device=self.device)
        for _ in range(_SILENT_FRAMES):
            codes = codec.encode(state, samples, active)
        found: np.ndarray[tuple[int], np.dtype[np.int64]] = codes[0].cpu().numpy()
        return found

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
