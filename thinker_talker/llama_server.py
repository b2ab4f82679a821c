"""llama.cpp's server core, started so that nothing outside of this process can reach it.

* **No port.** The library always starts an HTTP server as well. It is bound to a UNIX socket in a
  private directory, locked with a random key, and the socket's name is removed right after start:
  nothing can connect, and no TCP port exists.
* **Closing.** The library's stop is lost if it comes before its loop has begun to turn, and its
  destructor then waits for ever with the GIL held. So loading ends with a request of no tokens, whose
  answer shows that the loop turns.
* **Signals.** The library takes over SIGINT and SIGTERM when it loads; we put back what was there.
"""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duplex.errors import MissingDependencyError, WeightsCorruptError

_REUSE_TOKENS = 32
"""The shortest run of tokens that is found again where the prompt begins differently."""
_BATCH_TOKENS = 32  # the prompt is read this many at a time; as fast as 512 on two cores


def start_server(
    model_path: Path, sessions: int, context_tokens: int, threads: int, template: str | None = None
) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingDependencyError("xllamacpp", "local") from error
    params, devices = xllamacpp.CommonParams(), xllamacpp.get_device_info()
    params.model.path = str(model_path)
    params.verbosity = 0
    if template is not None:
        params.chat_template = template
    params.n_parallel = sessions
    params.n_ctx = sessions * context_tokens
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.ctx_shift = False  # the history is bounded by us, at message borders
    params.n_cache_reuse = _REUSE_TOKENS  # and what follows the turns that were dropped moves up instead of being read
    params.cache_ram_mib = 0  # no second cache in RAM: it may grow to gigabytes
    params.n_ctx_checkpoints = 0
    if all(device["type"] == xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU for device in devices):
        # On a CPU the fused kernel is no quicker on a short talk and slower on a long one: with SmolLM2-135M and 1,400
        # tokens before it a token takes 24 ms, 16 without (one thread of an EPYC, median of 8, three runs).
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads_http = 1
    params.ui = params.endpoint_slots = False
    params.api_keys = [secrets.token_urlsafe(32)]
    with tempfile.TemporaryDirectory(prefix="duplex-") as private, _signals_kept():
        if sys.platform != "win32":
            params.hostnames = [f"{private}/closed.sock"]
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise WeightsCorruptError(
                f"{model_path} could not be loaded as a GGUF model. Run: duplex models verify, then duplex models pull"
            ) from error
    # Leaving the block removed the socket's name, and with it the only way in.


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the C-level handlers of SIGINT and SIGTERM back afterwards. Works on any thread, which
    ``signal.signal`` does not."""
    if sys.platform == "win32":
        yield
        return
    libc = ctypes.CDLL(None)
    kept = [(number, ctypes.create_string_buffer(512)) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, buffer in kept:
        libc.sigaction(number, None, buffer)
    try:
        yield
    finally:
        for number, buffer in kept:
            libc.sigaction(number, buffer, None)
