"""Writes the parts of docs/ that come from code. `make docs`; a test checks that they are up to date."""

from __future__ import annotations

from pathlib import Path

from duplex.turn import TABLE, Floor, Own, User

_MEANING = {
    Floor.LISTENING: "the floor is the user's, or nobody's",
    Floor.THINKING: "the turn is committed, our first packet is not out",
    Floor.SPEAKING: "our audio is on the wire",
    Floor.HOLDING: "our audio is paused under the user's speech, undecided",
    Floor.YIELDING: "decided: ours is being taken back",
}


def turn_taking() -> str:
    """The turn machine as a diagram and a table, from the table itself."""
    edges: dict[tuple[Floor, Floor, tuple[str, ...]], list[str]] = {}
    for (floor, signal), row in TABLE.items():
        if row.floor is not floor:
            actions = tuple(action.value for action in row.actions)
            edges.setdefault((floor, row.floor, actions), []).append(signal.value)
    lines = ["# Turn-taking", "", "Generated from `duplex/turn.py` by `make docs`. Do not edit.", ""]
    lines += ["```mermaid", "stateDiagram-v2", "    [*] --> listening"]
    for (source, target, actions), signals in edges.items():
        label = ", ".join(signals) + (f" / {', '.join(actions)}" if actions else "")
        lines.append(f"    {source.value} --> {target.value}: {label}")
    lines += ["```", "", "| floor | meaning |", "| --- | --- |"]
    lines += [f"| {floor.value} | {meaning} |" for floor, meaning in _MEANING.items()]
    lines += [
        "",
        "Every pair of floor and signal has a row. A cell reads *next floor: actions*; a dot stays and does",
        "nothing.",
        "",
    ]
    lines.append("| signal | " + " | ".join(floor.value for floor in Floor) + " |")
    lines.append("| --- " * (len(Floor) + 1) + "|")
    for signal in (*User, *Own):
        cells = []
        for floor in Floor:
            row = TABLE[floor, signal]
            actions = ", ".join(action.value for action in row.actions)
            if row.floor is floor:
                cells.append(actions or "·")
            else:
                cells.append(f"**{row.floor.value}**" + (f": {actions}" if actions else ""))
        lines.append(f"| {signal.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


PAGES = {"turn-taking.md": turn_taking}


if __name__ == "__main__":
    for name, render in PAGES.items():
        (Path(__file__).parent / name).write_text(render(), "utf-8")
