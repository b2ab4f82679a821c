"""A finding of ``duplex doctor``, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mend``: the command, or the sentence, that changes a ``warn`` or ``fail``."""

    section: str
    name: str
    state: State
    text: str
    mend: str = ""


_SIGNS: dict[State, tuple[str, str]] = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def print_finding(console: Console, finding: Finding, *, heading: bool) -> None:
    if heading:
        console.print(Text(f"\n{finding.section.capitalize()}", style="bold"))
    sign, style = _SIGNS[finding.state]
    line = Text("  ")
    line.append(sign, style=style)
    line.append(f" {finding.name:<18} {finding.text}")
    if finding.mend:
        line.append(f"\n    {'':<18} → {finding.mend}", style=style)
    console.print(line, soft_wrap=True)
