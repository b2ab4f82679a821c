"""TLS from certificate files, which may be renewed while the server runs.

A server's context cannot be replaced, but each new connection may be given another one at its first message (the hook
made for choosing a certificate by name). So a renewed pair of files becomes a new context, whole or not at all, and
connections that are up keep what they began with.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from duplex.errors import ConfigError

log = logging.getLogger("duplex.tls")


class TlsFiles:
    """``context`` for the server; call ``refresh`` now and then, off the event loop.

    ``certificate``: the chain, PEM. ``key``: its private key; None if it is in the same file.
    Raises ``ConfigError`` if the files cannot be used at the start.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self._certificate, self._key = certificate, key
        self._seen = self._identity()
        self._newest = self._load()
        self.context = self._newest
        self.context.sni_callback = self._choose

    def refresh(self) -> bool:
        """Reads the files if they changed; whether new ones are in force. Bad ones change nothing but the log."""
        try:
            seen = self._identity()
            if seen == self._seen:
                return False
            self._seen = seen
            self._newest = self._load()
        except ConfigError as error:
            log.error("the certificate stays as it was: %s", error)
            return False
        log.info("read a new certificate from %s", self._certificate)
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"The certificate {self._certificate} and its key {self._key or '(in the same file)'} cannot be used: "
                f"{error}. Both must be PEM, belong together, and need no password."
            ) from error
        return context

    def _identity(self) -> Any:
        try:
            stats = [path.stat() for path in (self._certificate, self._key) if path is not None]
        except OSError as error:
            raise ConfigError(
                f"The file {error.filename} cannot be read: {error.strerror}. Check security.tls_certificate and "
                "security.tls_key."
            ) from error
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # OpenSSL would ask at the terminal, and wait
