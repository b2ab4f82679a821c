"""Whether there is still someone at the far end.

A browser whose tab is closed says nothing; it just stops, and so does one whose network went away. While its
microphone is open that shows within a few packets, but a far end may be quiet and well (muted, typing, or sending
nothing in pauses: DTX), and ICE's own consent checks (RFC 7675) take 30 s to give up. So when nothing has arrived for a
moment we ask ourselves, with the check ICE would send anyway: whoever is there answers in one round trip.
"""

from __future__ import annotations

from typing import Any

from aioice.stun import TransactionError, TransactionTimeout
from aiortc import RTCPeerConnection, RTCRtpReceiver

from duplex.errors import TransportError

ASK_AFTER_S = 0.15
"""Longer than packets of 20 ms are apart on any line worth talking over."""
ASK_EVERY_S = 0.2
LOST_AFTER_S = 0.4
"""Without a sign, and a round trip on top."""
UNHURRIED_S = 2.0
"""Between two questions to somebody who sends nothing, while we say nothing either."""
_STREAM_S = 3.0

RECEIVED = "_RTCDtlsTransport__rx_packets"


class Signs:
    """Signs of life, and what follows from their absence. Pure: times are seconds of any one clock.

    ``lost``: nobody is there now. Look often: every 0.1 s.
    """

    def __init__(self, now_s: float) -> None:
        self.lost = False
        self.round_trip_s = 0.0
        self._sign_s = self._stream_s = now_s
        self._asked_s = float("-inf")
        self._unanswered_s: float | None = None  # the first question since the last sign

    def packet(self, now_s: float) -> None:
        """Something came by itself."""
        self._stream_s = now_s
        self._sign(now_s)

    def asked(self, now_s: float) -> None:
        self._asked_s = now_s
        if self._unanswered_s is None:
            self._unanswered_s = now_s

    def answered(self, asked_s: float, now_s: float) -> None:
        """The question of ``asked_s`` was."""
        self.round_trip_s = now_s - asked_s
        self._sign(now_s)

    def silent_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._sign_s)

    def should_ask(self, now_s: float, *, speaking: bool) -> bool:
        """``speaking``: somebody has to be there to hear it."""
        if self.silent_s(now_s) < ASK_AFTER_S:
            return False
        hurry = speaking or self.lost or now_s - self._stream_s < _STREAM_S
        return now_s - self._asked_s >= (ASK_EVERY_S if hurry else UNHURRIED_S)

    def look(self, now_s: float) -> bool:
        """Judges; whether ``lost`` changed."""
        asked_for_s = 0.0 if self._unanswered_s is None else now_s - self._unanswered_s
        patience_s = LOST_AFTER_S - ASK_AFTER_S + self.round_trip_s
        lost = self.silent_s(now_s) >= LOST_AFTER_S and asked_for_s >= patience_s
        changed, self.lost = lost is not self.lost, lost
        return changed

    def _sign(self, now_s: float) -> None:
        self._sign_s, self._unanswered_s = max(self._sign_s, now_s), None


def ice_of(peer: RTCPeerConnection) -> Any:
    """The ICE connection under the first section. Raises ``TransportError`` if this aiortc keeps it elsewhere."""
    connection = getattr(peer.getReceivers()[0].transport.transport, "_connection", None)
    if not all(hasattr(connection, name) for name in ("build_request", "remote_password", "_nominated")):
        raise TransportError(
            "This aiortc keeps its ICE connection elsewhere. Run: pip install 'aiortc>=1.16,<1.17' 'aioice>=0.13,<0.14'"
        )
    return connection


async def answers(connection: Any) -> bool:
    """Asks the far end for a sign of life; at most 1.5 s."""
    for pair in list(connection._nominated.values()):
        try:
            await pair.protocol.request(
                connection.build_request(pair, nominate=False),
                pair.remote_addr,
                integrity_key=(connection.remote_password or "").encode(),
                retransmissions=1,
            )
        except TransactionTimeout:
            continue
        except TransactionError:
            return True  # it objects, so it lives
        except Exception:  # the socket went away underneath
            continue
        return True
    return False


def packets_received(receiver: RTCRtpReceiver) -> int:
    """Media, RTCP and data packets that have arrived on the receiver's transport.

    Raises ``TransportError`` if this aiortc counts them elsewhere.
    """
    count = getattr(receiver.transport, RECEIVED, None)
    if not isinstance(count, int):
        raise TransportError(
            "This aiortc counts its packets elsewhere. Run: pip install 'aiortc>=1.16,<1.17' 'aioice>=0.13,<0.14'"
        )
    return count
