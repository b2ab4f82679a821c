"""Graphs for a machine without CUDA: what a call computes is recorded once, operation by operation, and replayed.

It proves on a CPU what a CUDA graph would take for granted: that a step asks nothing of the host, that no shape and no
branch depends on the data, and that everything it reads stays where it is. A replay runs the recorded operations on
the recorded tensors and never the Python in between. For tests; it is slower than calling the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from duplex.thinker_talker.native.device.graphs import Replay

HOST_ASKED = frozenset(
    {
        "_local_scalar_dense",
        "equal",
        "is_nonzero",
        "item",
        "lift_fresh",
        "masked_select",
        "nonzero",
        "nonzero_static",
        "unique_consecutive",
        "unique_dim",
        "_unique",
        "_unique2",
    }
)
"""Operations whose result, or its shape, has to reach the host before the next one can be queued; and ``lift_fresh``,
a tensor made of Python's numbers, which would be copied from the host."""


class HostAskedError(RuntimeError):
    """What CUDA would call an operation that is not permitted while a stream is capturing."""


@dataclass(frozen=True, slots=True)
class _Operation:
    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    made: tuple[tuple[int, torch.Tensor], ...]
    """Results in memory of their own, by position, to be filled again. Not views, not what was changed in place."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in HOST_ASKED or (name in {"index", "index_put_", "index_put"} and _has_mask(args[1])):
            raise HostAskedError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        made = tuple((i, tensor) for i, tensor in enumerate(_tensors(out)) if _storage(tensor) not in given)
        self.operations.append(_Operation(func, args, kwargs or {}, made))
        return out


def _has_mask(indices: Sequence[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


class RecordedGraphs:
    """A :class:`~duplex.thinker_talker.native.device.graphs.GraphBackend`."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def warm_up(self, call: Callable[[], None]) -> None:
        call()

    def capture(self, call: Callable[[], None]) -> Replay:
        """Unlike CUDA's, the call runs while it is recorded."""
        with _Recorder() as recorder:
            call()
        operations = tuple(recorder.operations)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for operation in operations:
                out = _tensors(operation.function(*operation.arguments, **operation.keywords))
                for i, old in operation.made:
                    old.copy_(out[i])

        return replay
