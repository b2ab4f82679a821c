"""What the scheduler counts, in Prometheus' terms, on the registry that ``/metrics`` shows."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TICK_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.16, 0.32)
_OVERHEAD_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)


class SchedulerMetrics:
    """Give it ``Metrics().registry``. Every name begins with ``duplex_scheduler_``."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = self.registry = CollectorRegistry() if registry is None else registry
        name = "duplex_scheduler_{}".format
        self.tick_s = Histogram(name("tick_seconds"), "One tick, whole", buckets=_TICK_BUCKETS_S, registry=r)
        self.overhead_s = Histogram(
            name("overhead_seconds"), "One tick less the engine's part", buckets=_OVERHEAD_BUCKETS_S, registry=r
        )
        self.batch_frames = Histogram(
            name("batch_frames"), "Calls stepped in a tick", buckets=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self.batch_size = Gauge(name("batch_size"), "Batch size of the last tick", registry=r)
        self.utilisation = Gauge(name("utilisation_ratio"), "Share of the last 5 s in which a tick ran", registry=r)
        self.missed = Counter(name("deadline_misses"), "Ticks with a result past its deadline", registry=r)
        self.late = Counter(name("late_results"), "Results handed out past their deadline", registry=r)
        self.dropped = Counter(
            name("frames_dropped"), "Frames taken and never stepped, by reason", ["reason"], registry=r
        )
        self.refused_frames = Counter(name("frames_refused"), "Frames not taken: too many waited", registry=r)
        self.refused = Counter(name("calls_refused"), "Calls not taken, by reason", ["reason"], registry=r)
        self.faults = Counter(name("faults"), "Failures of the engine, by where", ["where"], registry=r)
        self.restarts = Counter(name("restarts"), "Times the engine was started again", registry=r)
        self.prefill_s = Histogram(
            name("prefill_seconds"),
            "From asking for a slot to its prompt being read",
            buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
            registry=r,
        )
        self.slots_used = Gauge(name("slots_used"), "Slots of live calls", registry=r)
        self.slots_max = Gauge(name("slots_max"), "Slots there are", registry=r)
        self.kv_bytes = Gauge(name("kv_bytes"), "Keys and values in memory", registry=r)
        self.weights_bytes = Gauge(name("weights_bytes"), "Weights in memory", registry=r)
        self.free_bytes = Gauge(name("free_bytes"), "What the device could still give", registry=r)
        self.shed_level = Gauge(
            name("shed_level"), "What is given up under overload; 0: nothing, 1: codebooks, 2: new calls", registry=r
        )
        self.codebooks = Gauge(name("codebooks"), "Codebooks of a frame that the device has time for", registry=r)
        self.fewer_codebooks = Counter(
            name("frames_with_fewer_codebooks"), "Frames decoded with fewer, by what limited them", ["by"], registry=r
        )
