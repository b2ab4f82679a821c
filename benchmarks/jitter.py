"""What the receiving side costs in delay and in CPU, next to aiortc's own.

    duplex bench jitter [--seconds N] [--runs N] [--json FILE]

*Delay* is playout behind the fastest arrival, simulated: the same packets through our buffer and through
aiortc's (``JitterBuffer(16, prefetch=4)`` and its queue, read every 20 ms as a session would). Exact and
repeatable, so one run each. *CPU* is measured, median of ``--runs``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import struct
import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from duplex.config import CameraConfig
from duplex.frames import PACKET_SAMPLES, SAMPLE_RATE_HZ, Samples
from duplex.transport.jitter import JitterBuffer

Row = dict[str, Any]
_PACKET_S = 0.02
_POP_PHASE_S = 0.0137


def _network(name: str, packets: int) -> list[tuple[float, int]]:
    """(arrival_s, index) of every packet that arrives, in order of arrival."""
    dice = random.Random(5)
    late: Callable[[int], float] = lambda index: 0.0  # noqa: E731
    lost: Callable[[int], bool] = lambda index: False  # noqa: E731
    jitter = [dice.uniform(0.0, 0.1) for _ in range(packets)]
    match name:
        case "one packet lost":
            lost = lambda index: index == 150  # noqa: E731
        case "5 packets lost":
            lost = lambda index: 150 <= index < 155  # noqa: E731
        case "2 % lost":
            dropped = {index for index in range(packets) if dice.random() < 0.02}
            lost = dropped.__contains__
        case "one stall of 100 ms":
            late = lambda index: max(0.0, 0.1 - _PACKET_S * (index - 150)) if index >= 150 else 0.0  # noqa: E731
        case "jitter 0 to 100 ms":
            late = jitter.__getitem__
        case "a jittery minute's end":
            late = lambda index: jitter[index] if index < packets // 2 else 0.0  # noqa: E731
    arrivals = [(index * _PACKET_S + 0.03 + late(index), index) for index in range(packets) if not lost(index)]
    return sorted(arrivals)


NETWORKS = (
    "clean",
    "one packet lost",
    "5 packets lost",
    "2 % lost",
    "one stall of 100 ms",
    "jitter 0 to 100 ms",
    "a jittery minute's end",
)


def voice(seconds: float) -> Samples:
    """Vowel-like sound in syllables, with pauses: what time can be taken out of."""
    t = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (130 * t + 1.5 * np.sin(2 * np.pi * 1.3 * t))
    sound = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * sound * np.clip(np.sin(2 * np.pi * 0.7 * t) + 0.3, 0, 1)).astype(np.float32)


def ours(arrivals: list[tuple[float, int]], packets: int, sound: Samples) -> tuple[list[float], Row]:
    """Delay of each pop in ms, and what became of the packets."""

    def decode(payload: bytes) -> Samples:
        start = struct.unpack("<q", payload)[0] * PACKET_SAMPLES
        return sound[start : start + PACKET_SAMPLES]

    buffer, delays, queue = JitterBuffer(decode), [], deque(arrivals)
    for tick in range(packets):
        now_s = tick * _PACKET_S + _POP_PHASE_S
        while queue and queue[0][0] <= now_s:
            arrival_s, index = queue.popleft()
            buffer.push(index & 0xFFFF, index * 960, struct.pack("<q", index), arrival_s)
        buffer.pop(now_s)
        if buffer.started and now_s > 1.0:
            delays.append(buffer.delay_ms)
    return delays, {"late": buffer.stats.late, "filled": buffer.stats.concealed}


def aiortcs(arrivals: list[tuple[float, int]], packets: int) -> tuple[list[float], Row]:
    """The same for ``RTCRtpReceiver``'s way: its jitter buffer, its queue, one frame read per tick."""
    from aiortc.jitterbuffer import JitterBuffer as AiortcBuffer

    buffer, decoded, delays, queue = AiortcBuffer(capacity=16, prefetch=4), deque[int](), [], deque(arrivals)
    empty, played, last = 0, 0, 0
    for tick in range(packets):
        now_s = tick * _PACKET_S + _POP_PHASE_S
        while queue and queue[0][0] <= now_s:
            _, index = queue.popleft()
            packet: Any = SimpleNamespace(sequence_number=index & 0xFFFF, timestamp=index, _data=b"")
            _, frame = buffer.add(packet)
            if frame is not None:
                decoded.append(frame.timestamp)
        if decoded:
            last = index = decoded.popleft()
            played += 1
            if now_s > 1.0:
                delays.append((now_s - index * _PACKET_S - 0.03) * 1000.0)
        elif played:
            empty += 1
    due = sum(index <= last for _, index in arrivals)
    return delays, {"late": due - played, "filled": empty}


def delay_table(seconds: float) -> list[Row]:
    packets = round(seconds / _PACKET_S)
    sound = voice(seconds + 1)
    rows = []
    for name in NETWORKS:
        arrivals = _network(name, packets)
        for who, (delays, fate) in (("ours", ours(arrivals, packets, sound)), ("aiortc", aiortcs(arrivals, packets))):
            p50, p95 = np.percentile(delays, [50, 95])
            rows.append(
                {"network": name, "buffer": who, "p50_ms": p50, "p95_ms": p95, "max_ms": max(delays)}
                | {"end_ms": delays[-1], **fate}
            )
    return rows


def _median_ms(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000.0)
    return statistics.median(times)


def cpu_table(runs: int) -> list[Row]:
    import av
    from aiortc.codecs.vpx import Vp8Encoder

    from duplex.transport.camera import KeyFrames, PictureDecoder
    from duplex.transport.rtp_audio import OpusDecoder, OpusEncoder

    sound = voice(4.0).reshape(-1, PACKET_SAMPLES)
    encode, decode = OpusEncoder(), OpusDecoder()
    payloads = [encode(packet) for packet in sound]
    count = iter(range(10**9))
    buffer = JitterBuffer(lambda payload: sound[payload[0] % len(sound)])

    def through_the_buffer() -> None:
        index = next(count)
        buffer.push(index & 0xFFFF, index * 960 & 0xFFFFFFFF, bytes([index & 0x7F]) * 4, index * _PACKET_S)
        buffer.pop(index * _PACKET_S + 0.003)

    encoder, texture = Vp8Encoder(), np.random.default_rng(1).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    pixels = np.kron(texture, np.ones((16, 16, 1), dtype=np.uint8))

    def video(number: int, key: bool) -> bytes:
        frame = av.VideoFrame.from_ndarray(np.roll(pixels, number * 3, axis=1), format="rgb24")
        frame.pts, frame.time_base = number * 6000, Fraction(1, 90_000)
        parts, _ = encoder.encode(frame, force_keyframe=key)
        return b"".join(part[4:] for part in parts)  # descriptors of 4 bytes

    key_frame = video(0, True)
    deltas = iter([video(number, False) for number in range(1, runs + 2)])
    picture, every = PictureDecoder(CameraConfig()), av.CodecContext.create("libvpx", "r")
    every.decode(av.Packet(key_frame))
    assembler = KeyFrames()
    delta_packet = b"\x90\x80\x80\x01" + b"\x01" * 1200
    voices = iter(range(10**9))
    ms: list[Row] = [
        {"step": "Opus, one packet in (decode, 48 to 24 kHz)", "per_s": 50}
        | {"ms": _median_ms(lambda: decode(payloads[next(voices) % len(payloads)]), runs)},
        {"step": "Opus, one packet out", "per_s": 50}
        | {"ms": _median_ms(lambda: encode(sound[next(voices) % len(sound)]), runs)},
        {"step": "jitter buffer, push and pop", "per_s": 50, "ms": _median_ms(through_the_buffer, runs)},
        {"step": "camera, a delta packet thrown away", "per_s": 60}
        | {"ms": _median_ms(lambda: assembler.push(next(voices) & 0xFFFF, 1, False, delta_packet), runs)},
        {"step": "camera, a key frame to JPEG (640 x 480)", "per_s": 2}
        | {"ms": _median_ms(lambda: picture(key_frame), runs)},
        {"step": "(decoding every frame instead, 15 a second)", "per_s": 15}
        | {"ms": _median_ms(lambda: every.decode(av.Packet(next(deltas))), runs)},
    ]
    for row in ms:
        row["core_percent"] = row["ms"] * row["per_s"] / 10.0
    return ms


def _print(rows: list[Row]) -> None:
    columns = list(rows[0])
    text = [[f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *text]) for i in range(len(columns))]
    for line in [columns, *text]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="duplex bench jitter", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each simulated call (default 60)")
    parser.add_argument("--runs", type=int, default=200, help="repetitions of each CPU measurement (default 200)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args(argv)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"Playout delay over {options.seconds:g} s, simulated\n")
    delays = delay_table(options.seconds)
    _print(delays)
    print(f"CPU, median of {options.runs} ({machine})\n")
    cpu = cpu_table(options.runs)
    _print(cpu)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "delay": delays, "cpu": cpu}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
