"""How the C library keeps memory for many threads, where it is glibc.

glibc gives threads arenas of their own, eight a core, and each keeps what its threads once needed at once. The models'
threads allocate megabytes and free them a moment later, each in another arena: on two cores the heap is 150 MB larger
for it, and grows from call to call. Two arenas hold the same calls in less, and do not grow (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # malloc.h
ARENAS = 2


def few_arenas(arenas: int = ARENAS) -> bool:
    """Bounds the arenas of this process to ``arenas``; before threads begin, since those that exist stay.

    Returns whether it did: not where the C library is not glibc, nor where ``MALLOC_ARENA_MAX`` says otherwise.
    """
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, arenas))
