"""``examples/asterisk``: the configuration fits the doors it leads to, and its telephone can hold a call."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import re
import struct
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import numpy as np
import pytest
from telephone_sessions import speech

from duplex.config import Config
from duplex.transport.asterisk_websocket import MEDIA, SUBPROTOCOL
from duplex.transport.asterisk_websocket_wire import RATES_HZ, ControlFormat

FOLDER = Path(__file__).parents[1] / "examples" / "asterisk"


def setting(file: str, name: str) -> str:
    match = re.search(rf"^{name}\s*=>?\s*([^;\n]+)", (FOLDER / file).read_text("utf-8"), re.MULTILINE)
    assert match is not None, name
    return match[1].strip()


def test_the_websocket_leads_to_the_door() -> None:
    uri = urlsplit(setting("websocket_client.conf", "uri"))
    assert (uri.scheme, uri.port, uri.path) == ("ws", Config().server.port, MEDIA)
    assert setting("websocket_client.conf", "protocols") == SUBPROTOCOL
    assert setting("websocket_client.conf", "connection_type") == "per_call_config"  # the only one for media
    assert setting("chan_websocket.conf", "control_message_format") in {each.value for each in ControlFormat}


def test_the_dial_plan_asks_for_what_is_taken() -> None:
    plan = (FOLDER / "extensions.conf").read_text("utf-8")
    assert "[duplex]" in (FOLDER / "websocket_client.conf").read_text("utf-8")
    (options,) = re.findall(r"^exten.*WebSocket/duplex/(\S+),,g\)$", plan, re.MULTILINE)
    asked = dict(re.findall(r"([cf])\(([^)]*)\)", options))
    assert asked["c"] in RATES_HZ
    assert asked["f"] in {each.value for each in ControlFormat}
    assert ")nv(answer=yes," in options  # n: we answer
    assert setting("extensions.conf", "DUPLEX_AUDIOSOCKET").split(":")[0] == Config().audiosocket.host
    offered = re.search(r"^; c: the format, any of ([^.]+)\.", plan, re.MULTILINE)
    assert offered is not None
    assert set(offered[1].split(", ")) <= set(RATES_HZ)


def test_what_the_dial_plan_uses_is_loaded() -> None:
    plan, modules = (FOLDER / "extensions.conf").read_text("utf-8"), (FOLDER / "modules.conf").read_text("utf-8")
    needed = {
        r"\bDial\(": "app_dial",
        r"AudioSocket\(": "app_audiosocket",
        r"Dial\(AudioSocket/": "chan_audiosocket",
        r"Dial\(WebSocket/": "chan_websocket",
        r"\bEcho\(": "app_echo",
        r"\bUUID\(": "func_uuid",
        r"\bURIENCODE\(": "func_uri",
        r"\bCALLERID\(": "func_callerid",
    }
    for used, module in needed.items():
        assert re.search(used, plan), used
        assert f"load = {module}.so\n" in modules
    assert "autoload = no" in modules


# --- call.py ----------------------------------------------------------------------------------------------


@pytest.fixture
def telephone() -> ModuleType:
    spec = importlib.util.spec_from_file_location("asterisk_example_call", FOLDER / "call.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Exchange(asyncio.DatagramProtocol):
    """The least of a telephone exchange: asks for the password, answers, sends the sound back, notes the keys."""

    def __init__(self, media: Media, *, busy: bool = False) -> None:
        self.media, self.busy = media, busy
        self.methods: list[str] = []
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        text = data.decode()
        method = text.split()[0]
        self.methods.append(method)
        if method == "ACK":
            return
        authorization = re.search(r"^Authorization: Digest (.*)$", text, re.MULTILINE)
        if method == "INVITE" and authorization is None:
            self._answer(
                text, address, "401 Unauthorized", ['WWW-Authenticate: Digest realm="pbx", nonce="n1", qop="auth"']
            )
        elif method == "INVITE" and authorization is not None:
            self._check(authorization[1])
            if self.busy:
                self._answer(text, address, "486 Busy Here")
            else:
                self._answer(text, address, "100 Trying")
                body = f"v=0\r\nc=IN IP4 127.0.0.1\r\nm=audio {self.media.port} RTP/AVP 0\r\n"
                self._answer(text, address, "200 OK", body=body)
        else:
            self._answer(text, address, "200 OK")

    def _check(self, digest: str) -> None:
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', digest))

        def md5(text: str) -> str:
            return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

        secret = md5(f"{said['username']}:pbx:right")
        expected = md5(f"{secret}:n1:{said['nc']}:{said['cnonce']}:auth:{md5('INVITE:' + said['uri'])}")
        assert said["response"] == expected

    def _answer(
        self, text: str, address: tuple[str, int], status: str, more: list[str] | None = None, body: str = ""
    ) -> None:
        assert self.transport is not None
        kept = [line for line in text.split("\r\n") if re.match(r"(Via|From|To|Call-ID|CSeq):", line)]
        kept = [line + ";tag=them" if line.startswith("To:") and ";tag=" not in line else line for line in kept]
        lines = [f"SIP/2.0 {status}", *kept, *(more or []), f"Content-Length: {len(body)}"]
        self.transport.sendto(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), address)


class Media(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.keys: list[int] = []
        self.port = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        kind = data[1] & 0x7F
        if kind == 101:
            key, ended, _ = struct.unpack(">BBH", data[12:16])
            if ended & 0x80:
                self.keys.append(key)
        else:
            self.transport.sendto(data, address)


@pytest.mark.parametrize("busy", [False, True])
async def test_the_telephone_holds_a_call(telephone: ModuleType, busy: bool) -> None:
    loop = asyncio.get_running_loop()
    media_transport, media = await loop.create_datagram_endpoint(Media, local_addr=("127.0.0.1", 0))
    sip_transport, exchange = await loop.create_datagram_endpoint(
        lambda: Exchange(media, busy=busy), local_addr=("127.0.0.1", 0)
    )
    try:
        account = telephone.Account("127.0.0.1", sip_transport.get_extra_info("sockname")[1], "6001", "right")
        said = speech(0.5, 8_000)
        if busy:
            with pytest.raises(telephone.CallFailedError, match="486 Busy Here"):
                await telephone.call(account, "100", said, seconds=1.0)
            return
        result = await telephone.call(account, "100", said, seconds=1.2, keys="5#", keys_at_s=0.6)
        assert result.ended_by == "us"
        assert exchange.methods == ["INVITE", "ACK", "INVITE", "ACK", "BYE"]
        assert media.keys == [5, 5, 5, 11, 11, 11]  # the end of each is sent three times (RFC 4733, 2.5.1.4)
        heard = result.heard[: len(said)]
        assert float(np.abs(heard - said).max()) < 0.01  # but for the companding, what was said
        assert not np.any(np.abs(result.heard[len(said) + 160 :]) > 1e-3)
    finally:
        sip_transport.close()
        media_transport.close()
