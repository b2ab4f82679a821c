"""A run of ``duplex bench load`` as lines and a table, from its plain values, so from its JSON too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def row_of(row: Mapping[str, Any]) -> str:
    """One load in a line, as soon as it is over."""
    colour, verdict = ("red", row["why"]) if row["why"] else ("green", "held")
    return (
        f"[dim]{row['phase']}, {'+'.join(row['doors'])}, {row['offered']} offered:[/dim] "
        f"[{colour}]{verdict}[/{colour}] [dim]{_waits(row)}{_cpu(row)}[/dim]"
    )


def _waits(row: Mapping[str, Any]) -> str:
    waits = row["waits"]
    if waits is None:
        return f"{row['turns']} turns"
    return f"{row['turns']} turns, voice-to-voice p50 {waits['p50']:.0f}, p95 {waits['p95']:.0f} ms"


def _cpu(row: Mapping[str, Any]) -> str:
    percent = row["server_percent"]
    return "" if percent is None else f", server {percent:.0f} % of a core"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The table of every load, then the answers."""
    table = Table(title=f"duplex bench load {report['version']}", title_justify="left", title_style="bold")
    for name in ("phase", "door"):
        table.add_column(name)
    for name in (
        "offered",
        "calls",
        "refused",
        "broken",
        "turns",
        "v2v p50/p95",
        "underruns",
        "late",
        "lag p99 ≤ ms",
        "server %",
        "clients %",
        "memory MB",
    ):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in report["loads"]:
        waits = row["waits"]
        table.add_row(
            row["phase"],
            "+".join(row["doors"]),
            str(row["offered"]),
            str(row["calls"]),
            str(row["refused"]),
            str(row["broken"]),
            str(row["turns"]),
            "–" if waits is None else f"{waits['p50']:.0f}/{waits['p95']:.0f}",
            _figure(row["underruns"]),
            str(row["late"]),
            _figure(row["lag_p99_ms"]),
            _figure(row["server_percent"]),
            _figure(row["clients_percent"]),
            _figure(row["memory_mb"]),
            f"[red]{row['why']}[/red]" if row["why"] else "[green]held[/green]",
        )
    console.print(table)
    for line in answers(report):
        console.print(line)
    about = report["machine"]
    console.print(
        f"{about['cpu']}, {about['cores']} cores (clients and server share them), load {about['load_average'][0]:g} "
        f"before; Python {about['python']}, {about['system']}. Milliseconds; CPU in percent of one core.",
        style="dim",
    )


def answers(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each question that was asked."""
    lines: list[str] = []
    for phase in ("transport", "cascade"):
        for held in report.get(phase, ()):
            cost = held["cost"]
            each = "" if cost is None else f", {cost[0]:.2f} % of a core each"
            if cost is not None and cost[1] is not None:
                each += f" ({cost[1]['low']:.2f} to {cost[1]['high']:.2f})"
            if phase == "transport" and all(load["lag_p99_ms"] is None for load in held["loads"]):
                each += " (the server tells no loop lag, so that was not judged)"
            why = f"; more were too many: {held['why_not_more']}" if held["why_not_more"] else "; no more were tried"
            lines.append(f"{phase}, {held['door']}: {held['sessions']} sessions held{each}{why}")
    if over := report.get("overload"):
        rise = over["rise"]
        risen = "nothing to compare" if rise is None else f"p95 of those inside {100 * rise:+.0f} %"
        more = over["overloaded"]
        lines.append(
            f"overload: {more['offered']} offered to a server that takes {over['usual']['offered']}: "
            f"{more['refused']} refusals, {risen}: {_verdict(over['passed'])}"
        )
    if long := report.get("mixed"):
        aged = long["ageing"]
        growth, noise, drift = aged["growth_mb_per_hour"], aged["noise_mb_per_hour"], aged["p95_drift"]
        grown = "too short to say" if growth is None else f"{growth:+.1f} MB an hour (chance: up to {noise:.1f})"
        drifted = "too few turns to say" if drift is None else f"{100 * drift:+.0f} %"
        lines.append(
            f"mixed: {aged['minutes']:.0f} min, {long['summary']['calls']} calls, {long['summary']['turns']} turns; "
            f"memory {grown}; p95 drift {drifted}: {_verdict(long['passed'])}"
        )
    return lines


def _verdict(passed: bool | None) -> str:
    return {None: "not judged", True: "[green]pass[/green]", False: "[red]miss[/red]"}[passed]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
