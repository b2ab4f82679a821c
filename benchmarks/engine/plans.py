"""What is measured of which configuration, in an order that fits the device's memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from duplex.benchmarks.engine.limits import TickBytes
from duplex.benchmarks.engine.measures import DEADLINE_S, IN_TURNS, Row, Spread
from duplex.benchmarks.engine.runs import EngineRun, Paced, PacedRun, Steps, StockRun, no_collection
from duplex.benchmarks.engine.stock import StockLoop
from duplex.codec import SlotCodec
from duplex.codecs.mimi import MimiCodec
from duplex.codecs.mimi import load as load_mimi
from duplex.errors import ConfigError, DuplexError
from duplex.thinker_talker.native.device.device_engine import DeviceEngine
from duplex.thinker_talker.native.device.engine_loading import Model, engine_of, load_codec, load_model
from duplex.thinker_talker.native.device.engine_options import EngineOptions
from duplex.thinker_talker.native.device.memory import tensor_bytes

Say = Callable[[str], None]
_ROUNDS = 5  # our loop and the package's take turns at one session, so that both see the same machine


@dataclass(frozen=True, slots=True)
class Plan:
    """``sessions`` ascending; ``precisions`` as the engine's option takes them; ``steps`` of each measurement;
    ``paced_frames``: 0 leaves the scheduler out. Nothing begins after ``until_s`` (``time.monotonic``)."""

    options: EngineOptions
    precisions: Sequence[str]
    sessions: Sequence[int]
    stock_sessions: Sequence[int]
    steps: int
    paced_frames: int
    full_context: bool
    until_s: float


def measure(plan: Plan, bandwidth: float, say: Say) -> list[Row]:
    """Rows in the order of measurement."""
    rows: list[Row] = []
    for i, precision in enumerate(plan.precisions):
        options = plan.options.model_copy(update={"precision": precision, "max_slots": max(plan.sessions)})
        say(f"{options.weights or options.preset}, {precision}: loading …")
        model = load_model(options)
        codec = load_codec(options, model, load_mimi)
        if i == 0:
            rows += _side_by_side(plan, options, model, codec, precision, say)
        rows += _ours(plan, options, model, codec, precision, bandwidth, say)
        del model, codec
        _give_memory_back()
    return rows


def _side_by_side(
    plan: Plan, options: EngineOptions, model: Model, codec: SlotCodec, precision: str, say: Say
) -> list[Row]:
    """The package's loop, at one session in turns with ours, and batched."""
    if not plan.stock_sessions:
        return []
    if not isinstance(codec, MimiCodec) or "int8" in (model.precision.temporal, model.precision.depth):
        return [Row("stock", precision, 1, note="the package's loop runs on float32 or bfloat16 weights")]
    codec.model.set_num_codebooks(model.config.codebooks)
    rows: list[Row] = []
    for sessions in plan.stock_sessions:
        if time.monotonic() > plan.until_s:
            rows.append(Row("stock", precision, sessions, note="left out: the time was up"))
            continue
        say(f"the package's loop, {sessions} session{'s'[: sessions > 1]} …")
        stock: StockRun | None = None
        try:
            loop = StockLoop(codec.model, model.lm, sessions, model.device)
            stock = StockRun(loop, sessions, codec.info.frame_samples)
            with no_collection():
                if sessions == 1:
                    theirs, ours = _in_turns(plan, options, model, codec, stock)
                    rows.append(_row("duplex", precision, 1, ours, note=IN_TURNS))
                else:
                    theirs = stock.step(plan.steps)
            rows.append(_row("stock", precision, sessions, theirs))
        except torch.OutOfMemoryError:
            rows.append(Row("stock", precision, sessions, note="does not fit the memory"))
        finally:
            if stock is not None:
                stock.close()
            del stock
            _give_memory_back()
    return rows


def _in_turns(
    plan: Plan, options: EngineOptions, model: Model, codec: SlotCodec, stock: StockRun
) -> tuple[Steps, Steps]:
    engine = engine_of(options.model_copy(update={"max_slots": 1}), model, codec)
    engine.start()
    run = EngineRun(engine, 1, full_context=plan.full_context)
    theirs, ours = Steps(), Steps()
    for _ in range(_ROUNDS):
        for steps, runner in ((theirs, stock), (ours, run)):
            found = runner.step(max(1, plan.steps // _ROUNDS))
            steps.took_s += found.took_s
            steps.parts_s += found.parts_s
    run.close()
    engine.close()
    return theirs, ours


def _ours(
    plan: Plan, options: EngineOptions, model: Model, codec: SlotCodec, precision: str, bandwidth: float, say: Say
) -> list[Row]:
    sizes = list(plan.sessions)
    engine: DeviceEngine | None = None
    rows: list[Row] = []
    while sizes and engine is None:
        say(f"{precision}: {sizes[-1]} slots, warming up and capturing …")
        engine, problem = _started(options.model_copy(update={"max_slots": sizes[-1]}), model, codec)
        _give_memory_back()
        if engine is None:
            rows.insert(0, Row("duplex", precision, sizes.pop(), note=problem))
    if engine is None:
        return rows
    read = model.read_bytes + _read_by(codec)
    per_session = tensor_bytes(engine.states[0].tensors().values()) // engine.max_slots
    tick = TickBytes(read, per_session)
    paced = PacedRun(engine) if plan.paced_frames else None
    measured: list[Row] = []
    for sessions in sizes:
        if time.monotonic() > plan.until_s:
            measured.append(Row("duplex", precision, sessions, note="left out: the time was up"))
            continue
        say(f"{precision}: {sessions} session{'s'[: sessions > 1]} …")
        measured.append(_measured(plan, engine, paced, sessions, precision, tick, bandwidth))
    if paced is not None:
        paced.close()
    engine.close()
    return measured + rows


def _started(options: EngineOptions, model: Model, codec: SlotCodec) -> tuple[DeviceEngine | None, str]:
    """Or why not. The error is gone when this returns, and with it what it kept in memory."""
    engine = engine_of(options, model, codec)
    try:
        engine.start()
    except ConfigError as error:
        engine.close()
        return None, str(error).partition(":")[0]
    return engine, ""


def _measured(
    plan: Plan, engine: DeviceEngine, paced: PacedRun | None, sessions: int, precision: str, tick: TickBytes,
    bandwidth: float,
) -> Row:  # fmt: skip
    memory = engine.memory()
    cuda = engine.device.type == "cuda"
    used = torch.cuda.max_memory_allocated(engine.device) if cuda else memory.weights + memory.kv
    with no_collection():
        run = EngineRun(engine, sessions, full_context=plan.full_context)
        steps = run.step(plan.steps)
        run.close()
    row = _row("duplex", precision, sessions, steps)
    row = replace(
        row, memory_bytes=used, kv_bytes=sessions * memory.per_slot, limit_s=tick.limit_s(sessions, bandwidth)
    )
    if paced is None or row.step is None or row.step.p50 > DEADLINE_S:
        return row
    try:
        found: Paced = paced.run(sessions, plan.paced_frames)
    except DuplexError as error:
        return replace(row, note=str(error))
    firsts = sorted(found.first_packet_s)
    return replace(
        row,
        overhead=found.overhead,
        paced=found.tick,
        paced_missed=found.missed,
        first_packet_s=firsts[len(firsts) // 2] if firsts else None,
    )


def _row(who: str, precision: str, sessions: int, steps: Steps, note: str = "") -> Row:
    late = sum(took_s > DEADLINE_S for took_s in steps.took_s)
    return Row(
        who,
        precision,
        sessions,
        Spread.of(steps.took_s),
        steps.medians(),
        late / len(steps.took_s),
        note=note,
    )


def _read_by(codec: SlotCodec) -> int:
    """Bytes of weights a tick reads: all but the codebooks' entries, of which it searches all and reads a few."""
    return int(getattr(codec, "weight_bytes", 0))


def _give_memory_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
