"""The engine benchmark's table, its verdicts, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from duplex.benchmarks.engine.measures import DEADLINE_S, IN_TURNS, Row, Spread, one_after_the_other, sessions_held
from duplex.thinker_talker.native.device.memory import in_words

_PARTS = ("copy", "encode", "temporal", "depth", "decode")


def print_table(rows: Sequence[Row], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "weights, KV"):
        table.add_column(name)
    heads = ("calls", "p50", "p95", "p99", "max", "late", "encode", "temporal", "depth", "decode", "copy", "overhead",
             "paced p99", "paced late", "first packet", "memory", "limit", "× limit", "n")  # fmt: skip
    for name in heads:
        table.add_column(name, justify="right")
    for row in rows:
        if row.step is None:
            table.add_row(row.who, row.precision, str(row.sessions), row.note, *[""] * (len(heads) - 2), style="dim")
            continue
        parts = {name: row.parts_s.get(name) for name in _PARTS}
        if row.who == "stock":  # the package's loop does both halves of a step in one call
            parts["temporal"] = row.parts_s.get("model")
        table.add_row(
            row.who,
            row.precision,
            str(row.sessions),
            *(_ms(value) for value in (row.step.p50, row.step.p95, row.step.p99, row.step.max)),
            _percent(row.missed),
            *(_ms(parts[name]) for name in ("encode", "temporal", "depth", "decode", "copy")),
            _ms(row.overhead.p95 if row.overhead else None, 2),
            _ms(row.paced.p99 if row.paced else None),
            _percent(row.paced_missed),
            _ms(row.first_packet_s, 0),
            "" if row.memory_bytes is None else in_words(row.memory_bytes),
            _ms(row.limit_s),
            "" if row.of_limit is None else f"{row.of_limit:.1f}",
            str(row.step.n),
            style=None if row.held else "yellow",
        )
    console.print(table)
    console.print(
        "Times in ms; late: share over 80 ms; overhead: p95 of a tick less the model's parts, through the scheduler "
        "with a frame each 80 ms; first packet: median, connect to first sound, the first frame's 80 ms included; "
        "limit: weights, keys and values read once at the measured bandwidth. Stock: temporal and depth are one."
    )
    for row in rows:
        if row.step is not None and row.note:
            console.print(f"{row.who}, {row.precision}, {row.sessions}: {row.note}")


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the rows come to, a sentence each."""
    told = []
    turns = next((row for row in rows if row.who == "duplex" and row.note == IN_TURNS), None)
    ours = {(row.precision, row.sessions): row for row in rows if row.who == "duplex" and row.step and row != turns}
    stock = {row.sessions: row for row in rows if row.who == "stock" and row.step is not None}
    if turns is not None and turns.step is not None and 1 in stock and (single := stock[1].step) is not None:
        told.append(
            f"One session, in turns: p50 {_ms(turns.step.p50)} ms, the package's loop {_ms(single.p50)} ms: "
            f"{single.p50 / turns.step.p50:.2f} times its throughput."
        )
        batched = sessions_held(rows, "stock", stock[1].precision)
        told.append(
            f"Sessions at the deadline (p99 < {DEADLINE_S * 1e3:.0f} ms), the package: 1 as its server runs it, "
            f"{one_after_the_other(single)} if its loop were run for each in turn, {batched} batched "
            "(of those measured)."
        )
    for precision in dict.fromkeys(precision for precision, _ in ours):
        held = sessions_held(rows, "duplex", precision)
        told.append(f"Sessions at the deadline, duplex, {precision}: {held} (of those measured).")
    eight = [row for (_, sessions), row in ours.items() if sessions == 8 and row.overhead is not None]
    for row in eight:
        assert row.overhead is not None
        told.append(f"Overhead with 8 sessions, {row.precision}: p95 {_ms(row.overhead.p95, 2)} ms.")
    return told


def as_json(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    return {**about, "deadline_s": DEADLINE_S, "rows": [row.as_dict() for row in rows], "verdicts": verdicts(rows)}


def spread_line(name: str, spread: Spread) -> str:
    return f"{name}: p50 {_ms(spread.p50)}, p95 {_ms(spread.p95)}, p99 {_ms(spread.p99)}, max {_ms(spread.max)} ms"


def _ms(seconds: float | None, digits: int = 1) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
