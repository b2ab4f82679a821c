"""The WebRTC door: an SDP offer in, an answer out, and a session on the line between.

Theory of operation
-------------------
``answer`` reserves a place, sets up the connection and returns the answer with all its candidates. A
*call* task then waits for the connection to come up (or gives the place back after ``CONNECT_S``), opens the
session, and watches over the far end. A call whose far end is out of reach waits ``session.resume_s`` for it, and may
``move`` to a new connection meanwhile. Whoever notices the end first, far end, session or
watchdog, marks the line closed; the call task and the session both close it, and closing is idempotent.

aiortc does ICE, DTLS, SRTP, RTCP and SCTP. Its receive path for sound and pictures is not used
(:mod:`duplex.transport.rtp_audio`), nor is its default of asking a public STUN server for our address.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus

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
from duplex.transport.data_channel import LABEL, MAX_CHANNELS
from duplex.transport.event_codec import EventCodec
from duplex.transport.far_end import watch
from duplex.transport.http_errors import RequestError
from duplex.transport.ice_servers import used_here
from duplex.transport.jitter import JitterBuffer
from duplex.transport.locks.caller import current_visit
from duplex.transport.locks.metered_tap import MeteredTap
from duplex.transport.receiver_reports import ReceiverReports
from duplex.transport.resume import same
from duplex.transport.rtp_audio import Microphone, OpusDecoder, RtpTap, Voice, divert
from duplex.transport.webrtc_line import Media, WebRtcLine

log = logging.getLogger("duplex.webrtc")

CONNECT_S = 15.0


@dataclass(slots=True)
class _Connection:
    """One of a call's; it has another when it moves. ``over``: this one is not to be watched any more."""

    peer: RTCPeerConnection
    media: Media
    up: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    channels: int = 0


@dataclass(slots=True)
class _Call:
    call_id: str
    line: WebRtcLine
    settings: AgentSettings
    reservation: Reservation
    connection: _Connection
    task: asyncio.Task[None] | None = None


class WebRtcDoor:
    """Answers offers for ``hub``. ``make_codec`` gives each call its own translation of events."""

    def __init__(self, hub: SessionHub, config: Config, make_codec: Callable[[], EventCodec]) -> None:
        self._hub, self._config, self._make_codec = hub, config, make_codec
        self._calls: dict[str, _Call] = {}
        self._moves: set[asyncio.Task[None]] = set()
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
        line = self._line()
        try:
            connection = self._connect(line, offer)
            line.move(connection.media)
            answer = await self._negotiate(connection.peer, offer)
            self._check_open()
        except BaseException:
            reservation.release()
            if line.media is not None:
                await line.media.hang_up()
            raise
        call = _Call(f"rtc_{uuid.uuid4().hex}", line, settings, reservation, connection)
        self._calls[call.call_id] = call
        call.task = asyncio.create_task(self._run(call), name=call.call_id)
        return call.call_id, answer

    async def move(self, call_id: str, offer_sdp: str, token: str, last_event: int) -> str | None:
        """A call goes on over a new connection; returns the SDP answer, None if there is no such call.

        ``token``: the secret that its client was told (``session.duplex.resume_token``). ``last_event``: the number of
        the last event that the client has; what came after it is sent again. aiortc cannot restart ICE on a connection
        that is up, so a new one takes over: new candidates, new keys, the same session. Raises as ``answer`` does, and
        ``RequestError`` (403) for another secret.
        """
        offer = read_offer(offer_sdp, self._config.server.max_sdp_bytes)
        self._check_open()
        call = self._calls.get(call_id)
        if call is None or call.line.closed or call.line.session is None:
            return None
        if call.line.token is None or not same(call.line.token, token):
            message, param = "The resume_token is not this call's.", "session.duplex.resume_token"
            raise RequestError(HTTPStatus.FORBIDDEN, "resume_refused", message, param)
        connection = self._connect(call.line, offer)
        try:
            answer = await self._negotiate(connection.peer, offer)
            if call.line.closed:
                raise AgentFullError("The call ended while it was being moved.")
        except BaseException:
            await connection.media.hang_up()
            raise
        task = asyncio.create_task(self._take_over(call, connection, last_event), name=f"{call_id} moves")
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)
        return answer

    async def _take_over(self, call: _Call, connection: _Connection, last_event: int) -> None:
        """Once the new connection is up, the old one goes."""
        line, before = call.line, call.connection
        if not await self._is_up(connection, line):
            await connection.media.hang_up()
            log.info("call %s did not move: no connection came up", call.call_id)
            return
        call.connection = connection
        old = line.move(connection.media)
        line.arrive(last_event)
        before.over.set()
        log.info("call %s moved to a new connection", call.call_id)
        if old is not None:
            if old.camera is not None:
                old.camera.close()
            await old.hang_up()

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
        for move in list(self._moves):
            move.cancel()
        await asyncio.gather(*self._moves, return_exceptions=True)
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _end(self, call: _Call, reason: str) -> None:
        await call.line.close(reason)
        if call.task is not None:
            await asyncio.wait([call.task])

    # --- setting up -----------------------------------------------------------------------------------

    def _line(self) -> WebRtcLine:
        return WebRtcLine(
            self._make_codec(),
            self._hub.clock,
            self._hub.metrics,
            max_unsent_events=self._config.session.max_unsent_events,
            max_event_bytes=self._config.server.max_event_bytes,
        )

    def _metered(self, tap: RtpTap) -> RtpTap:
        visit = current_visit()
        return tap if visit is None else MeteredTap(tap, visit.meter, self._hub.clock.now, self._hub.metrics)

    def _connect(self, line: WebRtcLine, offer: SessionDescription) -> _Connection:
        hub, config = self._hub, self._config
        peer = RTCPeerConnection(RTCConfiguration(iceServers=used_here(config.webrtc, time.time())))
        media = Media(Voice(), JitterBuffer(OpusDecoder()), lambda: _give_up(peer))
        connection = _Connection(peer, media)

        audio = peer.addTransceiver(media.voice, direction="sendrecv")
        _prefer(audio, "audio/opus")
        divert(audio.receiver, self._metered(Microphone(media.jitter, hub.clock.now)))
        media.reports = ReceiverReports(audio.sender, hub.clock.now)
        media.voice.on_first_sent = media.reports.first_sent
        if any(media.kind == "video" for media in offer.media):
            # An agent that does not look gets no stream at all, which saves the caller's uplink too.
            wanted = hub.agent.info.takes_images
            video = peer.addTransceiver("video", direction="recvonly" if wanted else "inactive")
            _prefer(video, "video/VP8", "video/rtx")
            if wanted:
                media.camera = Camera(config.camera, self._worker, hub.metrics, hub.clock.now, lambda: line.heard_pts)
                divert(video.receiver, self._metered(media.camera))

        def connection_changed() -> None:
            if peer.connectionState == "connected":
                connection.up.set()
            elif peer.connectionState in ("failed", "closed"):
                connection.over.set()
                if line.media is media:
                    line.lose("the connection was lost")

        def channel_opened(channel: RTCDataChannel) -> None:
            connection.channels += 1
            if connection.channels > MAX_CHANNELS:
                line.lose(f"the client opened more than {MAX_CHANNELS} data channels")
            elif channel.label == LABEL:
                media.attach(channel, line)

        peer.on("connectionstatechange", connection_changed)
        peer.on("datachannel", channel_opened)
        return connection

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
            if not await self._is_up(call.connection, line):
                line.lose(f"no connection came up within {CONNECT_S:g} s; is UDP between here and there blocked?")
            if not line.closed:
                log.info("call %s is connected", call.call_id)
                line.connected()
                line.session = self._hub.open(line, call.settings, call.reservation)
            while not line.closed:
                connection = call.connection
                await watch(connection.peer, line, connection.over, self._hub.clock, self._hub.config.resume_s)
        except Exception:
            log.exception("call %s failed", call.call_id)
        finally:
            call.reservation.release()
            await line.close("the call ended")
            log.info("call %s ended: %s", call.call_id, line.reason)
            self._calls.pop(call.call_id, None)
            if line.session is not None:  # who is told that a call has ended may want its place for the next
                await self._hub.left(line.session)

    async def _is_up(self, connection: _Connection, line: WebRtcLine) -> bool:
        """Returns once the connection is up or will never be."""
        waits = [asyncio.ensure_future(event.wait()) for event in (connection.up, connection.over, line.gone)]
        try:
            await asyncio.wait(waits, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return connection.up.is_set() and not connection.over.is_set()


async def _give_up(peer: RTCPeerConnection) -> None:
    """Closes a connection that was not agreed on. aiortc's own ``close`` stumbles over a section without a transport,
    which is what an offer leaves behind that it refuses half-way; the others hold sockets."""
    try:
        await peer.close()
    except AttributeError:
        dtls = [transceiver.receiver.transport for transceiver in peer.getTransceivers()]
        for transport in dtls + ([peer.sctp.transport] if peer.sctp is not None else []):
            if transport is not None:
                await transport.stop()
                await transport.transport.stop()


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
    if media.rtcp_mux and media.rtcp_port is None:  # as Pion offers; aiortc writes a=rtcp-mux only beside an a=rtcp
        media.rtcp_port, media.rtcp_host = 9, "0.0.0.0"


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
