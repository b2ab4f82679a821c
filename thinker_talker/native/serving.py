"""A model that is served: an engine, loaded and stepped on the scheduler's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from duplex.bitrate import LinkReport
from duplex.errors import AgentFullError, MissingDependencyError
from duplex.frames import Samples
from duplex.scheduler import Deliver, Engine, Scheduler, SchedulerMetrics, SchedulerOptions, SlotSettings
from duplex.thinker_talker.native.checkpoints.text_tokens import TextVocabulary

from .options import NativeOptions

log = logging.getLogger("duplex.native")

TAGGED = "<system> {text} <system>"
"""How PersonaPlex was taught to read what nobody says. Others read it as it is."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that was not started, the tokenizer of its text, and how text is put before the model."""

    engine: Engine
    tokens: TextVocabulary
    template: str = "{text}"


class Slot(Protocol):
    """A call's place at the scheduler."""

    def submit(
        self,
        samples: Samples,
        *,
        forced_text: int | None = None,
        silent: bool = False,
        codebooks: int | None = None,
        link: LinkReport | None = None,
    ) -> bool:
        """Takes one frame; one fate of it will be delivered. False: it was not taken. ``link``: a new report about the
        call's link, if there is one."""
        ...

    def leave(self) -> None: ...


OpenSlot = Callable[[SlotSettings, Deliver], Slot]
"""Takes a slot, or raises ``AgentFullError`` or ``ConfigError`` at once. Frames are stepped once ``Ready`` came."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is up. ``open``: a place for one call at its scheduler. ``admit``: raises what ``open`` would."""

    open: OpenSlot
    tokens: TextVocabulary
    template: str = "{text}"
    admit: Callable[[], None] = lambda: None


class Serving(Protocol):
    """What runs the model."""

    async def start(self) -> Served:
        """Loads and warms up. Raises a ``DuplexError`` that says what to do."""
        ...

    async def close(self) -> None: ...

    @property
    def registry(self) -> CollectorRegistry | None:
        """What it counts, for ``/metrics``."""
        ...


def load_native(options: NativeOptions) -> Loaded:
    """The model that ``options`` name. Raises ``ConfigError``, ``WeightsError``, ``MissingDependencyError``."""
    try:
        import torch  # noqa: F401  (before what needs it, so that its absence is told with what mends it)
    except ImportError as error:
        raise MissingDependencyError("torch", "moshi") from error
    from duplex.thinker_talker.native.device.engine_loading import engine_of, load_codec, load_model, text_vocabulary

    engine_options = options.engine()
    if options.weights is None:
        log.warning("random weights of preset %r: it will talk nonsense; give --weights", options.preset)
    model = load_model(engine_options)
    engine = engine_of(engine_options, model, load_codec(engine_options, model))
    return Loaded(engine, text_vocabulary(model), TAGGED if model.config.model_type == "personaplex" else "{text}")


class EngineServing:
    """Implements ``Serving``. ``load`` is called once, on a thread: it may take minutes."""

    def __init__(self, load: Callable[[], Loaded], options: SchedulerOptions) -> None:
        self._load, self._options = load, options
        self.metrics = SchedulerMetrics()
        self._scheduler: Scheduler | None = None

    @property
    def registry(self) -> CollectorRegistry | None:
        return self.metrics.registry

    async def start(self) -> Served:
        loaded = await asyncio.to_thread(self._load)
        scheduler = Scheduler(loaded.engine, self._options, metrics=self.metrics)
        await asyncio.to_thread(scheduler.start)
        self._scheduler = scheduler
        return Served(self._open, loaded.tokens, loaded.template, scheduler.admit)

    def _open(self, settings: SlotSettings, deliver: Deliver) -> Slot:
        if self._scheduler is None:
            raise AgentFullError("The server is stopping.")
        return self._scheduler.open(settings, deliver)

    async def close(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            await asyncio.to_thread(scheduler.close)
