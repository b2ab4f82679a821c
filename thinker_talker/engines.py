"""The models of the cascade, loaded once per process and shared by every session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from duplex.errors import ConfigError
from duplex.frames import Samples
from duplex.weights import ModelStore

from .cascade_options import DEFAULT_THINKER, CascadeOptions
from .ear import EarWorker
from .gguf_repack import repacked
from .listener import Listener
from .silero import SileroModel
from .smart_turn import SmartTurn
from .talker import Talker
from .thinker import Thinker

log = logging.getLogger("duplex.cascade")

OnProsody = Callable[[float], None]


class ProsodyWorker:
    """The end-of-turn model on a thread of its own; sessions ask at pauses, so one thread serves many."""

    def __init__(self, model: SmartTurn) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="duplex-prosody")

    def ask(self, samples_16k: Samples, answer: OnProsody) -> None:
        """Calls ``answer(probability_complete)`` from the worker; a failure is logged and never answered."""

        def work() -> None:
            try:
                answer(self._model.probability_complete(samples_16k))
            except Exception:  # the silence timer goes on without it
                log.exception("the end-of-turn model failed")

        with suppress(RuntimeError):  # closed meanwhile
            self._pool.submit(work)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Engines:
    """Everything a session borrows."""

    ear: EarWorker
    prosody: ProsodyWorker
    listener: Listener
    thinker: Thinker
    talkers: Mapping[str, Talker]  # by voice; the first is the default

    def talker(self, voice: str | None) -> Talker:
        """The talker with that voice, or the default one."""
        return self.talkers.get(voice or "") or next(iter(self.talkers.values()))

    def close(self) -> None:
        """Ends every worker. Blocks until they have stopped."""
        for part in (self.ear, self.thinker, self.listener, self.prosody):
            part.close()
        for talker in self.talkers.values():
            talker.close()


def load_engines(options: CascadeOptions) -> Engines:
    """Loads and warms up every model, side by side. Blocks for a few seconds.

    Raises ``WeightsError`` or ``MissingDependencyError`` with the command that mends it.
    """
    store = ModelStore(options.models_dir)
    loaders: list[Callable[[], Any]] = [
        lambda: _load_thinker(options, store),
        lambda: _load_listener(options, store),
        lambda: _load_ear(store, gain=options.voice_gain),
        lambda: _load_prosody(store),
        *(partial(_load_talker, voice, options, store) for voice in (options.voice, *options.more_voices)),
    ]
    with ThreadPoolExecutor(len(loaders), thread_name_prefix="duplex-load") as pool:
        futures = [pool.submit(load) for load in loaders]
        failures = [error for future in futures if (error := future.exception()) is not None]
        if failures:
            for future in futures:
                if future.exception() is None:
                    future.result().close()
            raise failures[0]
        thinker, listener, ear, prosody, *talkers = (future.result() for future in futures)
    return Engines(ear, prosody, listener, thinker, dict(zip(voices_of(options), talkers, strict=True)))


def voices_of(options: CascadeOptions) -> tuple[str, ...]:
    """The names by which a session chooses a voice; the first is the default."""
    return tuple(
        Path(voice).stem if voice.endswith(".onnx") else voice for voice in (options.voice, *options.more_voices)
    )


def _load_ear(store: ModelStore, *, gain: bool) -> EarWorker:
    model = SileroModel(store.path("silero-vad") / "silero_vad.onnx")
    model.warm_up()
    return EarWorker(model, gain=gain)


def _load_prosody(store: ModelStore) -> ProsodyWorker:
    model = SmartTurn(store.path("smart-turn") / "smart-turn-v3.2-cpu.onnx")
    model.warm_up()
    return ProsodyWorker(model)


def _load_listener(options: CascadeOptions, store: ModelStore) -> Listener:
    from .moonshine import MoonshineListener

    listener = MoonshineListener(store.path("moonshine-tiny-en"), workers=options.listener_threads)
    listener.warm_up()
    return listener


def _load_thinker(options: CascadeOptions, store: ModelStore) -> Thinker:
    if options.thinker.startswith("openai:"):
        from .openai_endpoint import OpenAIThinker

        # Not warmed up: an endpoint that is down must not keep the server from starting.
        return OpenAIThinker(options.thinker, sessions=options.max_sessions)
    from .llama import LlamaThinker, Sampling

    thinker = LlamaThinker(
        _gguf(options.thinker, store, options.repack),
        sessions=options.max_sessions,
        context_tokens=options.context_tokens,
        threads=options.thinker_threads,
        sampling=Sampling(temperature=options.temperature),
        # The small default imitates better than it obeys; a larger model needs no showing.
        examples=None if options.thinker == DEFAULT_THINKER else (),
    )
    thinker.warm_up()
    return thinker


def _load_talker(voice: str, options: CascadeOptions, store: ModelStore) -> Talker:
    from .piper import PiperSettings, PiperTalker

    path = Path(voice)
    if path.suffix != ".onnx":
        path = _single(store.path(voice), ".onnx")
    talker = PiperTalker(path, settings=PiperSettings(threads=options.talker_threads))
    talker.warm_up()
    return talker


def prepare(options: CascadeOptions) -> None:
    """Does now what the first start would do: makes the fast copy of the default thinker."""
    _gguf(options.thinker, ModelStore(options.models_dir), options.repack)


def _gguf(thinker: str, store: ModelStore, repack: bool) -> Path:
    path = Path(thinker)
    if path.suffix != ".gguf":
        found = _single(store.path(thinker), ".gguf")
        if not repack or thinker != DEFAULT_THINKER:  # what it does to other models was not measured
            return found
        try:
            return repacked(found, store.root / "prepared")
        except OSError as error:
            log.warning("the fast copy of the thinker could not be written (%s); it is used as it is", error)
            return found
    if not path.is_file():
        raise ConfigError(
            f"There is no GGUF file at {path}. Give a path, a model name or openai:http://host:port/v1#model."
        )
    return path


def _single(directory: Path, suffix: str) -> Path:
    found = sorted(directory.glob(f"*{suffix}"))
    if len(found) != 1:
        raise ConfigError(
            f"{directory} should hold one {suffix} file and holds {len(found)}. Run: duplex models verify"
        )
    return found[0]
