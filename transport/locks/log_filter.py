"""Keys and tokens left out of the log, whatever wrote them there: a library's debug output shows whole headers."""

from __future__ import annotations

import logging
import re

from duplex.keys import PREFIX as KEY_PREFIX
from duplex.transport.locks.client_secrets import PREFIX as TOKEN_PREFIX

_SECRET = re.compile(
    rf"\b(?:{KEY_PREFIX}|{TOKEN_PREFIX})[\w-]{{16,}}"
    r"|(?<=openai-insecure-api-key\.)[^\s,;'\"]+"
    r"|(?i:(?<=bearer )|(?<=basic ))[^\s,;'\"]{8,}"
    r"|(?i:(?<=x-twilio-signature: ))\S+"
)


def without_secrets(text: str) -> str:
    return _SECRET.sub("…", text)


class SecretsLeftOut(logging.Filter):
    """For a handler: it passes every record on, its message without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        cleaned = without_secrets(message)
        if cleaned != message:
            record.msg, record.args = cleaned, None
        return True


class RefusalsAreNoFaults(logging.Filter):
    """For the logger ``uvicorn.error``, which calls every WebSocket that was refused a fault of ours.

    (uvicorn 0.54, ``websockets_sansio_impl``: an answer that refuses does not count as a completed handshake.) Whoever
    knocks at a locked door could fill the disk with it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing handshake."
