"""Echo paths with a seed: what comes back to us of our own voice, through a loudspeaker, a room and a line.

agent ─► line ─► loudspeaker (soft clipping, no bass) ─► room ─┐
                                                 user, noise ─►+─► delay ─► line ─► heard
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr

from duplex.codecs.g711 import RATE_HZ as PHONE_RATE_HZ
from duplex.codecs.g711 import decode_ulaw, encode_ulaw
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples

Line = Literal["pcm", "opus", "phone"]

_NOISE_DBFS = -70.0
_BASS_HZ = 250.0  # small loudspeakers give nothing below
_ROOM_S = 0.3
_MOVES_A_SECOND = 0.5  # how often a player's buffer moves within speech


@dataclass(frozen=True, slots=True)
class EchoPath:
    """``level_db``: the echo against the agent's voice (negative). ``delay_ms``: there, through the air and back.

    ``drive``: how far the loudspeaker is pushed into soft clipping, as the peak's multiple of its knee (0: linear).
    ``dry_db``: the direct sound against everything the room adds. ``wobble_ms``: the far player's buffer moves by up to
    that much, at each pause and now and then within speech. ``seed``: which room, and the noise.
    """

    level_db: float = -20.0
    delay_ms: float = 120.0
    line: Line = "pcm"
    drive: float = 0.0
    dry_db: float = 6.0
    decay_s: float = 0.25
    wobble_ms: float = 0.0
    seed: int = 0

    def heard(self, agent: Samples, user: Samples | None = None) -> tuple[Samples, Samples]:
        """(what we hear, the echo in it), each as long as ``agent``: float32[n] at 24 kHz.

        ``user``: float32[<= n], as loud as it reaches us. What is still under way at the end is cut off.
        """
        rng = np.random.default_rng([self.seed, 77])
        n = len(agent)
        played = self.room(rng, self.loudspeaker(self.player(through(self.line, agent))))
        power = float(np.mean(np.square(played))) + 1e-20
        gain = 10 ** (self.level_db / 20) * np.sqrt(float(np.mean(np.square(agent))) / power)
        at = ms_to_samples(self.delay_ms)
        echo = np.zeros(n, dtype=np.float32)
        echo[at:] = gain * played[: n - at]
        microphone = echo + rng.normal(0.0, 10 ** (_NOISE_DBFS / 20), n).astype(np.float32)
        if user is not None:
            microphone[: len(user)] += user
        return through(self.line, microphone), echo

    def player(self, samples: Samples) -> Samples:
        """As a player with a buffer that adapts puts it out: a moment of silence put in, or a little left out."""
        if not self.wobble_ms:
            return samples
        rng = np.random.default_rng([self.seed, 78])
        out = np.zeros_like(samples)
        shift, quiet = 0, True
        for start in range(0, len(samples), PACKET_SAMPLES):
            packet = samples[start : start + PACKET_SAMPLES]
            audible = float(np.dot(packet, packet)) > 1e-5 * len(packet)
            if (audible and quiet) or rng.random() < _MOVES_A_SECOND * PACKET_SAMPLES / SAMPLE_RATE_HZ:
                shift = ms_to_samples(float(rng.uniform(0.0, self.wobble_ms)))
            quiet = not audible
            at = start + shift
            if at < len(out):
                out[at : at + len(packet)] = packet[: len(out) - at]
        return out

    def loudspeaker(self, samples: Samples) -> Samples:
        if self.drive > 0:
            knee = float(np.max(np.abs(samples)) + 1e-9) / self.drive
            samples = np.tanh(samples / knee) * knee
        return _without_bass(samples.astype(np.float32))

    def room(self, rng: np.random.Generator, samples: Samples) -> Samples:
        """Convolved with a direct sound and a tail of noise that falls by 60 dB in ``decay_s``."""
        t = np.arange(round(_ROOM_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tail = rng.normal(0.0, 1.0, len(t)) * 10 ** (-3.0 * t / self.decay_s)
        tail[: ms_to_samples(1.0)] = 0.0
        tail *= 10 ** (-self.dry_db / 20) / np.sqrt(np.sum(np.square(tail)))
        tail[0] = 1.0
        return convolved(samples, tail)


def through(line: Line, samples: Samples) -> Samples:
    """``samples`` after one trip over the line, at its own (small) delay: float32[n] at 24 kHz."""
    if line == "opus":
        return _opus(samples)
    if line == "phone":
        narrow = soxr.resample(samples, SAMPLE_RATE_HZ, PHONE_RATE_HZ)
        back = soxr.resample(decode_ulaw(encode_ulaw(narrow)), PHONE_RATE_HZ, SAMPLE_RATE_HZ).astype(np.float32)
        return np.pad(back, (0, max(0, len(samples) - len(back))))[: len(samples)]
    return samples


def _opus(samples: Samples) -> Samples:
    from duplex.transport.rtp_audio import OpusDecoder, OpusEncoder

    encode, decode = OpusEncoder(), OpusDecoder()
    n = len(samples)
    packets = np.pad(samples, (0, -n % PACKET_SAMPLES)).reshape(-1, PACKET_SAMPLES)
    return np.concatenate([decode(encode(packet)) for packet in packets])[:n]


def _without_bass(samples: Samples) -> Samples:
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1.0 / SAMPLE_RATE_HZ)
    rise = np.clip(hz / _BASS_HZ, 0.0, 1.0)
    return np.fft.irfft(spectrum * np.sin(rise * np.pi / 2) ** 2, len(samples)).astype(np.float32)


def convolved(samples: Samples, response: np.ndarray[tuple[int], np.dtype[np.floating]]) -> Samples:
    """float32[n]: the first n samples of the convolution."""
    size = 1 << (len(samples) + len(response)).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)
