"""Exit status 0 when the server in this container answers. For ``HEALTHCHECK``; needs nothing but Python.

Where and how it listens is read from the same variables as the server's: ``DUPLEX_SERVER__PORT``,
``DUPLEX_SECURITY__TLS_CERTIFICATE``. A server that is told those in a file or by flags needs them here, too.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

TIMEOUT_S = 3.0


def alive(environ: Mapping[str, str]) -> bool:
    port = int(environ.get("DUPLEX_SERVER__PORT", "8998"))
    connection: http.client.HTTPConnection
    if environ.get("DUPLEX_SECURITY__TLS_CERTIFICATE"):
        # Its certificate is for the name that callers use, which is not this one. Nothing secret is sent.
        trust = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=trust)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if alive(os.environ) else 1)
