"""The doors: WebRTC, WebSocket and the ASGI app they share; and the calling side, for tests and benchmarks.

Start with :mod:`.app`. Each door gives the session a line (``duplex.line``) and translates at the edge
(:mod:`.realtime`).
"""
