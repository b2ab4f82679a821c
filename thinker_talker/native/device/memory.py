"""What weights, states and a device's free memory come to, in bytes, and how many slots that makes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

RESERVE = 0.06  # of a device's memory, left for libraries' workspaces, graphs' pools and fragmentation


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes these tensors need, each memory counted once however many of them view it."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[(tensor.device, storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def module_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Parameters and buffers of modules, shared ones once."""
    return tensor_bytes(
        tensor for module in modules for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()
    )


def free_bytes(device: torch.device) -> int:
    """What could still be allocated: the device's free memory, and what the allocator holds unused.

    On the CPU: the system's available memory (Linux), or 0 where it is not told.
    """
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def total_bytes(device: torch.device) -> int:
    """All the memory the device has; 0 where it is not told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def slots_that_fit(free: int, per_slot: int, total: int) -> int:
    """Slots whose state fits ``free`` bytes, with :data:`RESERVE` of the device's ``total`` left over; 0 or more."""
    if per_slot <= 0:
        raise ValueError(f"a slot needs some memory, not {per_slot} bytes")
    return max(0, int(free - RESERVE * total) // per_slot)


def in_words(n_bytes: float) -> str:
    """``1.5 GiB``, ``37 MiB``, ``12 KiB``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= size:
            amount = n_bytes / size
            return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
    return f"{n_bytes:.0f} B"
