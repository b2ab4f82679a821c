"""One slot's row of slot-first states: copied, saved, put back, without knowing what it means."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from duplex.codec import SlotState
from duplex.errors import ConfigError

SavedRow = Mapping[str, torch.Tensor]
"""A row of each tensor of a state, by name, without the slots' dimension; shares nothing with the state."""


def copy_row(state: SlotState, source: int, target: int) -> None:
    for tensor in state.tensors().values():
        tensor[target].copy_(tensor[source])


def save_row(state: SlotState, row: int) -> SavedRow:
    """Copies, on the state's device."""
    return {name: tensor[row].clone() for name, tensor in state.tensors().items()}


def check_row(state: SlotState, saved: SavedRow) -> None:
    """Raises ``ConfigError`` if ``saved`` is no row of such a state."""
    tensors = state.tensors()
    if tensors.keys() != saved.keys():
        raise ConfigError(
            "The snapshot is of another kind of model or codec: it has "
            f"{', '.join(sorted(saved)) or 'nothing'}; needed: {', '.join(sorted(tensors))}."
        )
    for name, tensor in tensors.items():
        row = saved[name]
        if row.shape != tensor.shape[1:] or row.dtype != tensor.dtype:
            raise ConfigError(
                f"The snapshot's {name} is {row.dtype} {tuple(row.shape)}, and this engine's is {tensor.dtype} "
                f"{tuple(tensor.shape[1:])}: it was taken with another model, context or precision."
            )


def load_row(state: SlotState, row: int, saved: SavedRow) -> None:
    """``saved`` must have passed :func:`check_row`; it may lie on another device."""
    for name, tensor in state.tensors().items():
        tensor[row].copy_(saved[name])


def transfer_row(source: SlotState, source_row: int, target: SlotState, target_row: int) -> None:
    """From one state to another of the same kind."""
    targets = target.tensors()
    for name, tensor in source.tensors().items():
        targets[name][target_row].copy_(tensor[source_row])
