"""A stand-in for a chat-completions endpoint, on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 20.0


class StandIn(ThreadingHTTPServer):
    """Answers as ``mode`` says, or with ``scripts``, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "well"
        self.scripts: list[list[dict[str, Any]]] = []  # mode "script": the deltas of each request's stream
        self.reasons: list[str | None] = []  # ... and how each ends, "stop" if it does not say
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.hung_up = threading.Event()  # the client closed a stream that was not finished
        self.go_on = threading.Event()  # lets a slow handler end

    @property
    def spec(self) -> str:
        return f"openai:http://127.0.0.1:{self.server_address[1]}/v1#toy"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._whole(401 if self.server.mode == "401" else 200, {"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("Authorization", ""))
        mode = self.server.mode
        if mode.isdigit():
            self._whole(int(mode), {"error": {"message": f"status {mode}"}})
        elif mode == "new-field" and "max_tokens" in body:
            self._whole(400, {"error": {"message": "use 'max_completion_tokens' instead"}})
        elif mode == "page":
            self._begin("text/html")
            self.wfile.write(b"<html>hello</html>")
        elif mode == "silent":
            self.server.go_on.wait(WAIT_S)
        elif mode == "no-tools" and "tools" in body:
            self._whole(400, {"error": {"message": f"{body['model']} does not support tools"}})
        elif mode == "script":
            self._play(self.server.scripts.pop(0), self.server.reasons.pop(0) if self.server.reasons else "stop")
        else:
            self._stream(mode)

    def _play(self, deltas: list[dict[str, Any]], reason: str | None) -> None:
        self._begin("text/event-stream")
        for delta in deltas:
            self._event({"choices": [{"delta": delta}]})
        if reason is not None:
            self._event({"choices": [{"delta": {}, "finish_reason": reason}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _stream(self, mode: str) -> None:
        self._begin("text/event-stream")
        words = ["Hel", "lo", " th", "ere."]
        try:
            if mode == "endless":
                while True:
                    self._event({"choices": [{"delta": {"content": "la "}}]})
            for word in words:
                self._event({"choices": [{"delta": {"content": word}}]})
                if mode == "garbage":
                    self.wfile.write(b"data: {not json\n\n")
                if mode == "stall":
                    self.server.go_on.wait(WAIT_S)
                if mode == "breaks":
                    self._event({"error": {"message": "out of memory"}})
                    return
            self._event({"choices": [{"delta": {}, "finish_reason": "length" if mode == "length" else "stop"}]})
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
            self.wfile.write(b": a comment\r\n\r\ndata: [DONE]\r\n\r\n")
        except OSError:
            self.server.hung_up.set()

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _whole(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def standing_in() -> Iterator[StandIn]:
    stand_in = StandIn()
    thread = threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.go_on.set()
        stand_in.shutdown()
        stand_in.server_close()
        thread.join()
