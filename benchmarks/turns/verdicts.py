"""From a recording to a verdict: pure functions over :class:`~duplex.recording.Recording` and times on it.

Sound decides whenever it can: who was audible when. Events are asked only for what sound cannot tell: which
reply a sound belongs to and whether that reply was given up, how many turns were committed, and which words
the conversation kept. A server without such events is judged by sound alone, as each rule says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from duplex.benchmarks.turns.told import kept_text, replies, reply_spoken_at, words_of
from duplex.recording import (
    Recording,
    Span,
    audible_windows,
    both_audible_ms,
    interruption_heard,
    is_audible_within,
    silences,
    starts_ms,
    user_said,
    utterances,
)

ANSWER_WITHIN_MS = 10_000.0  # later than this is no answer
RESUME_WITHIN_MS = 3_000.0  # a reply that is not audible again by then was given up
AUDIBLE_PAUSE_MS = 150.0  # a shorter silence of the agent lies between two of its words
SAME_START_MS = 300.0
ONE_HOLDER_WITHIN_MS = 1_500.0
EDGE_MS = 100.0  # how much of a sound may be audible where none should be: fades and windows


# --- speech over the agent ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OverlapHeard:
    """A sound of the user's over the agent's speech that should not stop it.

    ``valid``: the agent was audible in the 200 ms before it and on into it, and its reply had not come to its own
    end when the sound was over. ``abandoned``: the reply was given up (so says its ``response.done``), or the agent
    was not audible again within 3 s of the sound's end. ``gap_ms``: its longest silence that began during the sound
    or within 1 s after; None if that was under 150 ms, as between words, or if the reply was abandoned.
    """

    user: Span
    valid: bool
    abandoned: bool
    gap_ms: float | None


def overlap_heard(recording: Recording, said: Span, until_ms: float) -> OverlapHeard:
    """Judges the sound at ``said`` by what the agent did until ``until_ms``."""
    rate, agent = recording.sample_rate_hz, recording.agent
    until_ms = min(until_ms, recording.duration_ms)
    valid = is_audible_within(agent, said.start_ms - 200.0, said.start_ms, rate) and is_audible_within(
        agent, said.start_ms, said.start_ms + 100.0, rate
    )
    reply = reply_spoken_at(recording, said.start_ms)
    given_up = reply is not None and reply.given_up and reply.done_ms is not None and reply.done_ms < until_ms
    limit_ms = min(until_ms, said.end_ms + RESUME_WITHIN_MS)
    gaps = [
        gap
        for gap in silences(agent, said.start_ms, until_ms, rate)
        if gap.end_ms - gap.start_ms >= AUDIBLE_PAUSE_MS and gap.start_ms <= said.end_ms + 1000.0
    ]
    for_good = bool(gaps) and gaps[-1].end_ms >= limit_ms and gaps[-1].start_ms < limit_ms - AUDIBLE_PAUSE_MS
    if for_good and reply is not None and reply.status == "completed":
        # It said all it had to say: nothing was given up, and nothing could come back.
        return OverlapHeard(said, valid and gaps[-1].start_ms > said.end_ms, False, None)
    abandoned = given_up or for_good
    longest = max((gap.end_ms - gap.start_ms for gap in gaps), default=None)
    return OverlapHeard(said, valid, abandoned, None if abandoned else longest)


@dataclass(frozen=True, slots=True)
class StopHeard:
    """An interruption, and how long the agent kept quiet: ``silent_ms`` from its stop to its next start.

    ``silent_ms`` counts to the end of the stretch if it never spoke again; 0 if it did not stop.
    ``yielded``: silent within 2 s, not audible again while the user went on speaking, and not with the same reply
    afterwards (which was never cancelled, then). ``ended``: the reply came to its own end just then, so there is no
    telling.
    """

    user: Span
    valid: bool
    stop_ms: float | None
    yielded: bool
    silent_ms: float
    ended: bool = False


def stop_heard(recording: Recording, start_ms: float, until_ms: float) -> StopHeard | None:
    """The user's speech in the stretch, over the agent's; None if there is none."""
    until_ms = min(until_ms, recording.duration_ms)
    heard = interruption_heard(recording, start_ms, until_ms)
    if heard is None:
        return None
    if heard.stop_ms is None:
        return StopHeard(heard.user, heard.valid, None, False, 0.0)
    stopped_ms = heard.user.start_ms + heard.stop_ms
    again = starts_ms(recording.agent, stopped_ms, recording.sample_rate_hz)
    silent_ms = (until_ms if again is None or again > until_ms else again) - stopped_ms
    reply = reply_spoken_at(recording, heard.user.start_ms)
    kept = reply is not None and not reply.given_up
    resumed = kept and again is not None and reply is not None and (reply.done_ms is None or reply.done_ms > again)
    ended = kept and not resumed and reply is not None and reply.done_ms is not None
    return StopHeard(heard.user, heard.valid, heard.stop_ms, heard.yielded and not resumed, silent_ms, ended)


# --- who speaks when nobody, or everybody, does ------------------------------------------------------


def spoken_unasked(recording: Recording, start_ms: float, until_ms: float) -> list[Span]:
    """The agent's utterances that began in a stretch in which it had nothing to answer."""
    return utterances(recording.agent, start_ms, until_ms, recording.sample_rate_hz)


@dataclass(frozen=True, slots=True)
class ClashHeard:
    """Both began to speak at once. ``apart_ms``: agent's start after the user's; None if it did not start near it.

    ``both_ms``: for how long both were audible later than 1.5 s after the later of the two starts.
    """

    user: Span
    apart_ms: float | None
    both_ms: float

    @property
    def resolved(self) -> bool:
        return self.both_ms <= EDGE_MS


def clash_heard(recording: Recording, start_ms: float, until_ms: float) -> ClashHeard | None:
    """The user's speech in the stretch and the agent's nearest start; None if the user said nothing."""
    said = user_said(recording, start_ms, until_ms)
    if said is None:
        return None
    rate = recording.sample_rate_hz
    near = starts_ms(recording.agent, max(0.0, said.start_ms - SAME_START_MS), rate)
    if near is not None and near > said.start_ms + SAME_START_MS:
        near = None
    both_since_ms = said.start_ms if near is None else max(near, said.start_ms)
    both_ms = both_audible_ms(recording, both_since_ms + ONE_HOLDER_WITHIN_MS, said.end_ms)
    return ClashHeard(said, None if near is None else near - said.start_ms, both_ms)


def stale_ms(recording: Recording, since_ms: float) -> float:
    """For how long the agent was audible after ``since_ms`` with a reply that had been over for 500 ms by then."""
    told = replies(recording.events)
    rate = recording.sample_rate_hz
    stale = 0.0
    for reply in told:
        if reply.done_ms is None or reply.done_ms < since_ms - 10_000.0:
            continue
        next_ms = min((other.created_ms for other in told if other.created_ms >= reply.done_ms), default=float("inf"))
        first_ms, last_ms = max(since_ms, reply.done_ms + 500.0), min(next_ms, recording.duration_ms)
        if last_ms > first_ms:
            part = recording.between(first_ms, last_ms)
            stale += 10.0 * float(np.count_nonzero(audible_windows(part.agent, rate)))
    return stale


# --- memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryHeard:
    """What was audible of a reply that was cut off, and what the conversation kept of it, word by word.

    ``wrong_words``: words to insert, drop or change to make one of the other (Levenshtein's distance).
    """

    audible: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def wrong_words(self) -> int:
        return edit_distance(self.audible, self.kept)


def memory_heard(recording: Recording, reply_id: str, item_id: str, cut_ms: float) -> MemoryHeard | None:
    """Judges memory of a reply that fell silent at ``cut_ms``; None without word timings or without a transcript.

    A word was heard if its middle was, as placed on the recording: the reply's first audible sample, plus the
    word's offset in the reply's sound, plus the silences it was held for before that.
    """
    words = words_of(recording, reply_id)
    kept = kept_text(recording, item_id)
    reply = next((reply for reply in replies(recording.events) if reply.reply_id == reply_id), None)
    if not words or kept is None or reply is None or reply.audible_ms is None:
        return None
    rate = recording.sample_rate_hz
    began_ms = starts_ms(recording.agent, max(0.0, reply.audible_ms - 200.0), rate)
    if began_ms is None or began_ms > cut_ms:
        began_ms = reply.audible_ms
    began_ms -= leading_silence_ms(words)
    holds = held_silences(recording, reply_id, cut_ms)
    audible = []
    for word in words:
        at_ms = began_ms + (float(word["start_ms"]) + float(word["end_ms"])) / 2.0
        for hold in holds:
            if at_ms >= hold.start_ms:
                at_ms += hold.end_ms - hold.start_ms
        if at_ms < cut_ms:
            audible.append(str(word["text"]))
    return MemoryHeard(tuple(plain_words(" ".join(audible))), tuple(plain_words(kept)))


def leading_silence_ms(words: Sequence[Mapping[str, Any]]) -> float:
    """How far into a reply's sound its first word begins: what is before it cannot be heard."""
    return float(words[0]["start_ms"]) if words else 0.0


def held_silences(recording: Recording, reply_id: str, until_ms: float) -> list[Span]:
    """Where the reply was silent because it was held, and then went on, before ``until_ms``."""
    held: float | None = None
    found: list[Span] = []
    for recorded in recording.events:
        if recorded.event.get("response_id") != reply_id or recorded.at_ms > until_ms:
            continue
        if recorded.type == "duplex.reply.held":
            held = recorded.at_ms
        elif recorded.type == "duplex.reply.resumed" and held is not None:
            quiet = silences(recording.agent, held - 300.0, recorded.at_ms + 500.0, recording.sample_rate_hz)
            longest = max(quiet, key=lambda span: span.end_ms - span.start_ms, default=None)
            found.append(longest if longest is not None else Span(held, held))
            held = None
    return found


def plain_words(text: str) -> list[str]:
    """Words without case and punctuation."""
    return re.findall(r"[\w']+", text.lower())


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest words to insert, drop or change to make one of the other (V. I. Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for number, left in enumerate(one, 1):
        previous, row[0] = row[0], number
        for k, right in enumerate(other, 1):
            previous, row[k] = row[k], min(row[k] + 1, row[k - 1] + 1, previous + (left != right))
    return row[-1]


# --- the agent's own sound -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MonologueHeard:
    """A reply as it was heard. ``spoken_ms``: from its first audible sample to its last one.

    ``stretched_ms``: how much longer that is than its words say; sound that came late, or not at all.
    """

    spoken_ms: float
    stretched_ms: float | None


def monologues(recording: Recording) -> Iterator[MonologueHeard]:
    """Each reply that was spoken to its end without being held."""
    told = replies(recording.events)
    for reply in told:
        if reply.audible_ms is None or reply.status != "completed" or reply.done_ms is None:
            continue
        next_ms = min((other.created_ms for other in told if other.created_ms >= reply.done_ms), default=float("inf"))
        if any(
            e.type == "duplex.reply.held" and e.event.get("response_id") == reply.reply_id for e in recording.events
        ):
            continue
        first = max(0.0, reply.audible_ms - 200.0)
        audible = np.flatnonzero(
            audible_windows(
                recording.between(first, min(reply.done_ms + 700.0, next_ms)).agent, recording.sample_rate_hz
            )
        )
        if not len(audible):
            continue
        spoken_ms = float((audible[-1] - audible[0] + 1) * 10)
        words = words_of(recording, reply.reply_id)
        by_words_ms = float(words[-1]["end_ms"]) - leading_silence_ms(words) if words else None
        yield MonologueHeard(spoken_ms, None if by_words_ms is None else spoken_ms - by_words_ms)


def without_asides(recording: Recording) -> Recording:
    """The same call without the agent's asides ("mm-hm", "one moment"), which take no floor and answer nothing.

    An aside is the sound that begins around its ``duplex.aside`` event, up to 100 ms of silence, 2 s at most.
    """
    rate = recording.sample_rate_hz
    told = [recorded.at_ms for recorded in recording.events if recorded.type == "duplex.aside"]
    if not told:
        return recording
    stereo = recording.stereo.copy()
    for at_ms in told:
        began_ms = starts_ms(recording.agent[: round((at_ms + 700.0) * rate / 1000.0)], max(0.0, at_ms - 200.0), rate)
        if began_ms is None:
            continue
        limit_ms = began_ms + 2000.0
        quiet = [
            gap for gap in silences(recording.agent, began_ms, limit_ms, rate) if gap.end_ms - gap.start_ms >= EDGE_MS
        ]
        ended_ms = quiet[0].start_ms if quiet else limit_ms
        stereo[round(began_ms * rate / 1000.0) : round(ended_ms * rate / 1000.0), 1] = 0.0
    return replace(recording, stereo=stereo)
