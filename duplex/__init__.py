"""duplex: a real-time runtime for speech and vision agents that listen and speak at the same time.

This package is what a session *is*: frames, clocks, the agent contract, the turn machine, the playout
ledger and the session that ties them together. It knows no torch, no aiortc and no HTTP. The rooms
beside it are leaves found by name through entry points:

    duplex.transport        the doors: WebRTC, WebSocket, the ASGI app they share
    duplex.thinker_talker   the minds: listener, thinker, talker, turn-state prediction
    duplex.codecs           sound to wire and back
    duplex.web_demo         the page a person opens
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("duplex-runtime")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
