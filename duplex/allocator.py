"""How the C library keeps memory for many threads and for much work, where it is glibc.

glibc gives threads arenas of their own, eight a core, and each keeps what its threads once needed at once. The models'
threads allocate megabytes and free them a moment later, each in another arena: on two cores the heap is 150 MB larger
for it, and grows from call to call. Two arenas hold the same calls in less, and do not grow (docs/decisions.md).

It also learns from what is freed where large blocks belong, and gives the end of the heap back whenever it is free:
the same work finds another heap each time, which grows in steps for half an hour. Told both, it has its size after the
first long clauses, and takes no time for faults.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
ARENAS = 2
_MAPPED_BYTES = 4 << 20  # blocks from this size on are given back when they are freed
_KEPT_BYTES = 512 << 20  # of a heap's end: all


def steady_heap(arenas: int = ARENAS) -> bool:
    """Bounds the arenas of this process to ``arenas`` and keeps what they grew to.

    Before threads begin, since those that exist stay. Returns whether it did: not where the C library is not glibc, nor
    where the environment (``MALLOC_…``) says otherwise.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    wanted = ((_M_ARENA_MAX, arenas), (_M_MMAP_THRESHOLD, _MAPPED_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))
    return mallopt is not None and all(mallopt(name, value) for name, value in wanted)
