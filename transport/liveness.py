"""Whether there is still someone at the far end.

A browser whose tab is closed says nothing; it just stops. While its microphone is open that shows at once,
but a far end may be quiet and well, and ICE's own consent checks (RFC 7675) take 30 s to give up. So when
nothing has arrived for a moment we ask once ourselves, with the check ICE would send anyway.
"""

from __future__ import annotations

from typing import Any

from aioice.stun import TransactionError, TransactionTimeout
from aiortc import RTCPeerConnection, RTCRtpReceiver

from duplex.errors import TransportError


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


async def packets_received(receiver: RTCRtpReceiver) -> int:
    """Media, RTCP and data packets that have arrived on the receiver's transport."""
    stats = await receiver.getStats()
    return sum(entry.packetsReceived for entry in stats.values() if entry.type == "transport")
