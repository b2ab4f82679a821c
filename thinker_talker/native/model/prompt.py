"""Reading a prompt: known tokens of one slot, many positions at a time through the temporal transformer.

The state afterwards is that of single steps with everything forced: what differs is only in which order numbers are
added up. Text and delayed streams take the same path as in a step, token by token (they are a few bytes); the
transformer then takes them in blocks, and the depth transformer, whose choices would all be overruled, not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from duplex.errors import ConfigError

from .backbone_state import BackboneState
from .tensors import StepInputs

if TYPE_CHECKING:
    from .backbone import Backbone

BLOCK = 128  # positions at once: enough to keep a device busy, few enough for its scores to fit


def read_prompt(backbone: Backbone, state: BackboneState, tokens: torch.Tensor) -> torch.Tensor:
    """``state``: of one slot. See :meth:`.backbone.Backbone.prefill`."""
    check(backbone, tokens)
    tokens = tokens.to(backbone.device)
    finite = torch.ones((), dtype=torch.bool, device=backbone.device)
    # What was on its way when the prompt began is not known: those few steps are made one by one.
    begin = min(backbone.delays.max_delay, tokens.shape[1])
    for at in range(begin):
        finite = finite & backbone.step(state, _forced(backbone, tokens[:, at])).finite[0]
    block = min(BLOCK, backbone.kv_layout.ring)
    for start in range(begin, tokens.shape[1], block):
        finite = finite & _read_block(backbone, state, tokens[:, start : start + block])
    return finite


def check(backbone: Backbone, tokens: torch.Tensor) -> None:
    """Raises ``ConfigError``. Values are looked at on the host alone: on a device that would mean waiting for it."""
    if tokens.dim() != 2 or tokens.shape[0] != backbone.n_streams or tokens.dtype != torch.int64:
        raise ConfigError(
            f"A prompt is int64 [{backbone.n_streams}, steps], not {tokens.dtype} {list(tokens.shape)}: "
            f"text, {backbone.dep_q} streams of the agent, {backbone.n_user} of the user."
        )
    if tokens.device.type != "cpu" or not tokens.numel():
        return
    agent = 1 + backbone.dep_q
    for name, part, least, count in (
        ("text", tokens[:1], 0, backbone.text_card),
        ("the agent's codes", tokens[1:agent], 0, backbone.card),
        ("the user's codes", tokens[agent:], -1, backbone.card),
    ):
        if part.numel() and not (least <= int(part.min()) and int(part.max()) < count):
            raise ConfigError(
                f"In a prompt, {name} must be between {least} and {count - 1}; "
                f"here: {int(part.min())} to {int(part.max())}."
            )


def _forced(backbone: Backbone, tokens: torch.Tensor) -> StepInputs:
    """int64[K] as one slot's step."""
    agent = 1 + backbone.dep_q
    active = torch.ones(1, dtype=torch.bool, device=backbone.device)
    return StepInputs(active, tokens[None, agent:], tokens[:1], tokens[None, 1:agent])


def _read_block(backbone: Backbone, state: BackboneState, tokens: torch.Tensor) -> torch.Tensor:
    """``tokens`` int64[K, t], with all that is on its way known."""
    memory, delays = state.memory, backbone.delays
    first = memory.step.clone()
    read = []
    for at in range(tokens.shape[1]):
        step = _forced(backbone, tokens[:, at])
        delays.put_user(memory.tokens, memory.step, step.user_codes, step.active)
        forced = delays.put_forced(memory.forced, memory.step, step.forced_audio, step.active)
        read.append(delays.read(memory.tokens, memory.step))
        delays.put_made(memory.tokens, memory.step, step.forced_text, forced, step.active)
        memory.step.add_(1)
    hidden = backbone.read_positions(state, torch.cat(read), first)
    return torch.isfinite(hidden).all()
