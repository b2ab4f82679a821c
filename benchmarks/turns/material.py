"""Everything that is said to an agent in the suite, built at run time from public packages and seeds.

Two splits that share nothing: no recording, speaker, synthetic voice, phrase or seed. ``tuning`` is what thresholds
may be chosen on; ``reporting`` is what figures are made with. ``docs/stimuli.md`` says who is in which.

What a builder returns depends on (split, seed, ``k``) alone, not on what was asked for before; ``k`` counts
trials and may be any number ≥ 0. Builders block for up to a second (synthesis): call them through
``asyncio.to_thread``. Everything is float32 at 24 kHz with its speech at −20 dBFS, unless it says otherwise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from duplex.benchmarks.stimuli import LEVEL_DBFS, Stimulus, load_source, pauses_in
from duplex.benchmarks.stimuli_cuts import CUTS, Split, Use
from duplex.benchmarks.stimuli_packages import ASTERISK
from duplex.benchmarks.turns.material_hum import hum
from duplex.benchmarks.turns.material_noise import BEDS, EVENTS, bed
from duplex.benchmarks.turns.material_speech import (
    espeak,
    from_next_room,
    joined,
    room_tone,
    with_pause,
)
from duplex.benchmarks.turns.material_words import WORDS, Words
from duplex.errors import DuplexError
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.recording import voiced_extent

PAUSE_RANGE_MS = (400.0, 1000.0)
UM_PAUSE_MS = 1500.0
DIGIT_GAP_MS = 700.0
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Noise:
    """A sound that is not speech: float32[n] at 24 kHz. ``kind``: which of the sounds it is."""

    name: str
    kind: str
    samples: Samples


class Material:
    """One split's sounds. Build it with :meth:`load`."""

    def __init__(self, split: Split, recordings: Sequence[Stimulus], seed: int = 0) -> None:
        self.split: Split = split
        self.seed = seed
        self._recordings = tuple(recordings)
        self._spoken: dict[tuple[str, str, int, int], Samples] = {}

    @classmethod
    def load(
        cls, split: Split = "reporting", note: Callable[[str], None] = lambda _line: None, seed: int = 0
    ) -> Material:
        """Fetches what is missing, once, and cuts it. Blocks: seconds, or a minute the first time.

        ``note`` gets a line about what is fetched or cannot be had. Raises ``DuplexError``, which says what to do,
        if there is no human speech: a figure without it would not be this suite's.
        """
        found: list[Stimulus] = []
        for source in CUTS[split]:
            loaded = load_source(split, source, note)
            if not loaded and source != ASTERISK:
                raise DuplexError(
                    f"The recordings of {source} could not be had, and the {split} set is not the same without them; "
                    "see the line above. Connect to a package index and try again."
                )
            found += loaded
        return cls(split, found, seed)

    # --- people ----------------------------------------------------------------------------------------

    @property
    def recordings(self) -> tuple[Stimulus, ...]:
        """Every cut of the split's recordings, whatever it is used for."""
        return self._recordings

    def questions(self) -> tuple[Stimulus, ...]:
        """Human: plain, complete turns, one sentence each, in an order fixed by the seed."""
        turns = self._human("turn")
        return tuple(turns[index] for index in self._rng("questions").permutation(len(turns)))

    def question(self, k: int) -> Stimulus:
        """Human: the ``k``-th of :meth:`questions`, round and round."""
        questions = self.questions()
        return questions[k % len(questions)]

    def paused(self, k: int) -> Stimulus:
        """Human: a sentence with one pause of 0.4 to 1.0 s in the middle, where it is unfinished.

        ``pauses`` says where. Most are a recording with room tone put in at a word boundary; the rest paused so
        by themselves.
        """
        said = self._paused(k)
        return replace(said, name=f"paused-{k}-{said.name}")

    def monologue(self, k: int = 0) -> Stimulus:
        """Human: some 40 s by one speaker, with the pauses of speech as it is read or told.

        Where it is put together from several stretches, they follow each other after 0.5 to 0.8 s.
        """
        told = self._human("monologue")
        rng = self._rng("monologue", k)
        samples = joined([part.samples for part in told], rng.uniform(500.0, 800.0, len(told) - 1), rng)
        voiced = voiced_extent(samples)
        assert voiced is not None
        return replace(
            told[0],
            name="+".join(part.name for part in told),
            text=" ".join(part.text for part in told),
            samples=samples,
            voiced=voiced,
            pauses=pauses_in(samples),
        )

    def background_talker(self, k: int, seconds: float, level_db: float = -15.0) -> Samples:
        """Human: somebody else who talks on, ``level_db`` below the user and low-passed at 3 kHz: float32[n]."""
        rng = self._rng("background", k)
        turns = self._human("turn")
        parts: list[Samples] = []
        gaps_ms: list[float] = []
        voice_ms = 0.0
        while voice_ms < seconds * 1000.0:
            said = turns[int(rng.integers(len(turns)))]
            parts.append(said.samples)
            voice_ms += said.voiced.end_ms - said.voiced.start_ms + (gaps_ms[-1] if gaps_ms else 0.0)
            gaps_ms.append(float(rng.uniform(250.0, 600.0)))
        return from_next_room(joined(parts, gaps_ms, rng), level_db)[: round(seconds * SAMPLE_RATE_HZ)]

    # --- hesitations and numbers --------------------------------------------------------------------------

    def um_pause(self, k: int) -> Stimulus:
        """An unfinished clause that ends in "um" or "uh", 1.5 s of nothing, then its rest.

        Human where a recording has one; synthetic for the others. ``pauses`` holds the one of 1.5 s.
        """
        human = self._human("hesitation")
        words = self._words.hesitations
        at = k % (len(human) + len(words))
        rng = self._rng("um", k)
        if at < len(human):
            said = with_pause(human[at], human[at].breaks_ms[0], UM_PAUSE_MS, rng)
            return replace(said, name=f"um-{k}-{said.name}")
        first, rest = words[at - len(human)]
        voice = self._voice(k, len(human) + len(words))
        parts = [self._espeak(f"{first}…", voice), self._espeak(rest, voice)]
        samples = joined(parts, [UM_PAUSE_MS], rng)
        return self._made(f"um-{k}", f"{first} … {rest}", samples, voice)

    def digits(self, k: int) -> Stimulus:
        """A number in groups of digits with 0.7 s between them; all of it is one turn. ``pauses``: the gaps."""
        human = self._human("digits")
        rng = self._rng("digits", k)
        numbers = self._words.digits
        at = k % (len(human) + len(numbers))
        if at < len(human):
            said = human[at]
            for break_ms in reversed(said.breaks_ms):
                said = with_pause(said, break_ms, DIGIT_GAP_MS, rng)
            return replace(said, name=f"digits-{k}-{said.name}")
        groups = numbers[at - len(human)]
        voice = self._voice(k, len(human) + len(numbers))
        spoken = [*(f"{group}," for group in groups[:-1]), f"{groups[-1]}."]  # the voice stays up until the last
        parts = [self._espeak(text, voice) for text in spoken]
        samples = joined(parts, [DIGIT_GAP_MS] * (len(parts) - 1), rng)
        return self._made(f"digits-{k}", ", ".join(groups) + ".", samples, voice)

    # --- over the agent -------------------------------------------------------------------------------------

    def backchannel(self, k: int) -> Stimulus:
        """ "Uh-huh", "yeah", "mm" and their like, 0.2 to 0.7 s: human where a recording has one, else synthetic."""
        human = self._human("backchannel")
        phrases = self._words.backchannels
        at = k % (len(human) + len(phrases))
        if at < len(human):
            return replace(human[at], name=f"backchannel-{k}-{human[at].name}")
        phrase = phrases[at - len(human)]
        if not phrase.hum:
            voice = self._voice(k, len(human) + len(phrases))
            return self._made(f"backchannel-{k}", phrase.text, self._espeak(phrase.text, voice), voice)
        hummer = self._words.hummers[(at + k // (len(human) + len(phrases))) % len(self._words.hummers)]
        samples = hum(phrase.hum, self._rng("hum", k), hummer.pitch_hz, hummer.mouth)
        return replace(self._made(f"backchannel-{k}", phrase.text, samples, hummer.name), source="hum")

    def interruption(self, k: int) -> Stimulus:
        """A real interruption: one sentence of three words or more, 1.0 to 3.5 s; human and synthetic in turn."""
        human = [said for said in self.questions() if _interrupts(said)]
        if k % 2 == 0 and human:
            return human[(k // 2) % len(human)]
        sentences = self._words.interruptions
        text, voice = sentences[(k // 2) % len(sentences)], self._voice(k // 2, len(sentences))
        return self._made(f"interruption-{k}", text, self._espeak(text, voice), voice)

    def stop(self, k: int) -> Stimulus:
        """ "Stop." "Wait." and other ways to say it: synthetic."""
        stops = self._words.stops
        text, voice = stops[k % len(stops)], self._voice(k, len(stops))
        return self._made(f"stop-{k}", text, self._espeak(text, voice), voice)

    def follow_up(self, k: int) -> Stimulus:
        """A question to ask after an interruption: synthetic. ``expects``: what a sensible answer contains."""
        asked = self._words.follow_ups
        (text, expects), voice = asked[k % len(asked)], self._voice(k, len(asked))
        return replace(self._made(f"follow-up-{k}", text, self._espeak(text, voice), voice), expects=expects)

    def request(self, k: int) -> Stimulus:
        """Something that takes long to answer, so that there is speech to talk over: synthetic."""
        asked = self._words.requests
        text, voice = asked[k % len(asked)], self._voice(k, len(asked))
        return self._made(f"request-{k}", text, self._espeak(text, voice), voice)

    # --- not speech ---------------------------------------------------------------------------------------------

    def noise_event(self, k: int) -> Noise:
        """A cough, a click or a door, in turn. Every other cough is human, where a recording has one."""
        kind = tuple(EVENTS)[k % len(EVENTS)]
        coughs = self._human("cough")
        if kind == "cough" and coughs and k // len(EVENTS) % 2 == 0:
            return Noise(f"cough-{k}-{coughs[0].name}", kind, coughs[0].samples)
        return Noise(f"{kind}-{k}", kind, EVENTS[kind](self._rng("event", k)))

    def noise_bed(self, k: int, seconds: float = 60.0, snr_db: float = 7.5) -> Noise:
        """``seconds`` of noise, ``snr_db`` below the user's −20 dBFS: pink, fan, street, brown, keyboard, in turn."""
        kind = tuple(BEDS)[k % len(BEDS)]
        samples = bed(kind, self._rng("bed", k), seconds, LEVEL_DBFS - snr_db)
        return Noise(f"{kind}-{k}-{snr_db:g}dB", kind, samples)

    def room_tone(self, k: int, seconds: float, level_dbfs: float = -60.0) -> Samples:
        """A quiet room: float32[n]."""
        return room_tone(self._rng("room", k), round(seconds * SAMPLE_RATE_HZ), level_dbfs)

    def silence(self, seconds: float) -> Samples:
        """Digital silence: float32[n] of zeros."""
        return np.zeros(round(seconds * SAMPLE_RATE_HZ), dtype=np.float32)

    # --- synthetic speech -------------------------------------------------------------------------------------------

    def say(self, text: str, k: int = 0, voice: str | None = None) -> Stimulus:
        """``text`` by eSpeak NG, in the ``k``-th of this split's voices, or in ``voice``."""
        voice = voice or self._voice(k, len(self._words.voices))
        return self._made(f"say-{k}", text, self._espeak(text, voice), voice)

    @property
    def voices(self) -> tuple[str, ...]:
        """This split's synthetic voices."""
        return self._words.voices

    # --- within ---------------------------------------------------------------------------------------

    @property
    def _words(self) -> Words:
        return WORDS[self.split]

    def _human(self, use: Use) -> list[Stimulus]:
        return [said for said in self._recordings if said.use == use]

    def _rng(self, what: str, k: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._words.seed, self.seed, zlib.crc32(what.encode()), k])

    def _voice(self, k: int, phrases: int) -> str:
        """The voice for the ``k``-th of ``phrases``, round and round: each phrase meets each voice in turn."""
        voices = self._words.voices
        return voices[(k % phrases + k // phrases + self.seed) % len(voices)]

    def _paused(self, k: int) -> Stimulus:
        natural, turns = self._human("paused"), self._human("turn")
        places: list[tuple[Stimulus, float | None]] = [(said, None) for said in natural]
        places += [(said, at_ms) for said in [*natural, *turns] for at_ms in said.breaks_ms]
        order = self._rng("paused").permutation(len(places))
        said, at_ms = places[int(order[k % len(places)])]
        if at_ms is None:
            return said
        low, high = PAUSE_RANGE_MS
        # Spread evenly over the places, and far from there for the same place the next time round.
        rank = self._rng("pause-length").permutation(len(places))[k % len(places)]
        share = (float(rank) / len(places) + k // len(places) * _GOLDEN) % 1.0
        return with_pause(said, at_ms, round(low + share * (high - low), -1), self._rng("paused", k))

    def _espeak(self, text: str, voice: str) -> Samples:
        rng = self._rng(f"{voice}:{text}")
        speed, pitch = int(rng.integers(150, 181)), int(rng.integers(40, 61))
        key = (text, voice, speed, pitch)
        if key not in self._spoken:
            self._spoken[key] = espeak(text, voice, speed, pitch)
        return self._spoken[key]

    def _made(self, name: str, text: str, samples: Samples, voice: str) -> Stimulus:
        voiced = voiced_extent(samples)
        if voiced is None:
            raise DuplexError(f"eSpeak NG said nothing for {text!r} in the voice {voice}.")
        return Stimulus(
            f"{name}-{voice}", "espeak-ng", text, samples, voiced, voice, human=False, pauses=pauses_in(samples)
        )


def _interrupts(said: Stimulus) -> bool:
    length_ms = said.voiced.end_ms - said.voiced.start_ms
    return len(said.text.split()) >= 3 and 1000.0 <= length_ms <= 3500.0
