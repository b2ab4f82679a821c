"""Sample rates while sound flows: a line at 8 or 48 kHz, an ear at 16 kHz, a voice at 22.05 kHz, a session at 24 kHz.

The resampling is libswresample's, through PyAV, and not soxr's, which serves where the whole sound is at hand. soxr
computes in blocks: fed 20 ms at a time from 8 to 24 kHz it owes 43 ms on average and 75 ms at most (MQ; LQ half of
that), 21 and 38 ms from 24 to 16 kHz. libswresample's filter owes the same half of its length after every packet, 2 ms
at 8 kHz, is flat to 90 % of the lower rate's band, and is down by 100 dB from 120 % of it.

:class:`StreamResampler` gives what is there; :class:`PacketResampler` is for a wire, which wants as much out as goes
in, and puts what is owed in front, once, as silence.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import gcd

import numpy as np

from duplex.errors import ConfigError
from duplex.frames import Samples, silence

_PROBED_PACKETS = 64


class StreamResampler:
    """Streaming, mono float32: what goes in comes out at another rate, as soon as its filter has seen enough."""

    def __init__(self, in_rate_hz: int, out_rate_hz: int) -> None:
        import av  # here, since a core module without a line or a model needs none of it
        from av.filter import Graph

        self._av = av
        self._in_rate_hz = in_rate_hz
        self._time_base = Fraction(1, in_rate_hz)
        # A graph of our own: the library's resampler makes one with a thread for each core, which outlive a call
        # until the garbage is collected, and costs a fifth more.
        self._graph = graph = Graph()  # kept: what is in it does not keep it alive
        graph.threads = 1
        self._source = graph.add_abuffer(sample_rate=in_rate_hz, format="flt", layout="mono", time_base=self._time_base)
        self._sink = graph.add("abuffersink")
        graph.link_nodes(self._source, graph.add("aresample", str(out_rate_hz)), self._sink)
        graph.configure()
        self._pts = 0

    def push(self, samples: Samples) -> Samples:
        """float32[n] to float32[m], m being n times the rates' ratio but for what is owed."""
        if not len(samples):
            return silence(0)
        frame = self._av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[None], dtype=np.float32), format="flt", layout="mono"
        )
        frame.sample_rate, frame.time_base, frame.pts = self._in_rate_hz, self._time_base, self._pts
        self._pts += len(samples)
        self._source.push(frame)
        return self._ready()

    def end(self) -> Samples:
        """What is still owed. Nothing may be pushed after it."""
        if not self._pts:
            return silence(0)
        self._source.push(None)
        return self._ready()

    def _ready(self) -> Samples:
        parts: list[Samples] = []
        while True:
            try:
                frame = self._sink.pull()
            except (self._av.BlockingIOError, self._av.EOFError):
                break
            assert isinstance(frame, self._av.AudioFrame)
            parts.append(frame.to_ndarray()[0])
        return np.concatenate(parts) if parts else silence(0)


class PacketResampler:
    """Streaming: n samples in, exactly n · ``out_rate_hz`` / ``in_rate_hz`` out, :attr:`delay_samples` late.

    ``packet_samples``: the length of what comes in, or a divisor of it; it must be a whole number of samples at both
    rates, or ``ConfigError`` is raised. Rates that are equal pass through, with no delay.
    """

    def __init__(self, in_rate_hz: int, out_rate_hz: int, packet_samples: int) -> None:
        if in_rate_hz <= 0 or out_rate_hz <= 0 or packet_samples <= 0:
            raise ConfigError(f"Rates and packets are above 0: {in_rate_hz} Hz, {out_rate_hz} Hz, {packet_samples}.")
        if packet_samples * out_rate_hz % in_rate_hz:
            step = in_rate_hz // gcd(in_rate_hz, out_rate_hz)
            raise ConfigError(
                f"A packet of {packet_samples} samples at {in_rate_hz} Hz is no whole number of samples at "
                f"{out_rate_hz} Hz; use a multiple of {step}."
            )
        self.in_rate_hz = in_rate_hz
        self.out_rate_hz = out_rate_hz
        self.packet_samples = packet_samples
        self._lag = 0 if in_rate_hz == out_rate_hz else _most_owed(in_rate_hz, out_rate_hz, packet_samples)
        self.reset()

    @property
    def delay_samples(self) -> int:
        """By how many samples, at ``out_rate_hz``, what comes out is late."""
        return self._lag

    def reset(self) -> None:
        """As new: what was owed is forgotten."""
        self._library = (
            None if self.in_rate_hz == self.out_rate_hz else StreamResampler(self.in_rate_hz, self.out_rate_hz)
        )
        self._ready = silence(self._lag)

    def push(self, samples: Samples) -> Samples:
        """float32[n] to float32[n · out / in]; n is a multiple of ``packet_samples``, or ``ConfigError`` is raised."""
        if len(samples) % self.packet_samples:
            raise ConfigError(f"{len(samples)} samples are not a multiple of this resampler's {self.packet_samples}.")
        if self._library is None:
            return samples.astype(np.float32)
        n = len(samples) * self.out_rate_hz // self.in_rate_hz
        if n:
            self._ready = np.concatenate([self._ready, self._library.push(samples)])
        out, self._ready = self._ready[:n], self._ready[n:]
        return out

    def flush(self) -> Samples:
        """What is still owed when the line ends, float32[:attr:`delay_samples`]. After it the resampler is as new."""
        rest = self._ready
        if self._library is not None:
            rest = np.concatenate([rest, self._library.end(), silence(self._lag)])[: self._lag]
        self.reset()
        return rest


@lru_cache(maxsize=64)
def _most_owed(in_rate_hz: int, out_rate_hz: int, packet_samples: int) -> int:
    """The most samples that are owed after a packet: measured, since it is stated nowhere."""
    library, owed, most = StreamResampler(in_rate_hz, out_rate_hz), 0, 0
    for _ in range(_PROBED_PACKETS):
        owed += packet_samples * out_rate_hz // in_rate_hz - len(library.push(silence(packet_samples)))
        most = max(most, owed)
    return most
