"""A codec and a backbone small enough to see through: integer arithmetic on slot-first state, no weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from duplex.codec import CodecInfo
from duplex.scheduler.contract import SlotSettings
from duplex.thinker_talker.native.device.engine_parts import Codes, EngineParts, Prompt, opening
from duplex.thinker_talker.native.model.sampling import Sampling
from duplex.thinker_talker.native.model.tensors import CHOOSE, UNGENERATED, StepInputs, StepOutputs

FRAME = 8  # samples
CODEBOOKS = 4
PADDING = 3
VOCABULARY = 1000


class TensorState:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self._tensors

    def first(self, n_slots: int) -> TensorState:
        return TensorState({name: tensor[:n_slots] for name, tensor in self._tensors.items()})

    def reset(self, slot: int) -> None:
        for tensor in self._tensors.values():
            tensor[slot] = 0


class MixingState(TensorState):
    def set_sampling(self, slot: int, sampling: Sampling) -> None:
        self.tensors()["seed"][slot] = sampling.seed

    def first(self, n_slots: int) -> MixingState:
        return MixingState({name: tensor[:n_slots] for name, tensor in self.tensors().items()})


class CountingCodec:
    """A code is the rounded sum of a frame, plus the codebook, plus the frames heard; sound is the codes' sum."""

    info = CodecInfo("counting", 100, FRAME, CODEBOOKS, 64)

    def new_state(self, n_slots: int) -> TensorState:
        return TensorState(
            {
                "heard": torch.zeros(n_slots, dtype=torch.int64),
                "spoken": torch.zeros(n_slots, dtype=torch.int64),
                "gain": torch.zeros(n_slots),
            }
        )

    def encode(self, state: TensorState, samples: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        heard = state.tensors()["heard"]
        codes = samples.sum(dim=1).round().long()[:, None] + torch.arange(CODEBOOKS) + heard[:, None] % 2
        heard.add_(active.long())
        return codes % 64

    def decode(
        self, state: TensorState, codes: torch.Tensor, active: torch.Tensor, n_codebooks: torch.Tensor
    ) -> torch.Tensor:
        tensors = state.tensors()
        used = torch.where(torch.arange(CODEBOOKS) < n_codebooks[:, None], codes, 0)
        sound = (used.sum(dim=1) + 1000 * tensors["spoken"]).float() + tensors["gain"]
        sound = sound.masked_fill((codes < 0).any(dim=1), torch.nan)  # ungenerated codes must not get here
        tensors["spoken"].add_(active.long())
        return sound[:, None].expand(-1, FRAME)


class MixingBackbone:
    """Tokens are a hash of the seed, the step and all that was heard and said; one step of delay."""

    def __init__(self) -> None:
        self.n_user = self.dep_q = CODEBOOKS
        self.text_card = VOCABULARY
        self.out_of_memory = False
        self.prefilled = 0

    def new_state(self, n_slots: int) -> MixingState:
        return MixingState(
            {
                "seed": torch.zeros(n_slots, dtype=torch.int64),
                "step": torch.zeros(n_slots, dtype=torch.int64),
                "mix": torch.zeros(n_slots, 2, dtype=torch.int64),
                "poison": torch.zeros(n_slots),
            }
        )

    def temporal(self, state: MixingState, inputs: StepInputs) -> None:
        if self.out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")
        t = state.tensors()
        mixed = (t["mix"][:, 0] * 31 + inputs.user_codes.sum(dim=1) * 7 + t["step"] + t["seed"]) % 1_000_003
        t["mix"][:, 1] = torch.where(inputs.active, mixed, t["mix"][:, 1])

    def depth(self, state: MixingState, inputs: StepInputs, outputs: StepOutputs) -> None:
        t, active = state.tensors(), inputs.active
        mixed = t["mix"][:, 1]
        text = torch.where(inputs.forced_text == CHOOSE, mixed % VOCABULARY, inputs.forced_text)
        mixed = (mixed * 17 + text) % 1_000_003
        own = (mixed[:, None] + torch.arange(CODEBOOKS)) % 64
        codes = torch.where(inputs.forced_audio == CHOOSE, own, inputs.forced_audio)
        ready = (t["step"] >= 1) & active
        outputs.text.copy_(text)
        outputs.codes.copy_(torch.where(ready[:, None], codes, UNGENERATED))
        outputs.ready.copy_(ready)
        outputs.finite.copy_(torch.isfinite(t["poison"]) | ~active)
        t["mix"][:, 0] = torch.where(active, (mixed + codes.sum(dim=1)) % 1_000_003, t["mix"][:, 0])
        t["step"].add_(active.long())

    def prefill(self, state: MixingState, slot: int, tokens: torch.Tensor) -> torch.Tensor:
        row = MixingState({name: tensor[slot : slot + 1] for name, tensor in state.tensors().items()})
        for text, *codes in tokens.T.tolist():
            self.prefilled += 1
            inputs = StepInputs(
                torch.tensor([True]),
                torch.tensor([codes[CODEBOOKS:]]),
                torch.tensor([text]),
                torch.tensor([codes[:CODEBOOKS]]),
            )
            made = torch.zeros(1, dtype=torch.int64)
            outputs = StepOutputs(made, made.expand(1, CODEBOOKS).clone(), made.bool(), made.bool())
            self.temporal(row, inputs)
            self.depth(row, inputs, outputs)
        return torch.isfinite(row.tensors()["poison"][0])


def parts(seed: int | None = 11, *, opened: bool = False) -> EngineParts:
    """``opened``: prompts have the opening step; each letter of a prompt is a step with the user
    silent: its text is forced, and, for capitals, the audio too."""

    def prompt(settings: SlotSettings, silence: Codes) -> Prompt:
        start = opening(int(opened), CODEBOOKS, silence)
        text = [ord(letter) for letter in settings.prompt or ""]
        audio = [[5 if chr(letter).isupper() else CHOOSE] * CODEBOOKS for letter in text]
        return Prompt(
            np.concatenate([start.text, np.array(text, np.int64)]),
            np.concatenate([start.audio, np.array(audio, np.int64).reshape(-1, CODEBOOKS)]),
            np.concatenate([start.user, np.tile(silence, (len(text), 1))]),
        )

    return EngineParts(
        device=torch.device("cpu"),
        codec=CountingCodec(),
        backbone=MixingBackbone(),
        weight_bytes=1 << 20,
        text_padding=PADDING,
        prompt=prompt,
        sampling=lambda settings, seed: Sampling(seed=seed),
        seed=seed,
    )
