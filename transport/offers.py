"""An SDP offer out of an HTTP request: read within bounds, as it is or from a form, before anything parses it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from duplex.config import ServerConfig
from duplex.errors import InvalidEventError, TooLargeError
from duplex.transport.http_errors import RequestError
from duplex.transport.realtime_decode import parse

BODY_S = 15.0
"""A body that takes longer to arrive is no caller waiting to talk."""

MOST = {
    "m=": (8, "sections (m=)"),  # a browser's call has three: sound, camera, events
    "a=candidate:": (64, "candidates"),  # each is an address that we would send checks to
    "a=rtpmap:": (256, "codecs (a=rtpmap)"),  # Chromium offers some 60 with a camera
    "a=fmtp:": (256, "codec parameters (a=fmtp)"),
    "a=rtcp-fb:": (512, "feedback lines (a=rtcp-fb)"),
    "a=extmap:": (128, "header extensions (a=extmap)"),
    "a=ssrc": (256, "sources (a=ssrc)"),
    "a=fingerprint:": (32, "fingerprints"),
}
"""The most lines of a kind that an offer may have. aiortc's parser holds each against each other in places."""
_CHARSET = re.compile(r"charset\*?\d*\*?\s*=\s*[\"']?([^\"';\s]*)", re.IGNORECASE)
_CHARSETS = ("utf-8", "utf8", "us-ascii")

MAX_LINES = 2000
MAX_LINE_CHARS = 4096


async def read_offer_request(request: Request, server: ServerConfig) -> tuple[str, Any]:
    """The SDP and, from a form, the session object (else None). Sizes are held while reading.

    Raises ``RequestError`` or ``ProtocolError``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/sdp":
        return _sdp(await read_body(request, server.max_sdp_bytes, "no SDP offer")), None
    if kind != "multipart/form-data":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_type",
            f"Content-Type {kind[:80] or '(none)'} is not taken. Send the offer as application/sdp, or as "
            "multipart/form-data with a field sdp and, if you like, a field session with JSON.",
        )
    if (charset := _CHARSET.search(request.headers["content-type"])) and charset[1].lower() not in _CHARSETS:
        # The parser would decode fields with whatever is named, and Python knows some that take a second for 200 kB.
        message = f"A form in {charset[1][:40]} is not taken. Send UTF-8."
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_charset", message)
    session_bytes = max_session_bytes(server)
    body = await read_body(request, server.max_sdp_bytes + session_bytes, "no SDP offer")

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(
            request.headers, once(), max_files=2, max_fields=2, max_part_size=len(body)
        ).parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        message = f"The form cannot be read: {getattr(error, 'message', 'it names no boundary')}"
        raise RequestError(HTTPStatus.BAD_REQUEST, "invalid_form", message) from error
    try:
        parts = {name: await part.read() if isinstance(part, UploadFile) else part for name, part in form.items()}
    finally:
        await form.close()
    if "sdp" not in parts:
        raise RequestError(HTTPStatus.BAD_REQUEST, "missing_sdp", "The form needs a field sdp with the offer.", "sdp")
    offer = _sdp(parts["sdp"])
    if len(offer) > server.max_sdp_bytes:
        raise TooLargeError(f"The offer has more than {server.max_sdp_bytes} bytes.", param="sdp")
    return offer, parse(parts["session"], session_bytes) if "session" in parts else None


def max_session_bytes(server: ServerConfig) -> int:
    """Of a session object: a text's longest UTF-8, and the rest."""
    return server.max_text_chars * 4 + 16_384


async def read_body(request: Request, limit: int, too_large_for: str) -> bytes:
    """The body, of ``limit`` bytes at most. Raises ``TooLargeError``, or ``RequestError`` (408) if it does not come."""
    message = f"The request body has more than {limit} bytes; that is {too_large_for}."
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError(message)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise TooLargeError(message)
    except TimeoutError as error:
        message = f"The request body did not arrive within {BODY_S:g} s."
        raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message) from error
    return bytes(body)


def check_bounds(sdp: str) -> None:
    """Raises ``TooLargeError`` for an offer with more of something than any call needs."""
    lines = sdp.splitlines()
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE_CHARS for line in lines):
        raise TooLargeError(
            f"The offer has more than {MAX_LINES} lines, or one of more than {MAX_LINE_CHARS} characters.", param="sdp"
        )
    for prefix, (most, what) in MOST.items():
        if (count := sum(line.startswith(prefix) for line in lines)) > most:
            raise TooLargeError(f"The offer has {count} {what}; at most {most} are taken.", param="sdp")


def _sdp(raw: bytes | str) -> str:
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise InvalidEventError("The offer is not UTF-8 text.", param="sdp", code="invalid_sdp") from error
    if not text.lstrip().startswith("v=0"):
        raise InvalidEventError("An SDP offer begins with v=0; this does not.", param="sdp", code="invalid_sdp")
    check_bounds(text)
    return text
