"""The HTTP side of the app: offers, refusals in OpenAI's shape, health, metrics, the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config, ServerConfig
from duplex.errors import AgentFullError, InvalidEventError, TransportError
from duplex.hub import SessionHub
from duplex.testing import load_echo_agent
from duplex.transport.app import create_app

OFFER = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
SDP = {"Content-Type": "application/sdp"}


class FakeDoor:
    """A WebRTC door that answers at once and remembers what it was asked."""

    def __init__(self) -> None:
        self.offers: list[tuple[str, AgentSettings]] = []
        self.calls: set[str] = set()
        self.full = self.broken = self.closed = self.closing = False

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]:
        if self.full:
            raise AgentFullError("All 4 places are taken. Try again when a call has ended.", 4.1)
        if self.closing:
            raise TransportError("The server is stopping.")
        if self.broken:
            raise ZeroDivisionError
        if "bad" in offer_sdp:
            raise InvalidEventError("The offer has no audio section.", param="sdp", code="invalid_sdp")
        self.offers.append((offer_sdp, settings))
        self.calls.add("call_1")
        return "call_1", "v=0\r\nanswer"

    async def move(self, call_id: str, offer_sdp: str, token: str, last_event: int) -> str | None:
        return f"v=0\r\nmoved after {last_event}" if call_id in self.calls and token == "secret" else None

    async def hang_up(self, call_id: str) -> bool:
        known = call_id in self.calls
        self.calls.discard(call_id)
        return known

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def client(
    door: FakeDoor | None = None, *, ready: bool = True, static_dir: Path | None = None, config: Config | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    config = config or Config()
    hub = SessionHub(load_echo_agent({}), MonotonicClock(), config.session, max_sessions=4)
    if ready:
        await hub.start()
    app = create_app(hub, config, static_dir=static_dir, door=door or FakeDoor())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://duplex.test") as http:
        yield http


def refusal(response: httpx.Response, status: int, code: str) -> str:
    """Checks the shape of an error; returns its message."""
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("application/json")
    error = response.json()["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["code"] == code
    return str(error["message"])


# --- calls ----------------------------------------------------------------------------------------------


async def test_an_offer_is_answered_and_the_call_hung_up() -> None:
    door = FakeDoor()
    async with client(door) as http:
        response = await http.post("/v1/realtime/calls?model=duplex", content=OFFER, headers=SDP)
        assert response.status_code == 201
        assert response.headers["Content-Type"].startswith("application/sdp")
        assert response.headers["Location"] == "/v1/realtime/calls/call_1"
        assert response.text == "v=0\r\nanswer"
        assert door.offers == [(OFFER, AgentSettings())]
        assert (await http.delete(response.headers["Location"])).status_code == 204
        refusal(await http.delete(response.headers["Location"]), 404, "call_not_found")


async def test_the_official_clients_way_of_hanging_up() -> None:
    async with client() as http:
        await http.post("/v1/realtime/calls", content=OFFER, headers=SDP)
        assert (await http.post("/v1/realtime/calls/call_1/hangup")).status_code == 204
        refusal(await http.post("/v1/realtime/calls/call_1/hangup"), 404, "call_not_found")


@pytest.mark.parametrize("as_file", [False, True])
async def test_a_form_brings_the_offer_and_the_session(as_file: bool) -> None:
    door = FakeDoor()
    session = '{"type": "realtime", "instructions": "Sing.", "audio": {"output": {"voice": "marin"}}}'
    sdp = ("offer.sdp" if as_file else None, OFFER, "application/sdp")
    async with client(door) as http:
        files = {"sdp": sdp, "session": (None, session, "application/json")}
        response = await http.post("/v1/realtime/calls", files=files)
    assert response.status_code == 201
    assert door.offers == [(OFFER, AgentSettings(instructions="Sing."))]


@pytest.mark.parametrize(
    ("files", "code", "says"),
    [
        ({"session": (None, "{}")}, "missing_sdp", "field sdp"),
        ({"sdp": (None, "hello")}, "invalid_sdp", "v=0"),
        ({"sdp": (None, OFFER), "session": (None, "{nope")}, "invalid_event", "not JSON"),
        ({"sdp": (None, OFFER), "session": (None, '{"prompt": {"id": "p"}}')}, "unsupported", "prompt"),
        ({"sdp": (None, OFFER), "a": (None, "1"), "b": (None, "2")}, "invalid_form", "form"),
    ],
)
async def test_a_wrong_form_is_refused(files: dict[str, tuple[None, str]], code: str, says: str) -> None:
    async with client() as http:
        assert says in refusal(await http.post("/v1/realtime/calls", files=files), 400, code)


async def test_wrong_offers_are_refused() -> None:
    door = FakeDoor()
    async with client(door) as http:
        post = "/v1/realtime/calls"
        for content in (b"", b"hello", b"\xff\xfe"):
            assert "offer" in refusal(await http.post(post, content=content, headers=SDP), 400, "invalid_sdp").lower()
        refusal(await http.post(post, content=OFFER + "bad", headers=SDP), 400, "invalid_sdp")
        for kind in ("application/json", "text/plain", ""):
            response = await http.post(post, content=OFFER, headers={"Content-Type": kind})
            assert "application/sdp" in refusal(response, 415, "unsupported_content_type")
        broken_form = {"Content-Type": "multipart/form-data"}
        assert "boundary" in refusal(await http.post(post, content=OFFER, headers=broken_form), 400, "invalid_form")
    assert door.offers == []


async def test_the_size_is_held_while_reading() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b"v=0\n" * 250

    async with client(config=Config(server=ServerConfig(max_sdp_bytes=5000))) as http:
        refusal(await http.post("/v1/realtime/calls", content=endless(), headers=SDP), 413, "too_large")
        assert read <= 6000
        said = refusal(await http.post("/v1/realtime/calls", content=b"v=0" * 5000, headers=SDP), 413, "too_large")
        assert "5000 bytes" in said
        files = {"sdp": (None, "v=0" + "x" * 6000), "session": (None, "{}")}
        refusal(await http.post("/v1/realtime/calls", files=files), 413, "too_large")


async def test_a_full_server_says_when_to_come_back() -> None:
    door = FakeDoor()
    door.full = True
    async with client(door) as http:
        response = await http.post("/v1/realtime/calls", content=OFFER, headers=SDP)
        refusal(response, 503, "server_full")
        assert response.headers["Retry-After"] == "5"
        assert 'duplex_sessions_refused_total{reason="full"} 1.0' in (await http.get("/metrics")).text


async def test_a_server_that_is_stopping_says_so() -> None:
    door = FakeDoor()
    door.closing = True
    async with client(door) as http:
        said = refusal(await http.post("/v1/realtime/calls", content=OFFER, headers=SDP), 503, "unavailable")
        assert said == "The server is stopping."


async def test_the_app_brings_its_own_webrtc_door() -> None:
    hub = SessionHub(load_echo_agent({}), MonotonicClock(), Config().session, max_sessions=1)
    await hub.start()
    app = create_app(hub, Config())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://duplex.test") as http:
        said = refusal(await http.post("/v1/realtime/calls", content=OFFER, headers=SDP), 400, "invalid_sdp")
        assert "audio" in said
    async with app.router.lifespan_context(app):
        pass


async def test_a_bug_shows_no_insides() -> None:
    door = FakeDoor()
    door.broken = True
    async with client(door) as http:
        said = refusal(await http.post("/v1/realtime/calls", content=OFFER, headers=SDP), 500, "internal_error")
        assert "Zero" not in said


async def test_pages_of_other_origins_open_no_calls() -> None:
    async with client() as http:
        for origin in ("https://evil.example", "null", "http://duplex.test:81"):
            response = await http.post("/v1/realtime/calls", content=OFFER, headers={**SDP, "Origin": origin})
            refusal(response, 403, "foreign_origin")
            assert "access-control-allow-origin" not in response.headers
        own = {**SDP, "Origin": "http://duplex.test"}
        assert (await http.post("/v1/realtime/calls", content=OFFER, headers=own)).status_code == 201


# --- health, metrics, page ------------------------------------------------------------------------------


async def test_health_is_not_readiness() -> None:
    for ready in (False, True):
        async with client(ready=ready) as http:
            for method in ("GET", "HEAD"):
                assert (await http.request(method, "/healthz")).status_code == 200
                assert (await http.request(method, "/readyz")).status_code == (200 if ready else 503)
            assert (await http.get("/readyz")).headers["Cache-Control"] == "no-store"


async def test_metrics_are_prometheus() -> None:
    async with client() as http:
        response = await http.get("/metrics")
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert "duplex_sessions_live 0.0" in response.text


async def test_the_page_and_its_caching(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>duplex</title>")
    (tmp_path / "app.js").write_text("export {}")
    async with client(static_dir=tmp_path) as http:
        page = await http.get("/")
        assert "duplex" in page.text
        assert page.headers["Cache-Control"] == "no-cache"
        script = await http.head("/app.js")
        assert script.headers["X-Content-Type-Options"] == "nosniff"
        again = await http.get("/app.js", headers={"If-None-Match": script.headers["ETag"]})
        assert again.status_code == 304
        refusal(await http.get("/nothing.js"), 404, "not_found")
        refusal(await http.get("/..%2f..%2fetc/passwd"), 404, "not_found")
        assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_what_is_not_there() -> None:
    async with client() as http:
        refusal(await http.get("/"), 404, "not_found")
        refusal(await http.put("/v1/realtime/calls"), 405, "method_not_allowed")
        assert "WebSocket" in refusal(await http.get("/v1/realtime"), 426, "upgrade_required")
        refusal(await http.get("/v1/realtime/client_secrets"), 405, "method_not_allowed")
        for closed in ("/docs", "/redoc", "/openapi.json"):
            refusal(await http.get(closed), 404, "not_found")


async def test_stopping_the_app_closes_its_calls() -> None:
    door = FakeDoor()
    hub = SessionHub(load_echo_agent({}), MonotonicClock(), Config().session, max_sessions=1)
    app = create_app(hub, Config(), door=door)
    async with app.router.lifespan_context(app):
        assert not door.closed
    assert door.closed
