"""What a process counts, in Prometheus' terms. One registry per :class:`Metrics`, so tests don't share."""

from __future__ import annotations

import math
import threading
from typing import Protocol, runtime_checkable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from duplex import __version__
from duplex.loop_lag import BUCKETS_S as _LAG_BUCKETS_S

_LATENCY_BUCKETS_S = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.9, 1.2, 1.6, 2.4, 4.0, 8.0)
_STEP_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)


@runtime_checkable
class Counting(Protocol):
    """An agent with figures of its own: of its scheduler, its device."""

    @property
    def registry(self) -> CollectorRegistry | None: ...


class Metrics:
    """Every metric of the runtime. Names end in their unit; labels are few and bounded."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.sessions_live = Gauge("duplex_sessions_live", "Sessions open now", registry=r)
        self.session_places = Gauge(
            "duplex_session_places", "Sessions that may be open at a time; NaN: the agent decides", registry=r
        )
        self.session_places.set(math.nan)
        self.sessions = Counter("duplex_sessions", "Sessions opened", registry=r)
        self.sessions_refused = Counter(
            "duplex_sessions_refused", "Sessions refused, by reason", ["reason"], registry=r
        )
        self.turns = Counter("duplex_turns", "User turns committed", registry=r)
        self.replies = Counter("duplex_replies", "Replies, by how they ended", ["status"], registry=r)
        self.resumes = Counter("duplex_resumes", "Replies resumed after a hold", registry=r)
        self.end_of_turn_s = Histogram(
            "duplex_end_of_turn_seconds",
            "User's last voiced sample to commit",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self.first_packet_s = Histogram(
            "duplex_first_packet_seconds",
            "Turn committed to first non-silent packet on the wire",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self.voice_to_voice_s = Histogram(
            "duplex_voice_to_voice_seconds",
            "User's last voiced sample to first audible packet",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self.barge_in_stop_s = Histogram(
            "duplex_barge_in_stop_seconds",
            "First voiced sample of overlapping speech to our last audible packet",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self.step_s = Histogram("duplex_step_seconds", "One agent step", buckets=_STEP_BUCKETS_S, registry=r)
        self.deadline_misses = Counter("duplex_deadline_misses", "Ticks that ran past their deadline", registry=r)
        self.underruns = Counter(
            "duplex_underruns", "Packets the wire wanted while speaking and did not get", registry=r
        )
        self.queue_drops = Counter("duplex_queue_drops", "Items dropped from a full queue", ["queue"], registry=r)
        self.jitter_depth_s = Gauge("duplex_jitter_depth_seconds", "Jitter buffer depth, latest call", registry=r)
        self.packets_lost = Counter("duplex_packets_lost", "Heard packets that never came", registry=r)
        self.packets_late = Counter("duplex_packets_late", "Heard packets that came too late to be used", registry=r)
        self.lines_lost = Counter("duplex_lines_lost", "Times a far end was out of reach", registry=r)
        self.images = Counter("duplex_images", "Camera frames, by fate", ["fate"], registry=r)
        self.loop_lag_s = Histogram(
            "duplex_loop_lag_seconds", "How late the event loop wakes a sleeper", buckets=_LAG_BUCKETS_S, registry=r
        )
        Gauge("duplex_threads", "Threads of Python's", registry=r).set_function(threading.active_count)
        Info("duplex_build", "What is running", registry=r).info({"version": __version__})
        # CPU seconds, memory, open files and start of the process; the garbage collector's rounds.
        ProcessCollector(registry=r)
        GCCollector(registry=r)

    def include(self, agent: object) -> None:
        """What ``agent`` counts for itself, if it does, belongs to the page from now on."""
        if isinstance(agent, Counting) and agent.registry is not None:
            self.registry.register(agent.registry)  # a registry collects, too

    def exposition(self) -> bytes:
        """The text format Prometheus scrapes."""
        return generate_latest(self.registry)
