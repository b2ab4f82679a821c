"""Opening an ONNX Runtime session the way every model in this room wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duplex.errors import MissingDependencyError, WeightsCorruptError, WeightsMissingError

_FATAL_ONLY = 3  # onnxruntime's "error": its warnings about graph details help nobody who runs a server


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` module. Raises :class:`MissingDependencyError` when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "local") from error
    return onnxruntime


def open_session(path: Path, *, threads: int = 1) -> Any:
    """An ``InferenceSession`` on the CPU; ``run`` on it is safe from any thread.

    Raises :class:`WeightsMissingError` or :class:`WeightsCorruptError`, both with the command that mends it.
    """
    if not path.is_file():
        raise WeightsMissingError(f"{path} is not there. Run: duplex models pull")
    try:
        return session_of(str(path), threads=threads)
    except (MissingDependencyError, ValueError):
        raise
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        raise WeightsCorruptError(
            f"{path} could not be loaded ({error}). Run: duplex models verify, then duplex models pull"
        ) from error


def session_of(model: str | bytes, *, threads: int = 1) -> Any:
    """The same, of a path or a model in memory. Raises what onnxruntime raises.

    ``threads`` are used inside one operator. They do not spin while they wait: on two cores a spinning
    pool takes the time that the other models need.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # Both are for inputs of one length. With clauses of every length the arena grows for hours, 20 MB in 400 of them,
    # and never gives back; the C library's own allocator is as quick and holds 40 MB less.
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
