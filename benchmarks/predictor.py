"""Which evidence is worth what: the turn-state predictor on recordings, with parts of it switched off.

    duplex bench predictor [--split tuning|reporting] [--learn] [--json FILE]
    duplex bench predictor --line telephone [--levels=-30,-40] [--json FILE] [--plot PNG]

No call and no server: the real models hear each recording once, and the predictor is run on what they said with
their usual delays (:mod:`duplex.benchmarks.predictor_replay`). ``takeover`` is the share of mid-turn pauses that
were taken for the end of a turn, ``delay`` the silence before an end was believed. (A call adds the time to make
the reply, and is spared every takeover whose reply would not have been ready in time: ``duplex bench turns``.)

With ``--learn`` a logistic head is fitted to the tuning set and compared with the hand-set weights on the other.
With ``--line telephone`` all evidence is on, and the same recordings are compared wide and over a telephone line
(:mod:`duplex.benchmarks.predictor_lines`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from duplex.benchmarks.lines_plot import save_dots
from duplex.benchmarks.narrowband import LINES, WIDE, Line, line_named, parsed_levels
from duplex.benchmarks.predictor_head import fit, inputs, rank_quality
from duplex.benchmarks.predictor_lines import Figure, measure_line, plotted, print_lines, to_json, turns_of
from duplex.benchmarks.predictor_replay import Heard, Models, decide, hear, score
from duplex.benchmarks.server_process import machine
from duplex.benchmarks.turns.material import Material
from duplex.errors import DuplexError
from duplex.thinker_talker.evidence import AT_PAUSE, completeness
from duplex.thinker_talker.turn_options import TurnOptions

VARIANTS: Mapping[str, TurnOptions] = {
    "everything": TurnOptions(),
    "without prosody": TurnOptions(without=("prosody",)),
    "without words": TurnOptions(without=("words",)),
    "without expectation": TurnOptions(without=("expectation",)),
    "without intonation": TurnOptions(without=("intonation",)),
    "without floor": TurnOptions(without=("floor",)),
    "a timer of 0.6 s": TurnOptions(without=tuple(AT_PAUSE)),
    "a timer of 1 s": TurnOptions(without=tuple(AT_PAUSE), silence_unknown_s=1.0),
    "preset eager": TurnOptions(preset="eager"),
    "preset patient": TurnOptions(preset="patient"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="duplex bench predictor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--split", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--trials", type=int, default=40, help="pauses of each made kind (40)")
    parser.add_argument("--learn", action="store_true", help="fit a head to the tuning set and compare")
    parser.add_argument("--line", choices=tuple(LINES), default=WIDE.name, help="beside a wide one (wide alone)")
    parser.add_argument("--levels", metavar="DBFS,…", help="levels of speech on the line (the line's own: -30)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --line: the two beside each other")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    models: Models | None = None
    try:
        lines = _lines(args.line, args.levels)
        models = Models()
        if len(lines) > 1:
            return _compare(lines, args, models, console)
        heard = listen(args.split, args.trials, models, console)
        report: dict[str, Any] = {"machine": machine(), "split": args.split, "variants": _variants(heard, console)}
        if args.learn:
            learned_on = listen("tuning", args.trials, models, console)
            report["head"] = _learn(learned_on, heard, console)
    except DuplexError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    finally:
        if models is not None:
            models.close()
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def listen(split: str, trials: int, models: Models, console: Console) -> dict[str, list[Heard]]:
    """Kind of turn → recordings as the models hear them."""
    material = Material.load(split=split, note=console.print)  # type: ignore[arg-type]
    listed = list(turns_of(material, trials))
    heard: dict[str, list[Heard]] = {}
    for kind, spoken in track(listed, f"Listening to the {split} set …", console=console, transient=True):
        heard.setdefault(kind, []).append(hear(spoken, models))
    return heard


def _lines(name: str, levels: str | None) -> list[Line]:
    """The wide line, and the other one at each level."""
    line = line_named(name)
    if line is WIDE:
        return [WIDE]
    if levels is None:
        return [WIDE, line]
    return [WIDE, *(line.with_speech_at(level) for level in parsed_levels(levels))]


def _compare(lines: Sequence[Line], args: argparse.Namespace, models: Models, console: Console) -> int:
    material = Material.load(split=args.split, note=console.print)
    found: dict[str, list[Figure]] = {}
    for line in lines:
        found[line.label] = measure_line(material, line, args.trials, models, console)
        print_lines(found, args.split, console)  # a look at what there is, since the next line takes minutes
    about = machine()
    if args.json is not None:
        report = {"machine": about, "split": args.split, "trials": args.trials, "lines": to_json(found)}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot is not None:
        subtitle = f"{args.split} set, {args.trials} of each made kind; {about['cpu']}; bars: 95 %"
        save_dots(plotted(found), args.plot, "The turn predictor over a telephone line", subtitle)
    return 0


def _variants(heard: Mapping[str, Sequence[Heard]], console: Console) -> dict[str, Any]:
    table = Table(title="Takeover in a pause, and silence before an end is believed", title_justify="left")
    table.add_column("")
    for kind, recordings in heard.items():
        if recordings[0].spoken.pauses:
            table.add_column(f"{kind}: takeover", justify="right")
    table.add_column("plain: delay p50 / p95, s", justify="right")
    report: dict[str, Any] = {}
    for name, options in track(VARIANTS.items(), "Deciding …", console=console, transient=True):
        outcomes = {kind: [decide(one, options) for one in recordings] for kind, recordings in heard.items()}
        scores = {kind: score(some) for kind, some in outcomes.items()}
        report[name] = {
            kind: {
                "takeover": s.takeover,
                "pauses": s.pauses,
                "ends": len(s.delay_s),
                "p50_s": s.delay(50),
                "p95_s": s.delay(95),
                "missed": s.missed,
            }
            for kind, s in scores.items()
        }
        shares = [f"{100 * s.takeover:.0f} % of {s.pauses}" for s in scores.values() if s.pauses]
        plain = scores["plain"]
        table.add_row(name, *shares, f"{plain.delay(50):.2f} / {plain.delay(95):.2f} ({len(plain.delay_s)})")
    console.print(table)
    return report


def _learn(tuning: Mapping[str, list[Heard]], other: Mapping[str, list[Heard]], console: Console) -> dict[str, Any]:
    """Fits a head on one set; says how both it and the hand-set weights rank the moments of the other."""
    seen = [moment for some in tuning.values() for one in some for moment in decide(one, TurnOptions()).moments]
    new = [moment for some in other.values() for one in some for moment in decide(one, TurnOptions()).moments]
    head = fit([inputs(moment.pause) for moment in seen], [moment.is_end for moment in seen])
    options = TurnOptions()
    hand = [sum(completeness(moment.pause, options).values()) for moment in new]
    learned = [head.logit(inputs(moment.pause)) for moment in new]
    truth = [moment.is_end for moment in new]
    quality = {"hand": rank_quality(hand, truth), "learned": rank_quality(learned, truth)}
    console.print(
        f"Learned on {len(seen)} moments, {sum(m.is_end for m in seen)} of them ends; compared on {len(new)}, "
        f"{sum(truth)} ends. Area under the curve: by hand {quality['hand']:.3f}, learned {quality['learned']:.3f}."
    )
    console.print({name: round(weight, 2) for name, weight in head.weights.items()})
    return {"auc": quality, "weights": head.weights, "moments": len(seen)}


if __name__ == "__main__":
    sys.exit(main())
