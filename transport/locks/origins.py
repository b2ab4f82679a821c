"""Which pages may call, and the headers that say so (CORS, in the Fetch standard's terms). Pure.

Browsers name the page's origin on requests to elsewhere and on every WebSocket; programs name none. A page of our own
host may always call. Others may if they are configured; no cookies are involved, so no header allows credentials.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from duplex.transport.http_errors import RequestError

_METHODS = "GET, POST, PATCH, DELETE"
_MAX_AGE_S = 600
_MAX_REQUESTED_CHARS = 1024


def is_own(headers: Headers) -> bool:
    """Whether the page, if there is one, came from the host that is asked."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:  # an address in brackets that is none
        return False


def is_allowed(origin: str, allowed: Collection[str]) -> bool:
    return "*" in allowed or origin.lower().rstrip("/") in {known.lower().rstrip("/") for known in allowed}


def require_welcome(headers: Headers, allowed: Collection[str]) -> None:
    """Raises ``RequestError`` (403) for a page that may not call."""
    origin = headers.get("origin", "")
    if is_own(headers) or is_allowed(origin, allowed):
        return
    raise RequestError(
        HTTPStatus.FORBIDDEN,
        "foreign_origin",
        f"Pages of {origin[:200]} may not open sessions here (Host: {headers.get('host', '')[:200]}). Behind a proxy, "
        "have it pass the Host header on. To let other pages call, name them in security.origins.",
    )


def cors_headers(headers: Headers, allowed: Collection[str]) -> dict[str, str]:
    """For a response to a page of another origin that may read it; none for anybody else."""
    origin = headers.get("origin")
    if origin is None or not is_allowed(origin, allowed):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Location, Retry-After",
        "Vary": "Origin",
    }


def is_preflight(method: str, headers: Headers) -> bool:
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight_headers(headers: Headers, allowed: Collection[str]) -> dict[str, str]:
    """The answer to a preflight request. Raises ``RequestError`` (403)."""
    require_welcome(headers, allowed)
    # Clients add headers of their own to say which version they are; an allowed page may send what it likes.
    requested = headers.get("access-control-request-headers", "")[:_MAX_REQUESTED_CHARS]
    return {
        **cors_headers(headers, allowed),
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": requested or "Authorization, Content-Type",
        "Access-Control-Max-Age": str(_MAX_AGE_S),
        "Vary": "Origin, Access-Control-Request-Headers",
    }
