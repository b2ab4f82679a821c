"""Writes the parts of docs/ that come from code. `make docs`; a test checks that they are up to date."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


_TESTS = Path(__file__).parent.parent / "tests"
_REALTIME_TESTS = "test_realtime_conformance.py"

_REALTIME = """# The Realtime API, row by row

Generated from `tests/realtime_catalogue.py` and `tests/test_realtime_conformance.py` by `make docs`. Do not edit.
[realtime.md](realtime.md) says what the words mean here.

The rows are those of the official `openai` Python package's models, which a test checks, so that a new event or field
shows up as a failing test. *Refused* is an `error` event that names the field and says what works instead; nothing else
of such an event is carried out. Each test runs a whole conversation, holds every server event against the official
models, and fails if the rows it claims were not sent or received. Tests are in `tests/test_realtime_conformance.py`.
"""


def realtime_conformance() -> str:
    """Which events and fields of the Realtime API are supported, and which tests show it."""
    catalogue = runpy.run_path(str(_TESTS / "realtime_catalogue.py"))
    shown = _covered(ast.parse((_TESTS / _REALTIME_TESTS).read_text("utf-8")))
    lines = [*_REALTIME.splitlines()]
    for title, name, prefix in (
        ("Client events", "CLIENT_EVENTS", ""),
        ("Server events", "SERVER_EVENTS", ""),
        ("Session fields", "SESSION_FIELDS", "@session."),
        ("Fields of `response.create`", "RESPONSE_FIELDS", "@response."),
    ):
        lines += ["", f"## {title}", "", "| | supported | | tests |", "| --- | --- | --- | --- |"]
        for row, (support, note) in catalogue[name].items():
            tests = "<br>".join(shown.get(prefix + row, ()))
            lines.append(f"| `{row}` | {support} | {note} | {tests} |")
    lines += ["", "## Extensions", "", "| | |", "| --- | --- |"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in catalogue["EXTENSIONS"].items()]
    return "\n".join(lines) + "\n"


def _covered(module: ast.Module) -> dict[str, list[str]]:
    """Row to the tests that say they cover it, in words."""
    shown: dict[str, list[str]] = {}
    for test in module.body:
        for decorator in getattr(test, "decorator_list", ()):
            call: Any = decorator
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "covers":
                for row in call.args:
                    words = getattr(test, "name", "").removeprefix("test_").replace("_", " ")
                    shown.setdefault(ast.literal_eval(row), []).append(words)
    return shown


PAGES = {"turn-taking.md": turn_taking, "realtime-conformance.md": realtime_conformance}


if __name__ == "__main__":
    for name, render in PAGES.items():
        (Path(__file__).parent / name).write_text(render(), "utf-8")
