"""Headers that hold a browser to what the page needs: its own files, its microphone and its camera, and no frame."""

from __future__ import annotations

ANYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""On every answer."""

_CONTENT = {
    "script-src-elem": "'self'",
    "script-src-attr": "'none'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "media-src": "'self' blob: mediastream:",
    "connect-src": "'self'",
    "worker-src": "'self'",
    "manifest-src": "'self'",
    "frame-src": "'none'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",  # a page in a frame could be made to look like another one's Talk button
}

PAGE = {
    **ANYWHERE,
    "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in _CONTENT.items()),
    "Permissions-Policy": (
        "microphone=(self), camera=(self), autoplay=(self), speaker-selection=(self), screen-wake-lock=(self), "
        "display-capture=(), geolocation=(), payment=(), usb=(), bluetooth=(), serial=(), hid=(), midi=()"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""On the page and its files."""
