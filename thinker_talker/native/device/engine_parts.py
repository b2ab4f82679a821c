"""What an engine is made of: a codec, a backbone, and how a call's settings become its sampling and its prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from duplex.codec import SlotCodec
from duplex.scheduler.contract import SlotSettings
from duplex.thinker_talker.native.model.sampling import Sampling
from duplex.thinker_talker.native.model.tensors import CHOOSE, StepInputs, StepOutputs

Codes = npt.NDArray[np.int64]


class Backbone(Protocol):
    """What an engine needs of a language model over text and audio streams:
    :class:`duplex.thinker_talker.native.model.backbone.Backbone`, whose docstrings tell the rest."""

    dep_q: int
    n_user: int
    text_card: int

    def new_state(self, n_slots: int) -> Any: ...

    def temporal(self, state: Any, inputs: StepInputs) -> None: ...

    def depth(self, state: Any, inputs: StepInputs, outputs: StepOutputs) -> None: ...

    def prefill(self, state: Any, slot: int, tokens: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a slot reads before its first frame, step by step, :data:`CHOOSE` where the model chooses: ``text``
    int64[steps], ``audio`` int64[steps, dep_q] of the agent, ``user`` int64[steps, n_user]."""

    text: Codes
    audio: Codes
    user: Codes

    def __len__(self) -> int:
        return len(self.text)

    def forced_from(self, step: int, most: int) -> int:
        """How many steps in a row, from ``step`` on and at most ``most``, leave the model nothing to choose."""
        chosen = (self.text[step : step + most] == CHOOSE) | (self.audio[step : step + most] == CHOOSE).any(axis=1)
        return int(chosen.argmax()) if chosen.any() else len(chosen)

    def tokens(self, start: int, stop: int) -> torch.Tensor:
        """int64[streams, steps]: text, the agent's streams, the user's."""
        part = slice(start, stop)
        return torch.from_numpy(np.concatenate([self.text[part, None], self.audio[part], self.user[part]], axis=1).T)


def opening(n_steps: int, dep_q: int, silence: Codes) -> Prompt:
    """The steps in which the streams' delays fill: nothing is forced, the user is silent. With them a call's first
    frame is heard by the model, and answered with sound, in its own tick."""
    return Prompt(
        np.full(n_steps, CHOOSE, np.int64),
        np.full((n_steps, dep_q), CHOOSE, np.int64),
        np.tile(silence, (n_steps, 1)),
    )


@dataclass(frozen=True, slots=True)
class EngineParts:
    """``prompt``: of settings and the codes of silence (int64[codebooks]); ``sampling``: of settings and a seed; both
    raise ``ConfigError``. ``text_padding``: the token that says nothing. ``seed``: of calls that choose none; ``None``:
    each has its own. ``voices``: those whose prompts are made at the start, so that no call waits for them."""

    device: torch.device
    codec: SlotCodec
    backbone: Backbone
    weight_bytes: int
    text_padding: int
    prompt: Callable[[SlotSettings, Codes], Prompt]
    sampling: Callable[[SlotSettings, int], Sampling]
    seed: int | None = None
    voices: tuple[str, ...] = ()
