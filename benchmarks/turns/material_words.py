"""What is said, in two sets that share no word list and no synthetic voice: one to tune on, one to report.

Backchannels are words in those voices, and the hums of :mod:`~.material_hum`, which no spelling gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duplex.benchmarks.stimuli_cuts import Split


@dataclass(frozen=True, slots=True)
class Assent:
    """A backchannel as it is written down. ``hum``: which of the hums it is; empty for a word."""

    text: str
    hum: str = ""


@dataclass(frozen=True, slots=True)
class Hummer:
    """Somebody who hums. ``mouth``: the size of the resonances, about 1.0 for a man and 1.15 for a woman."""

    name: str
    pitch_hz: float
    mouth: float


@dataclass(frozen=True, slots=True)
class Words:
    """One split's lists. ``hesitations``: an unfinished clause that ends in "um" or "uh", and its rest.

    ``follow_ups``: a question, and words of which one must be in a sensible answer. ``digits``: numbers in groups.
    ``voices``: eSpeak NG's names, language and variant.
    """

    seed: int
    voices: tuple[str, ...]
    hummers: tuple[Hummer, ...]
    backchannels: tuple[Assent, ...]
    interruptions: tuple[str, ...]
    stops: tuple[str, ...]
    hesitations: tuple[tuple[str, str], ...]
    follow_ups: tuple[tuple[str, tuple[str, ...]], ...]
    requests: tuple[str, ...]
    digits: tuple[tuple[str, ...], ...]


WORDS: Mapping[Split, Words] = {
    "reporting": Words(
        seed=7001,
        voices=("en-us+m6", "en-us+f4", "en-us+m7", "en-gb-x-rp+f5", "en-us+edward"),
        hummers=(Hummer("hum-105", 105.0, 1.0), Hummer("hum-180", 180.0, 1.1), Hummer("hum-128", 128.0, 0.98)),
        backchannels=(
            Assent("Uh-huh.", "uh-huh"),
            Assent("Yeah."),
            Assent("Mm.", "mm"),
            Assent("Mm-hm.", "mm-hm"),
            Assent("Okay."),
        ),
        interruptions=(
            "No, I meant the other one.",
            "Can you say that more slowly?",
            "But what about my brother?",
            "Sorry, I have another question.",
            "That is not what I asked you.",
            "Let me ask something else.",
            "Could we talk about the weather?",
            "Actually, tell me about cats instead.",
        ),
        stops=("Stop.", "Wait.", "Hold on.", "Please stop.", "Wait a second.", "Stop talking."),
        hesitations=(
            ("I would like to book a table for, um", "four people tomorrow evening."),
            ("Could you tell me who, uh", "wrote the book about the whale?"),
            ("We were thinking of going to, um", "the mountains in September."),
            ("My favourite food is probably, uh", "the soup that my grandmother makes."),
            ("Can you explain to me why the, um", "moon looks so big tonight?"),
            ("The name of the street is, uh", "Cedar Lane."),
        ),
        follow_ups=(
            ("What is the capital of Italy?", ("rome",)),
            ("How many legs does a spider have?", ("eight", "8")),
            ("What is the opposite of up?", ("down",)),
            ("What do cows give us to drink?", ("milk",)),
            ("Which month comes after March?", ("april",)),
            ("What is two plus two?", ("four", "4")),
        ),
        requests=(
            "Please tell me a long story about a sailor.",
            "Explain to me in detail how a bicycle works.",
            "Describe everything that happens in a forest in spring.",
            "Tell me all about the history of London.",
            "Explain how bread is made, step by step.",
            "Tell me everything you know about elephants.",
        ),
        digits=(
            ("five five five", "zero one seven", "two nine four six"),
            ("eight zero three", "six one", "nine nine two"),
            ("four one six", "seven seven zero", "three eight"),
            ("two two nine", "five zero", "one one six four"),
            ("nine four", "three six", "zero eight", "one five"),
            ("seven zero two", "four four one", "eight six five nine"),
        ),
    ),
    "tuning": Words(
        seed=4001,
        voices=("en-us+m2", "en-us+f1", "en-us+zac", "en-gb-x-rp+f2", "en-gb-x-rp+m8"),
        hummers=(Hummer("hum-115", 115.0, 0.99), Hummer("hum-216", 216.0, 1.17), Hummer("hum-140", 140.0, 1.02)),
        backchannels=(
            Assent("Hm.", "hm"),
            Assent("Right."),
            Assent("Ah.", "ah"),
            Assent("Sure."),
            Assent("I see."),
            Assent("Yep."),
        ),
        interruptions=(
            "Hang on, what did you say?",
            "I think you misunderstood me.",
            "What happens after that?",
            "Never mind, show me the list.",
            "Why would anyone do that?",
            "Give me a shorter answer.",
            "I already know that part.",
            "How much does it cost?",
        ),
        stops=("Enough.", "Pause.", "Quiet, please.", "Be quiet.", "Hang on.", "Shut up."),
        hesitations=(
            ("I want to send a parcel to, uh", "my aunt in Canada."),
            ("Is there a way to, um", "change the colour of the lamp?"),
            ("The train should leave at, uh", "half past nine."),
            ("What I really need is, um", "a good pair of shoes."),
            ("Do you happen to know if the, uh", "library is open today?"),
            ("He told me that his, um", "car broke down again."),
        ),
        follow_ups=(
            ("What color is grass?", ("green",)),
            ("How many wheels does a car have?", ("four", "4")),
            ("What is the opposite of big?", ("small", "little")),
            ("What animal barks?", ("dog",)),
            ("Which day comes after Monday?", ("tuesday",)),
            ("What is three plus three?", ("six", "6")),
        ),
        requests=(
            "Please tell me a long story about a dragon.",
            "Explain in detail how a car engine works.",
            "Describe a day at the sea from morning to night.",
            "Tell me all about the history of Rome.",
            "Explain how tea is made, step by step.",
            "Tell me everything you know about whales.",
        ),
        digits=(
            ("six zero four", "two five", "eight eight one"),
            ("three three one", "nine zero six", "four seven"),
            ("one eight", "five two", "six six", "zero nine"),
            ("nine one four", "three zero three", "seven five"),
            ("two zero six", "eight four", "one three one nine"),
            ("five nine", "seven one two", "four six zero"),
        ),
    ),
}
