"""``duplex call``: a conversation without a browser or a microphone, and what came of it on disk.

Plays a sound file (or says a text) to a running server over WebRTC, shows what both sides say while they
say it, and leaves a stereo recording, the events and a picture one would put into a bug report.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duplex.errors import DuplexError, TransportError

if TYPE_CHECKING:
    from rich.console import Console

    from duplex.frames import Samples
    from duplex.recording import RecordedEvent, Recording
    from duplex.transport.client import CallClient, CallSettings

DEFAULT_URL = "http://127.0.0.1:8998"
_LEAD_MS = 300.0  # of silence before the first word, as in life
_FLOOR_STYLES = {"listening": "dim", "thinking": "yellow", "speaking": "cyan", "holding": "magenta", "yielding": "red"}


def add_parser(subparsers: Any) -> None:
    """Add ``call`` to the ``duplex`` command (``subparsers``: what ``ArgumentParser.add_subparsers`` returns)."""
    parser = subparsers.add_parser(
        "call",
        help="talk to a server with a sound file, and get a recording and a picture of it",
        description="Plays a sound file to a running server and writes call.wav (user left, agent right), "
        "events.jsonl and timeline.png.",
    )
    parser.add_argument("question", nargs="?", type=Path, help="a sound file (WAV, FLAC, OGG; any rate)")
    parser.add_argument("--say", metavar="TEXT", help="say this instead, with the local voice")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the server ({DEFAULT_URL})")
    parser.add_argument("--out", type=Path, default=Path("duplex-call"), metavar="DIR", help="where to (duplex-call)")
    parser.add_argument("--instructions", help="the system prompt of this call")
    parser.add_argument("--voice", help="the agent's voice in this call")
    parser.add_argument("--wait-s", type=float, default=15.0, help="how long to wait for an answer to begin (15)")
    parser.add_argument("--interrupt", type=Path, metavar="FILE", help="a sound file to interrupt the answer with")
    parser.add_argument(
        "--interrupt-after-s", type=float, default=1.5, metavar="S", help="how far into the answer to interrupt (1.5)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if something was answered, 1 if not."""
    from rich.console import Console

    from duplex.benchmarks.stimuli import read_audio, speak
    from duplex.transport.client import CallSettings

    console = Console(highlight=False, soft_wrap=True)
    if (args.question is None) == (args.say is None):
        raise DuplexError('Say what to ask: duplex call question.wav, or duplex call --say "How are you?"')
    question = speak(args.say)[0] if args.say is not None else read_audio(args.question)
    interruption = read_audio(args.interrupt) if args.interrupt is not None else None
    settings = CallSettings(instructions=args.instructions, voice=args.voice)
    recording, failure = asyncio.run(_call(args, question, interruption, settings, console))
    if recording is None:
        raise failure or TransportError("The call never came up.")
    name = f"“{args.say}”" if args.say is not None else args.question.name
    _write(recording, args.out, title=name, subtitle=args.url)
    _report(recording, args.out, console)
    if failure is not None:
        console.print(f"[red]{failure}[/red]")
        return 1
    if not any(recorded.type == "output_audio_buffer.started" for recorded in recording.events):
        console.print(_unanswered(recording, args.wait_s))
        return 1
    return 0


async def _call(
    args: argparse.Namespace,
    question: Samples,
    interruption: Samples | None,
    settings: CallSettings,
    console: Console,
) -> tuple[Recording | None, DuplexError | None]:
    """The recording, as far as the call got, and what ended it early if something did."""
    from duplex.transport.client import CallClient

    call: CallClient | None = None
    with console.status(f"Calling {args.url} …", spinner="dots") as status:
        transcript = _Transcript(console, status)
        try:
            async with CallClient.connect(args.url, settings, on_event=transcript.show) as call:
                await _converse(call, args, question, interruption)
        except DuplexError as error:
            return (call.recording() if call is not None else None), error
        return call.recording(), None


async def _converse(
    call: CallClient, args: argparse.Namespace, question: Samples, interruption: Samples | None
) -> None:
    await call.wait_ms(_LEAD_MS)
    said = await call.play(question)
    if interruption is not None:
        try:
            await call.wait_audible(timeout_s=args.wait_s)
        except TimeoutError:
            return
        await call.wait_ms(args.interrupt_after_s * 1000.0)
        said = await call.play(interruption)
    await call.wait_settled(_last_voiced_ms(call, said.start_ms, said.end_ms), answer_timeout_s=args.wait_s)


def _last_voiced_ms(call: CallClient, start_ms: float, end_ms: float) -> float:
    """Where the voice in what was just played ends: a file may end in silence, and be answered within it."""
    from duplex.recording import voiced_extent

    recording = call.recording()
    first, last = (round(ms * recording.sample_rate_hz / 1000.0) for ms in (start_ms, end_ms))
    voiced = voiced_extent(recording.user[first:last], recording.sample_rate_hz)
    return end_ms if voiced is None else start_ms + voiced.end_ms


class _Transcript:
    """The conversation as lines in the terminal, and what is going on right now below them."""

    def __init__(self, console: Console, status: Any) -> None:
        self._console = console
        self._status = status
        self._floor = "listening"
        self._partial = ""
        self._replies: dict[str, str] = {}

    def show(self, recorded: RecordedEvent) -> None:
        from rich.markup import escape

        event = recorded.event
        match recorded.type:
            case "duplex.floor":
                self._floor = str(event.get("floor"))
            case "duplex.transcript.partial":
                self._partial = str(event.get("text", ""))
            case "conversation.item.input_audio_transcription.completed":
                self._partial = ""
                self._line("user", str(event.get("transcript", "")), "blue")
            case "response.output_audio_transcript.delta":
                item_id = str(event.get("item_id"))
                self._replies[item_id] = self._partial = self._replies.get(item_id, "") + str(event.get("delta", ""))
            case "conversation.item.truncated":
                heard = str((event.get("duplex") or {}).get("heard_text", ""))
                self._replies.pop(str(event.get("item_id")), None)
                self._partial = ""
                self._line("agent", f"{escape(heard)} [dim](cut off here)[/dim]", "cyan", markup=True)
            case "response.output_audio_transcript.done":
                self._partial = ""
                if self._replies.pop(str(event.get("item_id")), None):
                    self._line("agent", str(event.get("transcript", "")), "cyan")
            case "duplex.trace":
                self._line("", _trace_line(event), "dim")
            case "error":
                self._line("error", str((event.get("error") or {}).get("message", "")), "red")
        style = _FLOOR_STYLES.get(self._floor, "dim")
        self._status.update(f"[{style}]{self._floor}[/{style}]  {escape(self._partial[-100:])}")

    def _line(self, who: str, text: str, style: str, *, markup: bool = False) -> None:
        from rich.markup import escape

        if text.strip():
            self._console.print(
                f"[bold {style}]{who:>6}[/bold {style}]  {text.strip() if markup else escape(text.strip())}"
            )


def _trace_line(trace: Any) -> str:
    """``412 ms from your last word: end of turn 250, listener 102 …`` from the server's trace."""
    spans = ", ".join(
        f"{span['name'].replace('_', ' ')} {span['end_ms'] - span['start_ms']:.0f}" for span in trace.get("spans", ())
    )
    ahead = ", begun ahead" if trace.get("speculative") else ""
    return f"answered {trace.get('voice_to_voice_ms', 0.0):.0f} ms after the last word ({spans}{ahead})"


def _write(recording: Recording, directory: Path, *, title: str, subtitle: str) -> None:
    """The three files; makes the directory."""
    import soundfile

    from duplex.timeline import save_timeline

    try:
        directory.mkdir(parents=True, exist_ok=True)
        soundfile.write(directory / "call.wav", recording.stereo, recording.sample_rate_hz, subtype="PCM_16")
        with (directory / "events.jsonl").open("w", encoding="utf-8") as out:
            for recorded in recording.events:
                out.write(json.dumps({"at_ms": round(recorded.at_ms, 1), "event": recorded.event}) + "\n")
        save_timeline(recording, directory / "timeline.png", title=title, subtitle=subtitle)
    except (OSError, soundfile.SoundFileError) as error:
        raise DuplexError(f"Cannot write to {directory}: {error}. Choose another place with --out.") from error


def _report(recording: Recording, directory: Path, console: Console) -> None:
    from duplex.story import tell

    story = tell(recording)
    waits = [f"{turn.voice_to_voice_ms:.0f} ms" for turn in story.turns if turn.voice_to_voice_ms is not None]
    stops = [f"{stop.silent_ms - stop.said_ms:.0f} ms" for stop in story.stops]
    if waits:
        console.print(
            f"[bold]Voice to voice[/bold] as heard here: {', '.join(waits)} "
            f"[dim](with {recording.playout_ms:.0f} ms of playout)[/dim]"
        )
    if stops:
        console.print(f"[bold]Interrupted[/bold]: silent after {', '.join(stops)}")
    wire = recording.wire
    if wire.lost or wire.late or wire.send_late_ms > 40.0:
        console.print(
            f"[yellow]On the wire: {wire.lost} packets lost, {wire.late} late; "
            f"ours left up to {wire.send_late_ms:.0f} ms after their time.[/yellow]"
        )
    console.print(f"Wrote {directory}/call.wav, events.jsonl and timeline.png")


def _unanswered(recording: Recording, wait_s: float) -> str:
    """What may have been wrong, from what the server told us."""
    from duplex.recording import voiced_extent

    kinds = {recorded.type for recorded in recording.events}
    if voiced_extent(recording.user) is None:
        reason = "what was played is silent, or below -40 dBFS throughout"
    elif "input_audio_buffer.speech_started" not in kinds:
        reason = "the server heard no speech in it"
    elif "input_audio_buffer.committed" not in kinds:
        reason = "the server heard speech but never took the turn for finished"
    else:
        reason = "the turn was taken, but no reply came; look at the server's log"
    return f"[red]Nothing was answered within {wait_s:g} s: {reason}.[/red]"
