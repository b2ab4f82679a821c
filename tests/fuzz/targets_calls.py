"""Requests: SDP offers, and everything that comes by HTTP before a call, with the headers that say who is asking."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import NoCalls

from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import Config, LimitsConfig, SecurityConfig, ServerConfig, TwilioConfig
from duplex.errors import ProtocolError
from duplex.hub import SessionHub
from duplex.keys import KeyRing, changing
from duplex.testing import load_echo_agent
from duplex.transport.app import create_app
from duplex.transport.offers import check_bounds
from duplex.transport.realtime import RealtimeCodec, SessionDefaults
from duplex.transport.webrtc import WebRtcDoor, read_offer

from .target import Target

MAX_SDP_BYTES = 64 * 1024
_SDP_WORDS = (
    b"a=mid:", b"a=ice-ufrag:", b"a=ice-pwd:", b"a=fingerprint:sha-256 ", b"a=setup:actpass", b"a=candidate:1 1 udp 1 ",
    b"a=rtpmap:111 opus/48000/2", b"a=fmtp:111 ", b"a=extmap:1 ", b"a=ssrc:1 cname:x", b"a=ssrc-group:FID 1 2",
    b"a=group:BUNDLE ", b"m=audio 9 UDP/TLS/RTP/SAVPF 111", b"m=video 9 UDP/TLS/RTP/SAVPF 96", b"a=rtpmap:96 VP8/90000",
    b"m=application 9 UDP/DTLS/SCTP webrtc-datachannel", b"a=sctp-port:5000", b"a=max-message-size:", b"a=rtcp:9 ",
    b"c=IN IP6 ::1", b"b=AS:1", b"a=msid:- ", b" typ host", b" typ srflx raddr 0.0.0.0 rport 9", b"a=rtcp-fb:* nack",
    b"a=identity:", b"a=ice-options:trickle", b"a=ice-lite", b"a=simulcast:", b"a=rid:", b"\r\n", b"\n\n", b"a=\r\n",
)  # fmt: skip

OFFER = """v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1 2
a=msid-semantic: WMS *
m=audio 9 UDP/TLS/RTP/SAVPF 111 0
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=candidate:1 1 udp 2113937151 127.0.0.1 50000 typ host generation 0
a=candidate:2 1 udp 2113937151 1c2d.local 50001 typ host
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=ice-options:trickle
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:2 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:0 PCMU/8000
a=ssrc:1234 cname:one
m=video 9 UDP/TLS/RTP/SAVPF 96 97
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:1
a=sendonly
a=rtcp-mux
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=ssrc-group:FID 5 6
a=ssrc:5 cname:one
a=ssrc:6 cname:one
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:2
a=sctp-port:5000
a=max-message-size:262144
""".format(fingerprint=":".join(["AB"] * 32))
_SOUND_ONLY = OFFER.partition("m=video")[0].replace("BUNDLE 0 1 2", "BUNDLE 0")


def offers() -> list[bytes]:
    return [text.replace("\n", "\r\n").encode() for text in (_SOUND_ONLY, OFFER)]


def _run_sdp(data: bytes) -> str:
    """As a request's body is read, then as the door reads it."""
    text = data.decode("utf-8", "replace")
    check_bounds(text)
    offer = read_offer(text, MAX_SDP_BYTES)
    return " ".join(media.kind for media in offer.media)


SDP_TARGET = Target("sdp", _run_sdp, (ProtocolError,), offers, _SDP_WORDS, max_bytes=80_000, cpu_s=1.0)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    logging.getLogger("duplex").setLevel(logging.CRITICAL)
    logging.getLogger("aioice").setLevel(logging.CRITICAL)
    return asyncio.new_event_loop()


@functools.cache
def _door() -> WebRtcDoor:
    async def make() -> WebRtcDoor:
        hub = SessionHub(load_echo_agent({}), MonotonicClock(), Config().session, max_sessions=4)
        await hub.start()
        return WebRtcDoor(hub, Config(), lambda: RealtimeCodec(SessionDefaults(), audio_deltas=False))

    return _loop().run_until_complete(make())


def _run_negotiation(data: bytes) -> str:
    """A whole negotiation: aiortc answers the offer, as the door has it do; then the call is hung up. Nothing stays."""
    text = data.decode("utf-8", "replace")
    check_bounds(text)
    door = _door()

    async def negotiate() -> str:
        try:
            async with asyncio.timeout(10.0):
                call_id, answer = await door.answer(text, AgentSettings())
                await door.hang_up(call_id)
            return f"answered with {answer.count('m=')}"
        finally:
            assert door.live == 0, "a call was left behind"
            assert len(asyncio.all_tasks()) <= 4, f"tasks were left behind: {asyncio.all_tasks()}"

    return _loop().run_until_complete(negotiate())


NEGOTIATION_TARGET = Target(
    "negotiation", _run_negotiation, (ProtocolError,), offers, _SDP_WORDS, max_bytes=80_000, cpu_s=2.0
)


# --- HTTP ----------------------------------------------------------------------------------------------------

KEY = "dx_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
REFUSALS = frozenset({400, 401, 403, 404, 405, 408, 413, 415, 422, 426, 429, 503})
MAX_REFUSAL_BYTES = 8_000


class _Reading(NoCalls):
    """A WebRTC door that reads the offer and answers without a connection."""

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]:
        read_offer(offer_sdp, MAX_SDP_BYTES)
        return "rtc_1", "v=0\r\n"


@functools.cache
def _app(locked: bool) -> Any:
    """Locked: with keys, a proxy that is believed, and one page of elsewhere that may call."""

    async def make() -> Any:
        security, limits = SecurityConfig(), LimitsConfig()
        if locked:
            keys = Path(tempfile.mkdtemp(prefix="duplex-fuzz-")) / "keys.json"
            with changing(keys) as write:
                write(KeyRing().add("one", created_s=0)[0])
            security = SecurityConfig(
                keys_file=keys, origins=("https://app.example",), trusted_proxies=("192.0.2.0/24", "::1")
            )
            limits = LimitsConfig(failures_per_minute=0, calls_per_minute_per_address=0)
        config = Config(
            server=ServerConfig(doors=("twilio", "asterisk"), max_text_chars=2000),
            security=security,
            limits=limits,
            twilio=TwilioConfig(auth_token="token", public_url="https://voice.example"),  # type: ignore[arg-type]
        )
        hub = SessionHub(load_echo_agent({}), MonotonicClock(), config.session, max_sessions=4)
        await hub.start()
        return create_app(hub, config, door=_Reading())

    return _loop().run_until_complete(make())


def _request(data: bytes) -> tuple[dict[str, Any], bytes]:
    """``METHOD address`` and headers, a line each, an empty line, the body: what a server makes of it for the app."""
    head, _, body = data.partition(b"\n\n")
    first, *rest = head.split(b"\n")
    first = bytes(byte for byte in first if 0x20 <= byte < 0x7F)  # h11 lets nothing else pass
    method, _, address = first.partition(b" ")
    path, _, query = address.partition(b"?")
    headers = []
    for line in rest:
        name, _, value = line.partition(b":")
        if name.strip() and not set(value) & {0, 10, 13}:
            headers.append((name.strip().lower(), value.strip()))
    kind = "websocket" if method == b"WS" else "http"
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws" if kind == "websocket" else "http",
        "path": path.decode("latin-1") or "/",
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("192.0.2.1", 5000),
        "server": ("127.0.0.1", 8998),
        "extensions": {"websocket.http.response": {}},
        "state": {},
    }
    if kind == "http":
        scope["method"] = method.decode("latin-1") or "GET"
    else:
        offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol")
        scope["subprotocols"] = [each.strip() for each in offered.decode("latin-1").split(",") if each.strip()]
    return scope, body


async def _ask(app: Any, scope: dict[str, Any], body: bytes) -> str:
    """The answer's status and the refusal's code. A WebSocket that is let in is left again at once."""
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    if scope["type"] == "websocket":
        messages = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: dict[str, Any]) -> None:
        for name, value in message.get("headers", ()):
            assert not set(name + value) & {0, 10, 13}, f"a header that splits the answer: {name!r}: {value!r}"
        sent.append(message)

    async with asyncio.timeout(20.0):
        await app(scope, receive, send)
    start = next((each for each in sent if each["type"].endswith("http.response.start")), None)
    if start is None:
        return " ".join(each["type"] for each in sent[:2])
    status, answer = start["status"], b"".join(each.get("body", b"") for each in sent)
    if status < 400:
        return str(status)
    assert status in REFUSALS, f"answered with {status}: {answer[:300]!r}"
    assert len(answer) <= MAX_REFUSAL_BYTES, f"a refusal of {len(answer)} bytes"
    return f"{status} {json.loads(answer)['error']['code'] if answer else ''}"


def _run_http(locked: bool) -> Callable[[bytes], str]:
    def run(data: bytes) -> str:
        scope, body = _request(data)
        return _loop().run_until_complete(_ask(_app(locked), scope, body))

    return run


def _form(parts: dict[str, bytes], boundary: bytes = b"xyz") -> bytes:
    each = [b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name.encode(), value)
            for name, value in parts.items()]  # fmt: skip
    return b"".join(each) + b"--%s--\r\n" % boundary


_SESSION = b'{"type": "realtime", "instructions": "Sing.", "audio": {"output": {"voice": "marin"}}}'
_CALL = b"POST /v1/realtime/calls?model=duplex\nhost: duplex.test\n"


def form_request(offer: bytes, session: bytes) -> bytes:
    return _CALL + b"content-type: multipart/form-data; boundary=xyz\n\n" + _form({"sdp": offer, "session": session})


def secret_request(body: bytes) -> bytes:
    return b"POST /v1/realtime/client_secrets\nhost: duplex.test\n\n" + body


def _requests() -> list[bytes]:
    offer = offers()[0]
    with_session = _form({"sdp": offer, "session": _SESSION})
    as_file = with_session.replace(b'name="sdp"', b'name="sdp"; filename="offer.sdp"')
    multipart = b"content-type: multipart/form-data; boundary=xyz\n\n"
    twilio = b"From=%2B15550100&To=%2B15550101&CallSid=CA0"
    return [
        _CALL + b"content-type: application/sdp\n\n" + offer,
        form_request(offer, _SESSION),
        _CALL + multipart + as_file,
        _CALL + b"content-type: multipart/form-data; charset=utf-8; boundary=xyz\n\n" + with_session,
        secret_request(b'{"expires_after": {"anchor": "created_at", "seconds": 600}, "session": ' + _SESSION + b"}"),
        b"POST /twilio/voice?voice=default\nhost: duplex.test\nx-twilio-signature: abc=\n"
        b"content-type: application/x-www-form-urlencoded\n\n" + twilio,
        b"DELETE /v1/realtime/calls/rtc_1\nhost: duplex.test\n\n",
        b"GET /readyz\nhost: duplex.test\n\n",
    ]


_HTTP_WORDS = (
    b"content-type: multipart/form-data; boundary=", b"; charset=utf-16", b"; charset=punycode", b"; charset=undefined",
    b"; charset=utf-7", b"; charset=idna", b"; charset=unicode_escape", b"; charset=zlib", b"boundary=\"x y\"",
    b"content-length: 99999999999999999999", b"content-length: -1", b"--xyz\r\n", b"--xyz--", b"\r\n\r\n",
    b'Content-Disposition: form-data; name="sdp"', b"filename*=utf-8''x", b"Content-Transfer-Encoding: base64\r\n",
    b'name="session"', b"content-encoding: gzip\n", b"host: [", b"origin: http://[\n",
    b"authorization: Bearer " + KEY.encode() + b"\n",
)  # fmt: skip

HTTP_TARGET = Target("http", _run_http(False), (), _requests, _HTTP_WORDS, max_bytes=300_000, cpu_s=1.0)


def _headers() -> list[bytes]:
    secret = KEY.encode()
    return [
        b"WS /v1/realtime?model=x\nhost: a.test\nsec-websocket-protocol: realtime, openai-insecure-api-key." + secret,
        b"WS /v1/realtime\nhost: duplex.test\norigin: https://app.example\nauthorization: Bearer " + secret,
        b"WS /api/chat?seed=1\nhost: duplex.test\nauthorization: Basic dXNlcjpkeF9B",
        b"WS /twilio/media\nhost: duplex.test\nx-twilio-signature: abc=",
        b"WS /asterisk/media\nhost: duplex.test\nauthorization: Basic dXNlcjpkeF9B",
        b"OPTIONS /v1/realtime/calls\nhost: duplex.test\norigin: https://app.example\n"
        b"access-control-request-method: POST\naccess-control-request-headers: authorization",
        b"GET /metrics\nhost: duplex.test\nauthorization: Bearer ek_abc\n"
        b"x-forwarded-for: 198.51.100.1, [2001:db8::1]:443, 192.0.2.7:80",
    ]


HEADERS_TARGET = Target(
    "headers",
    _run_http(True),
    (),
    _headers,
    (b"origin: http://[\n", b"origin: ", b"host: [::1", b"x-forwarded-for: ", b"Bearer ", b"Basic ", b"ek_", b"://",
     b",", b"sec-websocket-protocol: ", b"openai-insecure-api-key.", b"[", b"]:", b"::ffff:192.0.2.1", b"%zone"),
)  # fmt: skip

TARGETS = (SDP_TARGET, NEGOTIATION_TARGET, HTTP_TARGET, HEADERS_TARGET)
