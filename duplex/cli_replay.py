"""``duplex replay``: run a recorded session again, and say where it decides otherwise.

With the settings of the recording every decision should come again, and the exit status says whether it did.
With ``--set`` it shows what another setting would have changed on this very call.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duplex.errors import DuplexError, RecordingError

if TYPE_CHECKING:
    from rich.console import Console

    from duplex.agent import Agent
    from duplex.config import Config
    from duplex.recording import RecordedEvent, Recording
    from duplex.records.archive import Archive, Manifest
    from duplex.records.replay import Replayed

_SHOWN = 5  # differences in the terminal; all of those kept go into replay.json
_OURS = "session."  # the settings that a replay of recorded models can be run with


def add_parser(subparsers: Any) -> None:
    """Add ``replay`` to the ``duplex`` command (``subparsers``: what ``ArgumentParser.add_subparsers`` returns)."""
    parser = subparsers.add_parser(
        "replay",
        help="run a recorded session again and compare",
        description="Runs a session that duplex-serve --record wrote again, on virtual time. "
        "Exit status 0: every decision was the same; 1: one was not, or it could not be replayed.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="where the recordings are, or one of them")
    parser.add_argument("session", nargs="?", metavar="SESSION", help="its id or folder, or how it begins (the newest)")
    parser.add_argument(
        "--out", type=Path, metavar="OUT", help="write call.flac, events.jsonl, timeline.png and replay.json there"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting than then, e.g. session.commit_wait_s=0.2",
    )
    parser.add_argument(
        "--agent",
        choices=("auto", "recorded", "anew"),
        default="auto",
        help="what answers: what the models said then, or a fresh agent that hears the recorded microphone "
        "(auto: anew if it gives the same for the same)",
    )
    parser.add_argument("--list", action="store_true", help="list the recordings in DIR instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every decision was the same, 1 if not."""
    from rich.console import Console

    from duplex.records.archive import Archive, find
    from duplex.records.replay import recorded_config, replay

    console = Console(highlight=False, soft_wrap=True)
    if args.list:
        return _list(args.dir, console)
    archive = Archive(find(args.dir, args.session))
    config = recorded_config(archive, args.set)
    agent = _agent(archive, config, args.agent)
    if agent is None and (idle := [text for text in args.set if not text.strip().startswith(_OURS)]):
        console.print(f"[yellow]No effect on what the models said then: {', '.join(idle)}.[/yellow]")
    with console.status(f"Replaying {archive.directory.name} …", spinner="dots"):
        replayed = replay(archive, session=config.session, agent=agent)
    _report(archive, replayed, console)
    if args.out is not None:
        _write(archive, replayed, args.out, args.set)
        console.print(f"Wrote {args.out}/call.flac, events.jsonl, timeline.png and replay.json")
    return 0 if replayed.same else 1


def _agent(archive: Archive, config: Config, wanted: str) -> Agent | None:
    """A fresh agent, or None for the recorded outputs of the models."""
    from duplex.registry import create_agent

    facts = archive.manifest.agent
    repeatable = bool(facts.get("deterministic"))
    if wanted == "recorded" or (wanted == "auto" and not (repeatable and archive.manifest.keeps_sound)):
        return None
    if not repeatable and not facts.get("native"):
        raise RecordingError(
            f"The agent {facts.get('name')!r} does not give the same output twice, so running it anew would compare "
            "nothing. Use --agent recorded: what its models said then is in the recording."
        )
    if "agent" not in archive.manifest.config:
        raise RecordingError("The recording does not say how its agent was configured. Use --agent recorded.")
    return create_agent(config.agent.name, config.agent.options)


def _list(place: Path, console: Console) -> int:
    from rich.table import Table

    from duplex.records.archive import Archive, sessions
    from duplex.records.retention import size_bytes

    table = Table(box=None, pad_edge=False)
    for column in ("recording", "agent", "seconds", "MB", "state"):
        table.add_column(column, justify="right" if column in ("seconds", "MB") else "left")
    found = sessions(place)
    for path in found:
        try:
            manifest: Manifest = Archive(path, check=False).manifest
            state = manifest.state if manifest.redact == "none" else f"{manifest.state}, redacted: {manifest.redact}"
            name = str(manifest.agent.get("name"))
            table.add_row(path.name, name, f"{manifest.duration_s:.0f}", f"{size_bytes(path) / 1e6:.1f}", state)
        except RecordingError as error:
            table.add_row(path.name, "", "", "", f"[red]{error}[/red]")
    console.print(table if found else f"There are no recordings in {place}.")
    return 0


# --- what to say about it -----------------------------------------------------------------------------


def _report(archive: Archive, replayed: Replayed, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    manifest, comparison = archive.manifest, replayed.comparison
    agent = {"recorded": "what its models said then", "anew": "heard anew"}[replayed.mode]
    console.print(f"[bold]{archive.directory.name}[/bold]: {manifest.agent.get('name')}, {agent}")
    for note in replayed.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    table = Table(box=None, pad_edge=False)
    for column in ("", "recorded", "replayed"):
        table.add_column(column, justify="left" if not column else "right")
    rows = [dict(outcome.rows()) for outcome in replayed.outcomes]
    for name in dict.fromkeys([*rows[0], *rows[1]]):
        then, now = (row.get(name, "-") for row in rows)
        table.add_row(name, then, now if now == then else f"[bold]{now}[/bold]")
    console.print(table)
    for line in _verdict(replayed):
        console.print(line)
    for difference in comparison.differences[:_SHOWN]:
        console.print(f"  {escape(str(difference))}")
    if comparison.count > _SHOWN:
        console.print(f"  … and {comparison.count - _SHOWN} more")


def _verdict(replayed: Replayed) -> list[str]:
    comparison = replayed.comparison
    sound = {True: "every sample to the line too", False: "the sound differs", None: "its sound was not compared"}
    if comparison.same:
        exact = ", every time and figure" if comparison.exact else ", some measured times differ"
        lines = [
            f"[green]All decisions are the same[/green] in {comparison.entries} entries{exact}; "
            f"{sound[replayed.sound_same]}."
        ]
    else:
        lines = [f"[red]{comparison.count} entries were decided otherwise[/red]. The first:"]
    if replayed.moved:
        lines.insert(0, f"{replayed.moved} requests to the models came at another moment; they took as long as then.")
    if replayed.unanswered:
        lines.insert(0, f"{replayed.unanswered} requests have no answer in the recording, and got none.")
    return lines


# --- what to write down -------------------------------------------------------------------------------


def _write(archive: Archive, replayed: Replayed, directory: Path, assignments: list[str]) -> None:
    """The four files; makes the directory."""
    import soundfile

    from duplex.timeline import save_timeline

    recording = call_of(archive, replayed)
    title = archive.manifest.session_id + (f" with {', '.join(assignments)}" if assignments else "")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        soundfile.write(directory / "call.flac", recording.stereo, recording.sample_rate_hz, subtype="PCM_16")
        with (directory / "events.jsonl").open("w", encoding="utf-8") as out:
            for recorded in recording.events:
                out.write(json.dumps({"at_ms": round(recorded.at_ms, 1), "event": recorded.event}) + "\n")
        summary = json.dumps(_summary(archive, replayed, assignments), indent=1, ensure_ascii=False)
        (directory / "replay.json").write_text(summary, encoding="utf-8")
        save_timeline(recording, directory / "timeline.png", title=title, subtitle=archive.directory.name)
    except (OSError, soundfile.SoundFileError) as error:
        raise DuplexError(f"Cannot write to {directory}: {error}. Choose another place with --out.") from error


def call_of(archive: Archive, replayed: Replayed) -> Recording:
    """The replay as a stereo call with events in the public vocabulary, as a client would have recorded it."""
    import numpy as np

    from duplex.recording import Recording

    n_samples = max(1, replayed.user.end_samples, replayed.voice.end_samples)
    stereo = np.stack([replayed.user.samples(n_samples), replayed.voice.samples(n_samples)], axis=1)
    return Recording(stereo, 0.0, tuple(_wire_events(archive, replayed)))


def _wire_events(archive: Archive, replayed: Replayed) -> list[RecordedEvent]:
    from duplex.recording import RecordedEvent
    from duplex.transport.realtime import RealtimeCodec, SessionDefaults

    voices = tuple(archive.manifest.agent.get("voices") or ())
    codec = RealtimeCodec(SessionDefaults(voices=voices), audio_deltas=False)
    return [
        RecordedEvent((event.at.at_s - replayed.origin_s) * 1000.0, wire)
        for event in replayed.events
        for wire in codec.encode(event)
    ]


def _summary(archive: Archive, replayed: Replayed, assignments: list[str]) -> dict[str, Any]:
    then, now = replayed.outcomes
    return {
        "recording": archive.directory.name,
        "set": assignments,
        "mode": replayed.mode,
        "same": replayed.same,
        "exact": replayed.comparison.exact,
        "sound_same": replayed.sound_same,
        "entries": replayed.comparison.entries,
        "entries_decided_otherwise": replayed.comparison.count,
        "requests_moved": replayed.moved,
        "requests_unanswered": replayed.unanswered,
        "notes": replayed.notes,
        "recorded": {"counts": then.counts, "latencies_ms": then.latencies_ms},
        "replayed": {"counts": now.counts, "latencies_ms": now.latencies_ms},
        "differences": [str(difference) for difference in replayed.comparison.differences],
    }
