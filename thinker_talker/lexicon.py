"""Small word lists that decide a lot: encouragement, commands to stop, and sentences left hanging."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_OWN_LETTERS = 5  # fewer are in anything

# What listeners say to keep a speaker going (after Ward & Tsukahara 2000, and the usual transcriptions).
BACKCHANNEL_WORDS = frozenset(
    "ah aha ahh alright good gotcha great hm hmm hmmm huh mhm mm mmm mmhmm mhmm mm-hmm mm-hm uh-huh uhhuh uh um oh ok "
    "okay right sure true wow yeah yea yep yes yup cool nice exactly really indeed interesting".split()
)
BACKCHANNEL_PHRASES = frozenset(
    ("i see", "got it", "go on", "of course", "uh huh", "mm hmm", "mm hm", "that's right", "oh really", "oh wow")
)

STOP_WORDS = frozenset("stop wait no hold quiet enough pause cancel shush silence".split())
STOP_PHRASES = frozenset("hold on|hang on|shut up|be quiet|one moment|just a second|excuse me|that's enough".split("|"))
_BEFORE_STOP = frozenset("please oh okay ok sorry hey".split())

_AROUND_STOP = frozenset(
    "a an and be can could could've enough for here hang it just me minute moment now oh ok okay on one please right "
    "second shut so sorry talking that that's the there uh um up you yeah well".split()
)

# A turn rarely ends on one of these: articles, conjunctions, prepositions, possessives, fillers.
HANGING_WORDS = frozenset(
    "a an and are as at because but by for from i i'm if in into is it's its let's my of on or our than the their then "
    "they're to uh um was we're were when where which while who why with you're your".split()
)
# ... but a question may: "Where is it from?", "What is it to you?", "Who?"
HANGING_EXCEPT = frozenset("are as at by for from in is of on then to was were when where which who why with".split())

# Alone they are no encouragement: who asks back has not understood, and who says goodbye is leaving.
ASKING_BACK = frozenset("what why how who where when which pardon bye goodbye hello".split())

FILLERS = frozenset("um umm uh uhh uhm er erm ah hmm hm".split())
ANSWERS = frozenset(
    "yes yeah yep yup no nope nah sure okay ok right correct exactly absolutely definitely please maybe perhaps".split()
)
NUMBERS = frozenset(
    "zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand double "
    "triple".split()
)
_HEARD_FOR_NUMBERS = frozenset("for to too near ate won sex".split())

_WORD = re.compile(r"[a-z0-9']+(?:-[a-z]+)*")


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def is_backchannel(text: str) -> bool:
    """Nothing but encouragement: "uh-huh", "yeah, right", "I see". Empty text is not."""
    words = words_of(text)
    if not words:
        return False
    plain = " ".join(words)
    if plain in BACKCHANNEL_PHRASES:
        return True
    for phrase in BACKCHANNEL_PHRASES:
        plain = plain.replace(phrase, "")
    return all(word in BACKCHANNEL_WORDS for word in plain.split())


def says_stop(text: str) -> bool:
    """The person tells us to stop: a stop word or phrase first (after "please" or the like), or alone."""
    words, stops = words_of(text), STOP_WORDS
    while words and words[0] in _BEFORE_STOP:
        del words[0]
        stops = STOP_WORDS - {"no"}  # "oh no" is sympathy
    if not words:
        return False
    return words[0] in stops or " ".join(words[:2]) in STOP_PHRASES or " ".join(words[:3]) in STOP_PHRASES


def only_says_stop(text: str) -> bool:
    """A command to be silent and nothing else: "Stop.", "Wait a second, please." An answer is not wanted.

    "Enough." alone may answer a question of ours, so it is none.
    """
    words = words_of(text)
    commands = STOP_WORDS - {"no", "enough"}
    said = any(word in commands for word in words) or any(
        " ".join(words[at : at + n]) in STOP_PHRASES for at in range(len(words)) for n in (2, 3)
    )
    return said and all(word in commands or word in _AROUND_STOP for word in words)


def asks_back(text: str) -> bool:
    """One word that wants to be answered: "What?", "Why?", "Bye." """
    words = words_of(text)
    return len(words) == 1 and words[0] in ASKING_BACK


def content_words(text: str) -> int:
    """How many different words are more than encouragement (a listener that is unsure repeats itself)."""
    return 0 if is_backchannel(text) else len(set(words_of(text)) - BACKCHANNEL_WORDS)


def is_hanging(text: str) -> bool:
    """The words stop in mid-sentence: "I would like a", "and then", "um…"."""
    words = words_of(text)
    if not words:
        return False
    stripped = text.rstrip()
    if stripped.endswith(("...", "…", "-", "—")):
        return True
    if stripped.endswith("?") and words[-1] in HANGING_EXCEPT:
        return False
    return words[-1] in HANGING_WORDS


def is_finished(text: str) -> bool:
    """The listener heard a sentence to its end."""
    return text.rstrip().endswith((".", "?", "!"))


def ends_with_filler(text: str) -> bool:
    """The speaker holds the floor with a sound: "I'd like, um"."""
    words = words_of(text)
    return bool(words) and words[-1] in FILLERS


def is_counting(text: str) -> bool:
    """Numbers in a row at the end, as people dictate them; more may come: "It's four one five", "555, 0123"."""
    run = 0
    for word in reversed(words_of(text.replace("-", " "))):
        if word.isdigit():
            run += len(word)
        elif word in NUMBERS or (run and word in _HEARD_FOR_NUMBERS):
            run += 1
        else:
            break
    return run >= 2


def is_answer(text: str) -> bool:
    """Begins with what answers a question: "Yes.", "no thanks", "sure"."""
    words = words_of(text)
    return bool(words) and words[0] in ANSWERS


def own_share(heard: str, ours: str) -> float:
    """Share of the letters of ``heard`` that lie in one piece in what we say ourselves; 0 if that is fewer than five.

    By letters and not by words, since what is heard of an echo begins and ends in the middle of words.
    """
    ours_letters, letters = ("".join(filter(str.isalpha, text.casefold())) for text in (ours, heard))
    same = SequenceMatcher(None, ours_letters, letters, autojunk=False).find_longest_match().size
    return same / len(letters) if same >= _OWN_LETTERS else 0.0
