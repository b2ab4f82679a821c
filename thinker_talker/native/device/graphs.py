"""CUDA graphs of a function over fixed buffers: one per batch size, captured at start-up, replayed every tick.

A captured graph is a list of kernels with the addresses they read and write. It can be replayed only if nothing it
touches ever moves, and nothing in it asked the host what to do next. So

- the function takes a batch size and nothing else: it works on the first n rows of buffers that live as long as it;
- what it yields it writes into such buffers (what it allocates lies in the graphs' shared memory pool, and is
  overwritten by the next replay);
- the buffers are named, and their address, shape, dtype and device are checked against those of the capture;
- a synchronisation inside is an error at the capture, not a stall in a tick.

The largest size is captured first: the smaller ones then fit the memory the pool already has.

Without CUDA, or with graphs switched off, the function is simply called: the same results, the launches' cost on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from duplex.errors import AgentError, ConfigError

Buffers = Mapping[str, torch.Tensor]
SlotFunction = Callable[[int], None]
"""Works on the first n rows of fixed buffers."""
Replay = Callable[[], None]

WARM_UPS = 3  # calls before a capture: lazy initialisation, library workspaces, autotuning


class GraphError(AgentError):
    """A graph cannot be captured, or not be replayed on what there is now. The message says what differs."""


class GraphBackend(Protocol):
    """How a call is turned into something to replay."""

    def warm_up(self, call: Callable[[], None]) -> None:
        """Runs ``call`` for its side effects on libraries, allocator and autotuner."""
        ...

    def capture(self, call: Callable[[], None]) -> Replay:
        """Records ``call``, which may or may not run on the way."""
        ...


class CudaGraphs:
    """Captures on a side stream into one memory pool. Replays happen on whatever stream is current then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, call: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        torch.cuda.synchronize(self._device)

    def capture(self, call: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads of the process (an onnxruntime on the same card) may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            call()
        return graph.replay


@dataclass(frozen=True, slots=True)
class _Print:
    """What a graph relies on of a buffer."""

    address: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: torch.Tensor) -> _Print:
        return _Print(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def difference(self, other: _Print) -> str | None:
        for name, was, now in (
            ("shape", self.shape, other.shape),
            ("dtype", self.dtype, other.dtype),
            ("device", self.device, other.device),
            ("stride", self.stride, other.stride),
            ("address", hex(self.address), hex(other.address)),
        ):
            if was != now:
                return f"{name} {now}, captured with {was}"
        return None


class GraphRunner:
    """Runs ``function(n)`` for the batch sizes given, by replaying its graph, or by calling it if there is none.

    ``buffers``: every tensor the function reads or writes that outlives it, by name; asked again at :meth:`verify`.
    ``backend``: ``None`` calls the function each time.
    """

    def __init__(
        self,
        name: str,
        function: SlotFunction,
        *,
        sizes: Iterable[int],
        buffers: Callable[[], Buffers],
        backend: GraphBackend | None = None,
    ) -> None:
        self.name = name
        self.sizes = tuple(sorted(set(sizes)))
        if not self.sizes or self.sizes[0] < 1:
            raise ConfigError(f"{name}: batch sizes must be positive and at least one, not {self.sizes}")
        self._function = function
        self._buffers = buffers
        self._backend = backend
        self._replays: dict[int, Replay] = {}
        self._prints: dict[str, _Print] = {}

    @property
    def captured(self) -> tuple[int, ...]:
        """Sizes that are replayed, ascending."""
        return tuple(sorted(self._replays))

    def warm_up_and_capture(self) -> None:
        """At start-up, with every row inactive: warming up runs the function for real.

        Raises :class:`GraphError` naming the size; ``torch.OutOfMemoryError`` passes through.
        """
        self._prints = {name: _Print.of(tensor) for name, tensor in self._buffers().items()}
        for size in reversed(self.sizes):
            if self._backend is None:
                self._function(size)
                continue
            call = _Call(self._function, size)
            self._backend.warm_up(call)
            try:
                self._replays[size] = self._backend.capture(call)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise GraphError(
                    f"{self.name} cannot be captured at batch size {size}: {error}. Something in it synchronises with "
                    "the host or changes with the data; graphs = false runs it without."
                ) from error

    def verify(self) -> None:
        """Raises :class:`GraphError` if a buffer is not where and what it was at the capture."""
        now = self._buffers()
        if now.keys() != self._prints.keys():
            gone, new = self._prints.keys() - now.keys(), now.keys() - self._prints.keys()
            raise GraphError(f"{self.name}: not the buffers of the capture; gone: {sorted(gone)}, new: {sorted(new)}")
        for name, print_ in self._prints.items():
            if (difference := print_.difference(_Print.of(now[name]))) is not None:
                raise GraphError(f"{self.name}: buffer {name!r} has {difference}. Fill it in place instead.")

    def run(self, size: int) -> None:
        """One of ``sizes``. Nothing here waits for the device."""
        replay = self._replays.get(size)
        if replay is not None:
            replay()
        elif size in self.sizes:
            self._function(size)
        else:
            raise GraphError(f"{self.name} runs at batch sizes {self.sizes}, not {size}")


@dataclass(frozen=True, slots=True)
class _Call:
    function: SlotFunction
    size: int

    def __call__(self) -> None:
        self.function(self.size)


def backend_for(device: torch.device, *, graphs: bool) -> GraphBackend | None:
    """CUDA's where there is CUDA and graphs are wanted."""
    return CudaGraphs(device) if graphs and device.type == "cuda" else None
