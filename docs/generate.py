"""Writes the parts of docs/ that come from code. `make docs`; a test checks that they are up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from duplex.turn import TABLE, WATCHED, Floor, Own, Row, Signal, User

Table = Mapping[tuple[Floor, Signal], Row]

_MEANING = {
    Floor.LISTENING: "the floor is the user's, or nobody's",
    Floor.THINKING: "the turn is committed, our first packet is not out",
    Floor.SPEAKING: "our audio is on the wire",
    Floor.HOLDING: "our audio is paused under the user's speech, undecided",
    Floor.YIELDING: "decided: ours is being taken back",
}


_NATIVE = """## A native agent

A native model hears and speaks all the time and takes the floor by itself. The same machine watches it: nothing is
speculated, held or resumed, speech over it changes nothing at first, and where it is interrupted and speaks on for
`session.yield_limit_s`, the machine yields for it (*hold-expired*). *Holding* is never reached.
"""


def turn_taking() -> str:
    """The turn machine as diagrams and tables, from the tables themselves."""
    lines = ["# Turn-taking", "", "Generated from `duplex/turn.py` by `make docs`. Do not edit.", ""]
    lines += _diagram(TABLE, tuple(Floor))
    lines += ["", "| floor | meaning |", "| --- | --- |"]
    lines += [f"| {floor.value} | {meaning} |" for floor, meaning in _MEANING.items()]
    lines += [
        "",
        "Every pair of floor and signal has a row. A cell reads *next floor: actions*; a dot stays and does",
        "nothing.",
        "",
    ]
    lines += _table(TABLE, tuple(Floor))
    watched = tuple(floor for floor in Floor if floor is not Floor.HOLDING)
    lines += ["", *_NATIVE.splitlines(), "", *_diagram(WATCHED, watched), "", *_table(WATCHED, watched)]
    return "\n".join(lines) + "\n"


def _diagram(table: Table, floors: tuple[Floor, ...]) -> list[str]:
    edges: dict[tuple[Floor, Floor, tuple[str, ...]], list[str]] = {}
    for (floor, signal), row in table.items():
        if row.floor is not floor and floor in floors:
            actions = tuple(action.value for action in row.actions)
            edges.setdefault((floor, row.floor, actions), []).append(signal.value)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> listening"]
    for (source, target, actions), signals in edges.items():
        label = ", ".join(signals) + (f" / {', '.join(actions)}" if actions else "")
        lines.append(f"    {source.value} --> {target.value}: {label}")
    return [*lines, "```"]


def _table(table: Table, floors: tuple[Floor, ...]) -> list[str]:
    lines = ["| signal | " + " | ".join(floor.value for floor in floors) + " |"]
    lines.append("| --- " * (len(floors) + 1) + "|")
    for signal in (*User, *Own):
        cells = []
        for floor in floors:
            row = table[floor, signal]
            actions = ", ".join(action.value for action in row.actions)
            if row.floor is floor:
                cells.append(actions or "·")
            else:
                cells.append(f"**{row.floor.value}**" + (f": {actions}" if actions else ""))
        lines.append(f"| {signal.value} | " + " | ".join(cells) + " |")
    return lines


PAGES = {"turn-taking.md": turn_taking}


if __name__ == "__main__":
    for name, render in PAGES.items():
        (Path(__file__).parent / name).write_text(render(), "utf-8")
