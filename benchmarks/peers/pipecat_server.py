"""Pipecat's bot as a process: given our models, our prompt and our sampling; started, waited for, and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from duplex.benchmarks.server_process import ServerProcess, end, is_ready
from duplex.errors import DuplexError
from duplex.thinker_talker.cascade_options import CascadeOptions
from duplex.thinker_talker.llama import DEFAULT_EXAMPLES, Sampling
from duplex.weights import ModelStore

Strategy = Literal["defaults", "min-words"]
BOT = Path(__file__).with_name("pipecat_bot.py")
_POLL_S = 0.1


def settings_for(
    port: int, strategy: Strategy, thinker_threads: int, store: ModelStore | None = None
) -> dict[str, Any]:
    """What the bot reads. Everything that is ours is taken from where our own server takes it.

    Raises ``WeightsError`` with the command that pulls what is missing.
    """
    store = store or ModelStore()
    options = CascadeOptions()
    drawn = Sampling(temperature=options.temperature)
    return {
        "port": port,
        "moonshine_dir": str(store.path("moonshine-tiny-en")),
        "piper_onnx": str(_only(store.path(options.voice), ".onnx")),
        "gguf": str(_only(store.path(options.thinker), ".gguf")),
        "instructions": options.instructions,
        "examples": [[message.role, message.text] for message in DEFAULT_EXAMPLES],
        "sampling": {
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "min_p": drawn.min_p,
            "repeat_penalty": drawn.repeat_penalty,
            "repeat_last_n": drawn.repeat_last_n,
            "cache_prompt": True,
        },
        "max_reply_tokens": options.max_reply_tokens,
        "thinker_threads": thinker_threads,
        "context_tokens": 2 * options.context_tokens,  # it keeps the whole history, where ours forgets the oldest
        "strategy": strategy,
    }


def _only(directory: Path, suffix: str) -> Path:
    found = sorted(directory.glob(f"*{suffix}"))
    if len(found) != 1:
        raise DuplexError(f"{directory} should hold one {suffix} file, not {len(found)}. Run: duplex models verify")
    return found[0]


@contextmanager
def started_pipecat(
    python: Path,
    *,
    strategy: Strategy = "defaults",
    thinker_threads: int = 1,
    log: Path | None = None,
    ready_timeout_s: float = 120.0,
) -> Iterator[ServerProcess]:
    """The bot on a free port of this machine, until the block ends. ``log``: where what it says is kept.

    Raises ``DuplexError`` with the end of its output if it does not get ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="duplex-peers-") as scratch:
        settings = Path(scratch) / "settings.json"
        settings.write_text(json.dumps(settings_for(port, strategy, thinker_threads)), "utf-8")
        said = log or Path(scratch) / "pipecat.log"
        began_s = time.perf_counter()
        with said.open("wb") as output:
            process = subprocess.Popen(
                [str(python), str(BOT), str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(url):
                if process.poll() is not None or time.perf_counter() - began_s > ready_timeout_s:
                    how = "ended" if process.poll() is not None else f"was not ready within {ready_timeout_s:g} s"
                    raise DuplexError(f"Pipecat's bot {how}. It said:\n{said.read_text(errors='replace')[-2000:]}")
                time.sleep(_POLL_S)
            yield ServerProcess(url, process.pid, time.perf_counter() - began_s)
        finally:
            end(process)


class Turnstile:
    """Lets one server run at a time: the others are stopped where they are (SIGSTOP) and use no core.

    An idle server still wakes up a hundred times a second, and llama.cpp's threads spin for a while after each
    reply; on two cores that would be measured on the other's account. A stopped process keeps its memory, its
    models and its sockets. It is only ever stopped between calls, so no timer of a call runs out meanwhile.
    """

    def __init__(self, pids: Mapping[str, int | None], kill: Any = os.kill) -> None:
        self._pids = dict(pids)
        self._stopped: set[str] = set()
        self._kill = kill

    def let(self, name: str) -> None:
        """``name`` runs, every other one stands still."""
        for other in self._pids:
            if other != name:
                self._signal(other, stop=True)
        self._signal(name, stop=False)

    def open(self) -> None:
        """All run again. A stopped process would not hear that it should end."""
        for name in self._pids:
            self._signal(name, stop=False)

    def _signal(self, name: str, *, stop: bool) -> None:
        pid = self._pids[name]
        if pid is None or stop == (name in self._stopped):
            return
        self._kill(pid, signal.SIGSTOP if stop else signal.SIGCONT)
        (self._stopped.add if stop else self._stopped.discard)(name)


def order_of(names: Sequence[str], block: int) -> list[str]:
    """Who goes first alternates (A B, B A, A B …), so that a drift of the machine favours nobody."""
    turned = block % len(names)
    return [*names[turned:], *names[:turned]]
