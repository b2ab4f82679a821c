"""Threads share two arenas of the C library's allocator once it was asked, and those keep what they grew to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from duplex.allocator import steady_heap

# Sixteen threads that hold memory at the same time; what glibc then says of its arenas.
COUNT = """
import ctypes, sys, threading
from duplex.allocator import steady_heap
if sys.argv[1] == "few":
    assert steady_heap()
together, libc = threading.Barrier(16), ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def hold():
    held = libc.malloc(40_000)
    together.wait()
    libc.free(held)
threads = [threading.Thread(target=hold) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.fdopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fclose(out)
"""


def arenas(how: str) -> int:
    command = [sys.executable, "-P", "-c", COUNT, how]
    return run(command).count("<heap nr=")


def run(command: list[str]) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_a_server_has_two_arenas_however_many_threads() -> None:
    assert arenas("few") == 2
    assert arenas("as it comes") > 2


# Resident memory, in kB, after 64 MB in blocks of 1 MB were freed from the last to the first.
FREED = """
import ctypes, sys
from duplex.allocator import steady_heap
if sys.argv[1] == "steady":
    assert steady_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
held = [libc.malloc(1 << 20) for _ in range(64)]
for block in held:
    ctypes.memset(block, 1, 1 << 20)
for block in reversed(held):
    libc.free(block)
with open("/proc/self/statm") as file:
    print(int(file.read().split()[1]) * 4)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_what_the_heap_grew_to_is_kept_for_the_next_clause() -> None:
    kept, given_back = (int(run([sys.executable, "-P", "-c", FREED, how])) for how in ("steady", "as it comes"))
    assert kept - given_back > 50_000


def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert not steady_heap()


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not steady_heap()
