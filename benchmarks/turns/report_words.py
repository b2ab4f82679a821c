"""What each row of the table is about, in words: one sentence on what is tried, one on how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duplex.benchmarks.turns.contract import Limit, Statistic


@dataclass(frozen=True, slots=True)
class About:
    name: str
    tried: str
    judged: str


ABOUT: Mapping[int, About] = {
    1: About(
        "plain question",
        "A person asks a question, in a recording of a human voice, and stops.",
        "From the user's last voiced sample to the agent's first audible one; no answer within 10 s is none.",
    ),
    2: About(
        "commit to first packet",
        "Questions whose end is easy to hear, so that only the way from the decision to the first sound is left.",
        "From the turn's commit to the first packet with sound in it, by the server's own trace.",
    ),
    3: About(
        "pause in mid-sentence",
        "A person pauses for 0.4 to 1.0 s inside a sentence and goes on.",
        "A takeover: the agent is audible before the user's last voiced sample.",
    ),
    4: About(
        "pause after “um”",
        "A person says “um”, is silent for 1.5 s, and goes on.",
        "A takeover: the agent is audible before the user's last voiced sample.",
    ),
    5: About(
        "digits in groups",
        "A number is read out in groups with 0.7 s between them.",
        "A takeover: the agent is audible before the last digit; and all groups should become one turn.",
    ),
    6: About(
        "backchannel over the agent",
        "While the agent speaks, the user says “uh-huh”, “yeah” or “mm”.",
        "Abandoned if the reply is given up or not audible again within 3 s; the resume gap is its longest silence.",
    ),
    7: About(
        "interruption",
        "1.5 s into a reply the user begins to say something else.",
        "From the interruption's first voiced sample until the agent is silent for 300 ms; yielded if it stays so.",
    ),
    8: About(
        "“Stop.” and “Wait.”",
        "While the agent speaks, the user says one word that means stop.",
        "From the word's first voiced sample until the agent is silent for 300 ms, and for how long it stays silent.",
    ),
    9: About(
        "a new question after an interruption",
        "The user interrupts, and asks something else.",
        "The question is answered; the words kept of the cut-off reply are compared with those that were audible.",
    ),
    10: About(
        "interruption at the very start",
        "The user speaks again in the first 300 ms of a reply.",
        "One reply should come of it, and the question after it has to be answered.",
    ),
    11: About(
        "cough, click and door over the agent",
        "While the agent speaks, there is a noise that nobody means anything by.",
        "A trial fails if the reply is given up.",
    ),
    12: About(
        "a minute of noise",
        "60 s of background noise, 5 to 10 dB below speech, and nobody speaks.",
        "Any utterance of the agent counts as one spurious reply.",
    ),
    13: About(
        "silence, then room tone",
        "Five minutes of digital silence, then the sound of a quiet room.",
        "Any utterance of the agent counts as one spurious reply.",
    ),
    14: About(
        "a talker in the background",
        "Somebody else speaks in the distance: 15 dB lower, nothing above 3 kHz.",
        "Over the agent a trial fails if the reply is given up; into silence, if the agent answers.",
    ),
    15: About(
        "echo of the agent",
        "The agent's own voice comes back into the microphone, 10 to 30 dB lower and 40 to 250 ms late.",
        "Every reply given up although nobody spoke is one self-interruption.",
    ),
    16: About(
        "interruption through echo",
        "The user interrupts while the agent's echo is on the line.",
        "As for an interruption without echo.",
    ),
    17: About(
        "both start at once",
        "The user goes on just when the agent begins its answer.",
        "A trial fails if both are still audible 1.5 s after the later start.",
    ),
    18: About(
        "a long story",
        "A person tells something for 44 s, with the pauses that people make.",
        "How often the agent speaks into it (short encouragement aside), and whether it replies at the end.",
    ),
    19: About(
        "a long reply",
        "The agent speaks for a minute.",
        "Packets that the line wanted and the session did not have.",
    ),
    20: About(
        "lost packets",
        "1, 5 and 10 % of all packets are lost, in bursts of 60 ms.",
        "Interruptions, judged as without loss, and how much voice-to-voice p95 grows over a perfect line's.",
    ),
    21: About(
        "jitter, reordering and clock skew",
        "For ten minutes packets come up to 50 ms early or late and overtake each other; the client runs 200 ppm fast.",
        "Underruns per minute, and how far sound and time drift apart.",
    ),
    22: About(
        "three seconds of outage",
        "The line is cut for 3 s in the middle of a conversation and comes back.",
        "How soon the agent speaks again, whether it knows what was said, and whether old sound is played.",
    ),
    23: About(
        "hanging up in mid-reply",
        "The caller hangs up while the agent speaks, fifty times.",
        "Sessions, threads, open files and memory of the server afterwards, compared with before.",
    ),
    24: About(
        "half an hour",
        "Questions, interruptions and pauses in turn for 30 minutes.",
        "The last third's voice-to-voice p95 against the first third's, and how memory grows.",
    ),
    25: About(
        "agents that must fail",
        "An agent that always takes the floor and one that never does are put through the suite, and a careful one.",
        "The suite has to fail the first two and pass the third.",
    ),
    26: About(
        "a slower stage",
        "80 ms are added to each stage of the pipeline in turn, and to none.",
        "The regression gate has to name that stage, and to keep quiet when nothing was added.",
    ),
}

_UNITS = {"ms": "ms", "s": "s", "mb": "MB", "db": "dB", "percent": "%"}
_ABBREVIATIONS = {"ci95": "95 % interval", "voice to voice": "voice-to-voice"}


def label_of(measure: str) -> str:
    """``voice_to_voice_ms`` → ``voice-to-voice``."""
    words = measure.split("_")
    if len(words) > 1 and words[-1] in _UNITS:
        words = words[:-1]
    label = " ".join(words)
    for short, long in _ABBREVIATIONS.items():
        label = label.replace(short, long)
    return label


def unit_of(measure: str, *, share: bool = False) -> str:
    """``ms``, ``s``, ``MB`` …; ``%`` for a share; empty for a count."""
    if share:
        return "%"
    return _UNITS.get(measure.rsplit("_", 1)[-1], "") if "_" in measure else ""


def number(value: float, measure: str, *, share: bool = False) -> str:
    """A figure as precise as it deserves, without its unit."""
    if share:
        return f"{value * 100:.3g}"
    size = abs(value)
    digits = 0 if size >= 100 or float(value).is_integer() else 1 if size >= 10 else 2
    return f"{value:.{digits}f}".replace("-", "−")


def shown(value: float, measure: str, *, share: bool = False) -> str:
    """The same with its unit: ``412 ms``, ``95 %``, ``0.25``; long times in seconds."""
    unit = unit_of(measure, share=share)
    if unit == "ms" and abs(value) >= 10_000:
        return f"{value / 1000.0:.1f} s".replace("-", "−")
    return f"{number(value, measure, share=share)} {unit}".strip()


def statistic_word(statistic: Statistic, *, share: bool) -> str:
    """A share's mean is the share."""
    return "share" if share and statistic == "mean" else statistic


def limit_text(limit: Limit, *, share: bool) -> str:
    """``≤ 350 ms``."""
    parts = []
    if limit.at_most is not None:
        parts.append(f"≤ {shown(limit.at_most, limit.measure, share=share)}")
    if limit.at_least is not None:
        parts.append(f"≥ {shown(limit.at_least, limit.measure, share=share)}")
    return ", ".join(parts)
