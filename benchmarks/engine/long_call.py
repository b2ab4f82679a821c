"""One call that goes on for an hour: does a step stay as fast, the memory as small, the model alive?

An hour is 45,000 steps. The backbone runs alone, back to back, with attention sinks and a window it outgrows many
times over; random weights do, as neither time nor memory depend on their values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from duplex.thinker_talker.native.checkpoints.random_weights import random_lm
from duplex.thinker_talker.native.model.backbone import Backbone, BackboneOptions

STEPS_PER_MINUTE = 750  # 12.5 a second

TINY: Mapping[str, Any] = {
    "dim": 64, "text_card": 320, "n_q": 8, "dep_q": 4, "card": 64, "num_heads": 4, "num_layers": 2, "hidden_scale": 4,
    "context": 250, "causal": True, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 32, "depformer_dim_feedforward": 64, "depformer_num_heads": 2, "depformer_num_layers": 1,
    "depformer_multi_linear": True, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
}  # fmt: skip
"""Arguments of the package's ``LMModel`` for the smallest call worth running."""


@dataclass(frozen=True, slots=True)
class LongCall:
    """``minute_s``: the median step of each minute, seconds; ``state_bytes``: of the call's state at the beginning and
    the end; ``device_bytes``: allocated on a CUDA device then, 0 on a CPU. ``finite``: at every step. ``last_tokens``:
    different text tokens in the last minute, of :data:`STEPS_PER_MINUTE`: a model gone dead says one."""

    steps: int
    context: int
    sinks: int
    minute_s: tuple[float, ...]
    state_bytes: tuple[int, int]
    device_bytes: tuple[int, int]
    finite: bool
    last_tokens: int

    @property
    def drift(self) -> float:
        """The last quarter's step time over the second quarter's, less 1: 0.05 is five percent slower. The first
        quarter is left out, as caches and clocks settle in it."""
        quarter = max(1, len(self.minute_s) // 4)
        early, late = self.minute_s[quarter : 2 * quarter] or self.minute_s[:1], self.minute_s[-quarter:]
        return statistics.median(late) / statistics.median(early) - 1.0


def long_call(
    steps: int = 60 * STEPS_PER_MINUTE,
    *,
    lm_kwargs: Mapping[str, Any] = TINY,
    context: int | None = None,
    sinks: int = 4,
    kv_dtype: Any = "model",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    now: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda minute: None,
) -> LongCall:
    """Runs it. ``context``: the window with its sinks, ``None``: the model's."""
    device = torch.device(device)
    lm = random_lm(lm_kwargs, 0, device, dtype)
    backbone = Backbone(lm, BackboneOptions(context=context, sinks=sinks, kv_dtype=kv_dtype))
    state, inputs, outputs = backbone.new_state(1), backbone.new_inputs(1), backbone.new_outputs(1)
    users = torch.randint(0, backbone.card, (STEPS_PER_MINUTE, 1, backbone.n_user), device=device)
    finite = torch.ones(1, dtype=torch.bool, device=device)
    said = torch.zeros(STEPS_PER_MINUTE, dtype=torch.int64, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def sizes() -> tuple[int, int]:
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.tensors().values()}
        return sum(held.values()), torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    minutes: list[float] = []
    took: list[float] = []
    before = (0, 0)
    for step in range(steps):
        inputs.user_codes.copy_(users[step % STEPS_PER_MINUTE])
        wait()
        began = now()
        backbone.step(state, inputs, outputs)
        wait()
        took.append(now() - began)
        finite &= outputs.finite
        said[step % STEPS_PER_MINUTE] = outputs.text[0]
        if step == 0:
            before = sizes()
        if (step + 1) % STEPS_PER_MINUTE == 0 or step + 1 == steps:
            minutes.append(statistics.median(took))
            took.clear()
            progress(len(minutes))
    after = sizes()
    return LongCall(
        steps=steps,
        context=backbone.kv_layout.capacity,
        sinks=sinks,
        minute_s=tuple(minutes),
        state_bytes=(before[0], after[0]),
        device_bytes=(before[1], after[1]),
        finite=bool(finite),
        last_tokens=len(set(said[: min(steps, STEPS_PER_MINUTE)].tolist())),
    )
