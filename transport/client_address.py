"""Where a server is, and what it says when it refuses: the same words for every client."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from duplex.errors import AgentFullError, TransportError

_HTTP_OF = {"ws": "http", "wss": "https"}


def address(url: str, path: str, schemes: Collection[str] = ("http", "https")) -> str:
    """The full http address from one with or without scheme and path. Raises ``TransportError`` if it is none."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        valid = False
    if not valid:
        raise TransportError(f"{url!r} is not the address of a server. It looks like http://127.0.0.1:8998")
    parts = parts._replace(scheme=_HTTP_OF.get(parts.scheme, parts.scheme))
    if parts.path in {"", "/"}:
        parts = parts._replace(path=path)
    return parts.geturl()


def base(url: str) -> str:
    """Scheme, host and port, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine, where no proxy leads."""
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def key_header(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What shows the server the key in the environment's ``DUPLEX_API_KEY``; nothing where that is not set."""
    key = (os.environ if environ is None else environ).get("DUPLEX_API_KEY", "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def no_server(url: str) -> TransportError:
    return TransportError(f"There is no server at {base(url)}. Start one with: duplex serve")


def no_answer(url: str, timeout_s: float) -> TransportError:
    return TransportError(f"{base(url)} took the connection but did not answer within {timeout_s:g} s.")


def refusal(
    url: str, status: int, retry_after: str | None, body: bytes, reason: str
) -> TransportError | AgentFullError:
    """The error for an HTTP answer that is not what was hoped for. 503: ``AgentFullError``."""
    detail = _detail(body, reason)
    if status == 503:
        retry_after_s = _seconds(retry_after)
        return AgentFullError(
            f"The server is full or not ready yet ({detail}). Try again in {retry_after_s:g} s.", retry_after_s
        )
    advice = " Set DUPLEX_API_KEY to a key of that server." if status == 401 else ""
    return TransportError(f"{url} refused the call: {status}, {detail}.{advice}")


def _detail(body: bytes, reason: str) -> str:
    """What a refusal says for itself, whichever way it says it."""
    text: Any = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
        error = said.get("error", said)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text or reason).split())[:300].rstrip(".")


def _seconds(text: str | None, default_s: float = 5.0) -> float:
    try:
        return max(0.0, float(text)) if text is not None else default_s
    except ValueError:
        return default_s
