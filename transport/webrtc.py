"""The WebRTC door: an SDP offer in, an answer out, and a session on the line between.

Theory of operation
-------------------
``answer`` reserves a place, sets up the connection and returns the answer with all its candidates. A
*call* task then waits for the connection to come up (or gives the place back after ``CONNECT_S``), opens the
session, and watches that something still arrives. Whoever notices the end first, far end, session or
watchdog, marks the line closed; the call task and the session both close it, and closing is idempotent.

aiortc does ICE, DTLS, SRTP, RTCP and SCTP. Its receive path for sound and pictures is not used
(:mod:`duplex.transport.rtp_audio`), nor is its default of asking a public STUN server for our address.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.sdp import MediaDescription, SessionDescription

from duplex.agent import AgentSettings
from duplex.config import Config
from duplex.errors import AgentFullError, InvalidEventError, ProtocolError, TooLargeError
from duplex.hub import Reservation, SessionHub
from duplex.transport.camera import Camera
from duplex.transport.data_channel import LABEL, MAX_CHANNELS, unread_limit_passed
from duplex.transport.event_codec import EventCodec
from duplex.transport.liveness import answers, ice_of, packets_received
from duplex.transport.receiver_reports import ReceiverReports
from duplex.transport.rtp_audio import Microphone, divert
from duplex.transport.webrtc_line import WebRtcLine

log = logging.getLogger("duplex.webrtc")

CONNECT_S = 15.0
QUIET_S = 3.0  # without a packet; then we ask
_WATCH_S = 1.0


@dataclass(slots=True)
class _Call:
    call_id: str
    peer: RTCPeerConnection
    line: WebRtcLine
    settings: AgentSettings
    reservation: Reservation
    up: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    channels: int = 0


class WebRtcDoor:
    """Answers offers for ``hub``. ``make_codec`` gives each call its own translation of events."""

    def __init__(self, hub: SessionHub, config: Config, make_codec: Callable[[], EventCodec]) -> None:
        self._hub, self._config, self._make_codec = hub, config, make_codec
        self._calls: dict[str, _Call] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="duplex-camera")
        self._closing = False

    @property
    def live(self) -> int:
        return len(self._calls)

    async def answer(self, offer_sdp: str, settings: AgentSettings) -> tuple[str, str]:
        """Accepts a call; returns its id and the SDP answer.

        Raises ``ProtocolError`` (kinds) for an offer that cannot be used, ``AgentFullError`` when full.
        """
        offer = read_offer(offer_sdp, self._config.server.max_sdp_bytes)
        self._check_open()
        reservation = self._hub.reserve()
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            call = self._set_up(peer, offer, settings, reservation)
            answer = await self._negotiate(peer, offer)
            self._check_open()
        except BaseException:
            reservation.release()
            await peer.close()
            raise
        self._calls[call.call_id] = call
        call.task = asyncio.create_task(self._run(call), name=call.call_id)
        return call.call_id, answer

    def _check_open(self) -> None:
        if self._closing:
            raise AgentFullError("The server is stopping. Try again in a moment.")

    async def hang_up(self, call_id: str) -> bool:
        """Ends a call; False if there is none of that name."""
        call = self._calls.get(call_id)
        if call is None:
            return False
        await self._end(call, "the client hung up")
        return True

    async def close(self) -> None:
        """Ends every call. The door takes none afterwards."""
        self._closing = True
        await asyncio.gather(*(self._end(call, "the server is stopping") for call in list(self._calls.values())))
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _end(self, call: _Call, reason: str) -> None:
        await call.line.close(reason)
        if call.task is not None:
            await asyncio.wait([call.task])

    # --- setting up -----------------------------------------------------------------------------------

    def _set_up(
        self, peer: RTCPeerConnection, offer: SessionDescription, settings: AgentSettings, reservation: Reservation
    ) -> _Call:
        hub, config = self._hub, self._config
        line = WebRtcLine(
            self._make_codec(),
            hub.clock,
            hub.metrics,
            max_unsent_events=config.session.max_unsent_events,
            max_event_bytes=config.server.max_event_bytes,
        )
        line.hang_up = peer.close
        call = _Call(f"rtc_{uuid.uuid4().hex}", peer, line, settings, reservation)

        audio = peer.addTransceiver(line.voice, direction="sendrecv")
        _prefer(audio, "audio/opus")
        divert(audio.receiver, Microphone(line.jitter, hub.clock.now))
        line.reports = ReceiverReports(audio.sender, hub.clock.now)
        line.voice.on_first_sent = line.reports.first_sent
        if any(media.kind == "video" for media in offer.media):
            # An agent that does not look gets no stream at all, which saves the caller's uplink too.
            wanted = hub.agent.info.takes_images
            video = peer.addTransceiver("video", direction="recvonly" if wanted else "inactive")
            _prefer(video, "video/VP8", "video/rtx")
            if wanted:
                line.camera = Camera(config.camera, self._worker, hub.metrics, hub.clock.now, lambda: line.heard_pts)
                divert(video.receiver, line.camera)

        def connection_changed() -> None:
            if peer.connectionState == "connected":
                call.up.set()
            elif peer.connectionState in ("failed", "closed"):
                line.lose("the connection was lost")

        def channel_opened(channel: RTCDataChannel) -> None:
            call.channels += 1
            if call.channels > MAX_CHANNELS:
                line.lose(f"the client opened more than {MAX_CHANNELS} data channels")
            elif channel.label == LABEL:
                line.attach(channel)

        peer.on("connectionstatechange", connection_changed)
        peer.on("datachannel", channel_opened)
        return call

    async def _negotiate(self, peer: RTCPeerConnection, offer: SessionDescription) -> str:
        try:
            await peer.setRemoteDescription(RTCSessionDescription(sdp=str(offer), type="offer"))
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:  # whatever aiortc stumbles over is in the offer
            log.info("an offer was refused: %s: %s", type(error).__name__, error)
            raise InvalidEventError(
                f"The offer cannot be answered: {error}.", param="sdp", code="invalid_sdp"
            ) from error
        answer: str = peer.localDescription.sdp
        return answer

    # --- a call ---------------------------------------------------------------------------------------

    async def _run(self, call: _Call) -> None:
        line = call.line
        try:
            await self._wait_up(call)
            if not line.closed:
                log.info("call %s is connected", call.call_id)
                line.connected()
                line.session = self._hub.open(line, call.settings, call.reservation)
                await self._watch(call)
        except Exception:
            log.exception("call %s failed", call.call_id)
        finally:
            call.reservation.release()
            await line.close("the call ended")
            log.info("call %s ended: %s", call.call_id, line.reason)
            self._calls.pop(call.call_id, None)

    async def _wait_up(self, call: _Call) -> None:
        """Returns once the connection is up or will never be."""
        waits = [asyncio.ensure_future(event.wait()) for event in (call.up, call.line.gone)]
        try:
            done, _ = await asyncio.wait(waits, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            call.line.lose(f"no connection came up within {CONNECT_S:g} s; is UDP between here and there blocked?")

    async def _watch(self, call: _Call) -> None:
        """Returns when the line is closed, at the latest when the far end is quiet and does not answer."""
        now_s = self._hub.clock.now
        receiver, ice = call.peer.getReceivers()[0], ice_of(call.peer)
        received, since_s = 0, now_s()
        while not call.line.gone.is_set():
            try:
                async with asyncio.timeout(_WATCH_S):
                    await call.line.gone.wait()
            except TimeoutError:
                if unread_limit_passed(call.peer.sctp):
                    call.line.lose("the client sends parts of events, and never the rest")
                count = await packets_received(receiver)
                if count != received:
                    received, since_s = count, now_s()
                elif now_s() - since_s > QUIET_S and not await answers(ice):
                    call.line.lose("the far end is gone: it sends nothing and does not answer")


def _prefer(transceiver: RTCRtpTransceiver, *mime_types: str) -> None:
    wanted = {mime_type.lower() for mime_type in mime_types}
    capabilities = RTCRtpReceiver.getCapabilities(transceiver.kind)
    assert capabilities is not None
    transceiver.setCodecPreferences([codec for codec in capabilities.codecs if codec.mimeType.lower() in wanted])


def read_offer(sdp: str, max_bytes: int) -> SessionDescription:
    """The offer, parsed and checked for what a call needs. Raises ``ProtocolError``'s kinds."""
    if len(sdp.encode("utf-8", "surrogatepass")) > max_bytes:
        raise TooLargeError(f"The offer has more than {max_bytes} bytes.", param="sdp")
    if not sdp.lstrip().startswith("v=0"):
        raise _unusable("it is not SDP, which begins with v=0")
    try:
        offer = SessionDescription.parse(_without_names(sdp))
    except Exception as error:  # aiortc's parser asserts, indexes and converts its way through
        raise _unusable("it is not SDP as WebRTC uses it") from error
    offer.type = "offer"
    sound = [media for media in offer.media if media.kind == "audio"]
    if len(sound) != 1:
        raise _unusable(f"it has {len(sound)} audio sections (m=audio); a call has one")
    if sum(media.kind == "video" for media in offer.media) > 1:
        raise _unusable("it has more than one video section (m=video); a call has one camera")
    for media in offer.media:
        _check_section(media)
    return offer


def _check_section(media: MediaDescription) -> None:
    if media.kind not in ("audio", "video", "application"):
        raise _unusable(f"it has a section of kind {media.kind!r}; audio, video and application are taken")
    if media.ice is None or media.ice.usernameFragment is None or media.ice.password is None:
        raise _unusable(f"its {media.kind} section has no ICE credentials (a=ice-ufrag, a=ice-pwd)")
    if media.dtls is None or not media.dtls.fingerprints:
        raise _unusable(f"its {media.kind} section has no DTLS fingerprint (a=fingerprint)")
    wanted = {"audio": "opus", "video": "vp8"}.get(media.kind)
    if wanted and all(codec.name.lower() != wanted for codec in media.rtp.codecs):
        raise _unusable(f"its {media.kind} section does not offer {wanted}")


def _without_names(sdp: str) -> str:
    """Without mDNS candidates: browsers hide their address behind a name that seldom resolves here, and find us anyway.

    ``end-of-candidates`` goes too, so that a far end without a usable candidate is still waited for.
    """
    lines = sdp.splitlines()
    kept = [
        line
        for line in lines
        if not (line.startswith("a=candidate:") and ".local" in line) and line.strip() != "a=end-of-candidates"
    ]
    return "\r\n".join(kept) + "\r\n"


def _unusable(why: str) -> ProtocolError:
    return InvalidEventError(f"The offer cannot be used: {why}.", param="sdp", code="invalid_sdp")
