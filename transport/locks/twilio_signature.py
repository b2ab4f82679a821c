"""Twilio's signature: is a request, or the opening of a media stream, from the account whose token we know? Pure.

The scheme (twilio.com/docs/usage/security, "Validating requests are coming from Twilio"): HMAC-SHA1 under the
account's auth token, of the full address as Twilio called it, followed by each POST parameter's name and value in the
order of the names; base64. A WebSocket's opening has no parameters. Twilio sends the port in the address in some cases
and not in others, so both spellings are tried, as its own libraries do.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def twilio_signature(url: str, params: Mapping[str, str | Sequence[str]], token: str) -> str:
    """What Twilio would send in ``X-Twilio-Signature`` for exactly this ``url``."""
    text = url
    for name in sorted(params):
        values = params[name]
        # A parameter that comes twice is signed once for each different value, in order.
        text += "".join(name + value for value in ([values] if isinstance(values, str) else sorted(set(values))))
    return base64.b64encode(hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()).decode("ascii")


def twilio_signature_valid(url: str, params: Mapping[str, str | Sequence[str]], token: str, signature: str) -> bool:
    """Whether ``signature`` is right for ``url``: the address as Twilio knows it, public name, query and all.

    An empty ``token`` is never right. Takes the same time wherever two signatures differ.
    """
    if not token:
        return False
    given = signature.strip().encode("utf-8", "surrogatepass")
    valid = False
    for spelling in _spellings(url):
        valid |= hmac.compare_digest(twilio_signature(spelling, params, token).encode(), given)
    return valid


def _spellings(url: str) -> list[str]:
    """With its port, and without."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return [url]
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    port = port or _DEFAULT_PORTS.get(parts.scheme)
    both = [parts._replace(netloc=netloc).geturl() for netloc in (host, f"{host}:{port}")]
    return list(dict.fromkeys([url, *both]))
