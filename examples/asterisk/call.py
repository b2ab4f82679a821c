"""A telephone without a telephone: calls an extension over SIP, says a WAV file, and records what it hears.

    python examples/asterisk/call.py 100 question.wav answer.wav --seconds 10 --keys 42#

The smallest SIP telephone that can hold a call with the Asterisk of this folder: one INVITE with digest authentication
(RFC 3261, RFC 2617), µ-law over RTP (RFC 3551), keys as telephone events (RFC 4733), a BYE. Nothing is lost or sent
again: it is for trying things on one machine. It needs what duplex brings, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import secrets
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from duplex.codecs.g711 import decode_ulaw, encode_ulaw
from duplex.rates import StreamResampler

RATE_HZ, PACKET_SAMPLES = 8_000, 160
ULAW, EVENTS = 0, 101  # payload types
KEYS = "0123456789*#ABCD"


class CallFailedError(Exception):
    """The other side said no. The message is its status line."""


@dataclass
class Account:
    host: str
    port: int
    user: str
    password: str


@dataclass
class Result:
    """``heard``: float32[n] at 8 kHz, from the answer on. ``ended_by``: "us" or "them"."""

    heard: np.ndarray
    ended_by: str
    arrivals_s: list[float] = field(default_factory=list)


class _Socket(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: object) -> None:
        self.received.put_nowait((time.monotonic(), data))


async def call(
    account: Account, extension: str, speech: np.ndarray, *, seconds: float, keys: str = "", keys_at_s: float = 1.0
) -> Result:
    """Calls, says ``speech`` (float32[n] at 8 kHz), listens for ``seconds``, hangs up. Raises ``CallFailedError``."""
    loop = asyncio.get_running_loop()
    peer = (account.host, account.port)
    sip_transport, sip = await loop.create_datagram_endpoint(_Socket, remote_addr=peer)
    own_host, own_port = sip_transport.get_extra_info("sockname")[:2]
    rtp_transport, rtp = await loop.create_datagram_endpoint(_Socket, local_addr=(own_host, 0))
    rtp_port = rtp_transport.get_extra_info("sockname")[1]
    dialog = _Dialog(account, extension, own_host, own_port)
    try:
        answer = await _invite(dialog, sip, sip_transport, _offer(own_host, rtp_port))
        where = _media_address(answer)
        talking = asyncio.create_task(_talk(rtp_transport, where, speech, keys, keys_at_s, seconds))
        over = asyncio.create_task(_wait_for_bye(dialog, sip, sip_transport))
        await asyncio.wait([talking, over], return_when=asyncio.FIRST_COMPLETED)
        ended_by = "them" if over.done() else "us"
        if not over.done():
            sip_transport.sendto(dialog.request("BYE"))
            await asyncio.sleep(0.2)
        for task in (talking, over):
            task.cancel()
        return _collect(rtp, ended_by)
    finally:
        sip_transport.close()
        rtp_transport.close()


# --- SIP --------------------------------------------------------------------------------------------------


class _Dialog:
    def __init__(self, account: Account, extension: str, host: str, port: int) -> None:
        self.account, self.host, self.port = account, host, port
        self.uri = f"sip:{extension}@{account.host}:{account.port}"
        self.call_id, self.tag = secrets.token_hex(8), secrets.token_hex(4)
        self.sequence, self.their_tag, self.branch = 0, "", ""
        self.authorization = ""

    def request(self, method: str, body: str = "") -> bytes:
        if method != "ACK":
            self.sequence += 1
            self.branch = "z9hG4bK" + secrets.token_hex(8)
        lines = [
            f"{method} {self.uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.host}:{self.port};branch={self.branch};rport",
            "Max-Forwards: 70",
            f"From: <sip:{self.account.user}@{self.account.host}>;tag={self.tag}",
            f"To: <{self.uri}>{self.their_tag}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self.sequence} {method}",
            f"Contact: <sip:{self.account.user}@{self.host}:{self.port}>",
            *([self.authorization] if self.authorization and method == "INVITE" else []),
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    def authorize(self, challenge: str) -> None:
        """Answers a 401 (RFC 2617; with and without qop)."""
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', challenge))

        def md5(text: str) -> str:
            return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

        ours = md5(f"{self.account.user}:{said['realm']}:{self.account.password}")
        theirs, nonce = md5(f"INVITE:{self.uri}"), said["nonce"]
        counted = ""
        if "qop" in said:
            cnonce = secrets.token_hex(4)
            response = md5(f"{ours}:{nonce}:00000001:{cnonce}:auth:{theirs}")
            counted = f', qop=auth, nc=00000001, cnonce="{cnonce}"'
        else:
            response = md5(f"{ours}:{nonce}:{theirs}")
        opaque = f', opaque="{said["opaque"]}"' if "opaque" in said else ""
        self.authorization = (
            f'Authorization: Digest username="{self.account.user}", realm="{said["realm"]}", nonce="{nonce}", '
            f'uri="{self.uri}", response="{response}", algorithm=MD5{counted}{opaque}'
        )


def _offer(host: str, port: int) -> str:
    lines = [
        "v=0", f"o=- 1 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0", f"m=audio {port} RTP/AVP {ULAW} {EVENTS}",
        f"a=rtpmap:{ULAW} PCMU/8000", f"a=rtpmap:{EVENTS} telephone-event/8000", f"a=fmtp:{EVENTS} 0-15",
        "a=ptime:20", "a=sendrecv",
    ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n"


async def _invite(dialog: _Dialog, sip: _Socket, transport: asyncio.DatagramTransport, offer: str) -> str:
    """The answer to the INVITE, once there is one."""
    transport.sendto(dialog.request("INVITE", offer))
    while True:
        _, data = await asyncio.wait_for(sip.received.get(), 20.0)
        text = data.decode("utf-8", "replace")
        if not text.startswith("SIP/2.0 "):
            continue
        status = int(text.split()[1])
        if status < 200:
            continue
        if f"CSeq: {dialog.sequence} INVITE" not in text:
            continue  # an answer to the first try, sent again
        if tag := re.search(r"^To:.*?(;tag=[^\s;]+)", text, re.MULTILINE):
            dialog.their_tag = tag[1]
        transport.sendto(dialog.request("ACK"))
        if status == 401 and not dialog.authorization:
            dialog.authorize(re.search(r"^WWW-Authenticate: Digest (.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
            dialog.their_tag = ""
            transport.sendto(dialog.request("INVITE", offer))
        elif status == 200:
            return text
        else:
            raise CallFailedError(text.splitlines()[0])


async def _wait_for_bye(dialog: _Dialog, sip: _Socket, transport: asyncio.DatagramTransport) -> None:
    while True:
        _, data = await sip.received.get()
        text = data.decode("utf-8", "replace")
        if text.startswith("SIP/2.0 200") and "INVITE" in text:
            transport.sendto(dialog.request("ACK"))
        if text.startswith("BYE "):
            kept = [line for line in text.splitlines() if re.match(r"(Via|From|To|Call-ID|CSeq):", line)]
            transport.sendto(("\r\n".join(["SIP/2.0 200 OK", *kept, "Content-Length: 0"]) + "\r\n\r\n").encode())
            return


def _media_address(answer: str) -> tuple[str, int]:
    host = re.search(r"^c=IN IP4 (\S+)", answer, re.MULTILINE)
    port = re.search(r"^m=audio (\d+)", answer, re.MULTILINE)
    if host is None or port is None:
        raise CallFailedError("The answer names no address for sound.")
    return host[1], int(port[1])


# --- RTP --------------------------------------------------------------------------------------------------


async def _talk(
    transport: asyncio.DatagramTransport,
    where: tuple[str, int],
    speech: np.ndarray,
    keys: str,
    keys_at_s: float,
    seconds: float,
) -> None:
    """Sends a packet every 20 ms: the speech, then silence; and the keys, a tenth of a second each."""
    source, began_s = secrets.randbits(32), time.monotonic()
    events = [(round((keys_at_s + 0.3 * i) * 50), KEYS.index(key.upper())) for i, key in enumerate(keys)]
    sequence = 0
    for n in range(round(seconds * 50)):
        packet = speech[n * PACKET_SAMPLES : (n + 1) * PACKET_SAMPLES]
        packet = np.pad(packet, (0, PACKET_SAMPLES - len(packet)))
        at = n * PACKET_SAMPLES
        pressed = next(((start, key) for start, key in events if start <= n < start + 5), None)
        payloads: list[tuple[int, int, bytes]] = [(ULAW, at, encode_ulaw(packet.astype(np.float32)))]
        if pressed is not None:
            start, key = pressed
            last = n == start + 4
            event = struct.pack(">BBH", key, 0x80 * last + 10, (n - start + 1) * PACKET_SAMPLES)
            payloads = [(EVENTS, start * PACKET_SAMPLES, event)] * (3 if last else 1)
        for kind, stamp, payload in payloads:
            sequence += 1
            transport.sendto(struct.pack(">BBHII", 0x80, kind, sequence & 0xFFFF, stamp, source) + payload, where)
        await asyncio.sleep(max(0.0, began_s + (n + 1) * 0.02 - time.monotonic()))


def _collect(rtp: _Socket, ended_by: str) -> Result:
    """Everything that came, each packet where its timestamp says."""
    packets: list[tuple[float, int, bytes]] = []
    while not rtp.received.empty():
        at_s, data = rtp.received.get_nowait()
        if len(data) > 12 and data[1] & 0x7F == ULAW:
            packets.append((at_s, struct.unpack(">I", data[4:8])[0], data[12:]))
    if not packets:
        return Result(np.zeros(0, dtype=np.float32), ended_by)
    first = packets[0][1]
    length = max(((stamp - first) & 0xFFFFFFFF) + len(code) for _, stamp, code in packets)
    heard = np.zeros(min(length, 3600 * RATE_HZ), dtype=np.float32)
    for _, stamp, code in packets:
        start = (stamp - first) & 0xFFFFFFFF
        if start + len(code) <= len(heard):
            heard[start : start + len(code)] = decode_ulaw(code)
    return Result(heard, ended_by, [at_s for at_s, _, _ in packets])


def load(path: Path) -> np.ndarray:
    """float32[n] at 8 kHz."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1).astype(np.float32)
    if rate_hz == RATE_HZ:
        return mono
    resampler = StreamResampler(rate_hz, RATE_HZ)
    return np.concatenate([resampler.push(mono), resampler.end()])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extension", help="100: chan_websocket, 101 and 102: AudioSocket, 199: echo")
    parser.add_argument("question", type=Path, help="a sound file to say")
    parser.add_argument("answer", type=Path, help="the WAV file to write")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--keys", default="", help="to press, one second in")
    parser.add_argument("--server", default="127.0.0.1:5060")
    parser.add_argument("--user", default="6001")
    parser.add_argument("--password", default="change-me")
    given = parser.parse_args()
    host, _, port = given.server.partition(":")
    account = Account(host, int(port or 5060), given.user, given.password)
    try:
        result = asyncio.run(
            call(account, given.extension, load(given.question), seconds=given.seconds, keys=given.keys)
        )
    except (CallFailedError, TimeoutError) as error:
        print(f"The call failed: {error or 'nobody answered'}", file=sys.stderr)
        return 1
    soundfile.write(given.answer, result.heard, RATE_HZ)
    print(f"{len(result.heard) / RATE_HZ:.1f} s heard, {given.answer} written; hung up by {result.ended_by}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
