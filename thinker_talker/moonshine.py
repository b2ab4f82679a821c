"""Moonshine Tiny, an English speech model small enough for a laptop's core, behind the listener's contract.

We run its two networks ourselves. The ``moonshine-voice`` library that carries them takes twice as long
for the same text, cannot be stopped once it has begun, and cuts the audio with a voice detector of its
own, which reads a stray "U" or "You" out of the silence before a sentence.

*Encoder*: the waveform, whole, to float32[1, frames, 288], about 42 frames a second. *Decoder*: one token
after another, greedily, with a cache of keys and values. What makes the answer quick is the *draft*: the
tokens of the request before, half a second earlier, are nearly always right, so the decoder is given all
of them at once and says for each what it would have written itself. As far as they agree they are kept,
at the price of one step ("speculative decoding", Leviathan et al. 2023, with yesterday's transcript in
place of a draft model). The text is the one that plain greedy decoding writes, up to the rounding of the
8-bit weights' activations, which are scaled over all tokens of a step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from duplex.errors import WeightsCorruptError, WeightsMissingError

from .listener import LISTENER_RATE_HZ, Samples16k
from .listening import Abort, Aborted, ThreadedListener
from .onnx_session import import_onnxruntime, open_session
from .phrase_hints import COMMANDS, LONGEST_S, may_be_command, nearly, tokenized
from .repetition import repeated_tail
from .utterance import EMPTY, CutPolicy, Recognition

_START, _END = 1, 2
_HEADS, _HEAD_WIDTH = 8, 36
_MIN_SAMPLES = LISTENER_RATE_HZ // 2
_SENTENCE_ENDS = (b".", b"?", b"!")
_TOKENS_PER_S = 6.5  # the model's authors' limit: nobody speaks faster, a loop does
_REALIGN_WITHIN = 6

# What the model writes when it hears no speech at all. Said by a person, these come with punctuation.
_NOT_SAID = {"", "you", "thank you", "thank you for watching", "thanks for watching"}


class MoonshineModel:
    """The weights, loaded once. A :class:`.listening.Recognizer`: safe from several threads at once."""

    def __init__(self, directory: Path, *, encoder_threads: int = 1, decoder_threads: int = 1) -> None:
        """``directory`` holds encoder_model.ort, decoder_model_merged.ort and tokenizer.bin."""
        self._vocabulary = read_vocabulary(directory / "tokenizer.bin")
        self._encoder = open_session(directory / "encoder_model.ort", threads=encoder_threads)
        self._decoder = open_session(directory / "decoder_model_merged.ort", threads=decoder_threads)
        outputs = [output.name for output in self._decoder.get_outputs()]
        self._own_cache = [name for name in outputs if ".decoder." in name]  # grows with each token
        self._cross_cache = [name for name in outputs if ".encoder." in name]  # fixed after the first step
        if len(self._own_cache) != 12 or len(self._cross_cache) != 12:
            raise WeightsCorruptError(f"{directory} is not Moonshine Tiny. Run: duplex models verify")
        self._sentence_ends = [n for n, piece in enumerate(self._vocabulary) if piece in _SENTENCE_ENDS]
        self._marks = {
            n for n, piece in enumerate(self._vocabulary) if piece and not re.search(rb"[\w\x80-\xff]", piece)
        }
        self._commands = tuple(tokenized(command, self._vocabulary) for command in COMMANDS)
        ort = import_onnxruntime()
        self._value: Callable[[npt.NDArray[Any]], Any] = ort.OrtValue.ortvalue_from_numpy
        self._run_options: Callable[[], Any] = ort.RunOptions

    def warm_up(self) -> None:
        """Three recognitions of a noise, so that no utterance pays for allocations.

        The first and its draft are as long as any: the step that looks at a draft takes 131 kB for each of its tokens.
        """
        longest_s = round(CutPolicy().hard_s)
        noise = np.random.default_rng(0).normal(0.0, 0.05, longest_s * LISTENER_RATE_HZ).astype(np.float32)
        self.recognize(noise, self._sentence_ends[:1] * round(longest_s * _TOKENS_PER_S))
        for seconds in (1, 3):
            self.recognize(noise[: seconds * LISTENER_RATE_HZ])

    def recognize(
        self,
        samples_16k: Samples16k,
        draft: Sequence[int] = (),
        abort: Abort | None = None,
        *,
        commands: bool = False,
    ) -> Recognition:
        """Text of ``samples_16k`` (float32[n], best under 20 s, some silence at its end). See :class:`Recognizer`."""
        short = len(samples_16k) <= LONGEST_S * LISTENER_RATE_HZ
        if len(samples_16k) < _MIN_SAMPLES:
            samples_16k = np.pad(samples_16k, (0, _MIN_SAMPLES - len(samples_16k)))
        abort = abort or Abort()
        options = self._run_options()
        options.log_severity_level = 4  # an abort is no error; onnxruntime would print one in red
        abort.on_ask(lambda: setattr(options, "terminate", True))
        tokens: list[int] = []
        try:
            heard = self._encoded(samples_16k, options)
            logprob, steps, first, ended = self._decode(heard, len(samples_16k), list(draft), tokens, options)
            if commands and short and may_be_command(self.text(tokens)):
                meant = nearly(
                    logprob,
                    self._commands,
                    lambda token: _log_softmax_at(first, token),
                    lambda phrase: self._logprob(heard, phrase, options),
                )
                if meant is not None:
                    tokens, logprob, steps = list(meant[0]), meant[1], len(meant[0]) + 1
        except Exception:
            if abort.asked:  # onnxruntime raises a plain Fail when it is told to terminate
                raise Aborted(tokens) from None
            raise
        finally:
            abort.on_ask(None)
        text = self.text(tokens)
        if text.lower() in _NOT_SAID or not re.search(r"\w", text):
            return EMPTY
        return Recognition(text, tuple(tokens), logprob, steps, ended)

    def text(self, tokens: Sequence[int]) -> str:
        """Plain text of ``tokens``; control tokens and music notes are left out."""
        pieces = b"".join(self._vocabulary[token] for token in tokens)
        return re.sub(r"[�♪♫🎵🎶]", "", pieces.decode("utf-8", errors="replace").replace("▁", " ")).strip()

    def _encoded(self, samples: Samples16k, options: Any) -> dict[str, Any]:
        """What the decoder is fed with in its first step, but for the tokens."""
        audio = np.ascontiguousarray(samples[np.newaxis], dtype=np.float32)
        mask = self._value(np.ones(audio.shape, dtype=np.int64))
        encoded = self._encoder.run_with_ort_values(
            ["last_hidden_state"], {"input_values": self._value(audio), "attention_mask": mask}, options
        )[0]
        feed = {"encoder_attention_mask": mask, "encoder_hidden_states": encoded}
        for names, length in ((self._own_cache, 0), (self._cross_cache, 1)):  # not read in the first step
            empty = self._value(np.zeros((1, _HEADS, length, _HEAD_WIDTH), dtype=np.float32))
            feed.update({_as_input(name): empty for name in names})
        return feed

    def _logprob(self, heard: dict[str, Any], tokens: Sequence[int], options: Any) -> float:
        """Log-probability of exactly these tokens, in one step."""
        given = self._value(np.array([[_START, *tokens]], dtype=np.int64))
        feed = {**heard, "input_ids": given, "use_cache_branch": self._value(np.array([False]))}
        logits = self._decoder.run_with_ort_values(["logits"], feed, options)[0].numpy()[0]
        return sum(_log_softmax_at(logits[i], token) for i, token in enumerate([*tokens, _END]))

    def _decode(
        self, heard: dict[str, Any], n_samples: int, draft: list[int], tokens: list[int], options: Any
    ) -> tuple[float, int, npt.NDArray[np.float32], float | None]:
        """Appends to ``tokens`` as they are found; returns their summed log-probability, the steps it spans, the first
        step's logits, and how likely a sentence ends after the last word."""
        feed = dict(heard)
        limit = math.ceil(n_samples / LISTENER_RATE_HZ * _TOKENS_PER_S)
        logprob, steps, cached = 0.0, 0, 0
        first: npt.NDArray[np.float32] | None = None
        after_word: npt.NDArray[np.float32] | None = None  # logits of what follows the last word
        aligned, rest = True, draft  # rest: what is left of the draft; aligned: it is what comes next
        while len(tokens) < limit:
            last = tokens[-1] if tokens else _START
            guess = rest[: limit - len(tokens)] if aligned else []
            feed["input_ids"] = self._value(np.array([[last, *guess]], dtype=np.int64))
            feed["use_cache_branch"] = self._value(np.array([cached > 0]))
            names = ["logits", *self._own_cache, *(() if cached else self._cross_cache)]
            outputs = dict(zip(names, self._decoder.run_with_ort_values(names, feed, options), strict=True))
            logits = outputs.pop("logits").numpy()[0]  # float32[1 + len(guess), 32768]
            first = logits[0] if first is None else first
            written = logits.argmax(axis=-1).tolist()
            kept = next((i for i, token in enumerate(guess) if written[i] != token), len(guess))
            for i, token in enumerate(written[: kept + 1]):
                logprob += _log_softmax_at(logits[i], token)
                steps += 1
                if (token == _END or token in self._marks) and tokens and tokens[-1] not in self._marks:
                    after_word = logits[i]
                if token == _END:
                    ended = None if after_word is None else _share(after_word, self._sentence_ends)
                    return logprob, steps, first, ended
                tokens.append(token)
            if looped := repeated_tail(tokens):
                del tokens[-looped:]
                return logprob, steps, first, None
            cached += 1 + kept
            for name, value in outputs.items():
                if kept < len(guess) and name in self._own_cache:  # forget the tokens that were refused
                    value = self._value(np.ascontiguousarray(value.numpy()[:, :, :cached]))
                feed[_as_input(name)] = value
            aligned, rest = realigned(rest[kept:], tokens[-1])
        assert first is not None  # the limit is never under one token
        return logprob, steps, first, None


class MoonshineListener(ThreadedListener):
    """:class:`.listener.Listener` with Moonshine Tiny; ``directory`` as for :class:`MoonshineModel`."""

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 1,
        encoder_threads: int = 1,
        decoder_threads: int = 1,
        policy: CutPolicy | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        model = MoonshineModel(directory, encoder_threads=encoder_threads, decoder_threads=decoder_threads)
        super().__init__(model, workers=workers, policy=policy, now=now)


def read_vocabulary(path: Path) -> list[bytes]:
    """Bytes of each token, by number, from Moonshine's ``tokenizer.bin``; empty for control tokens.

    Each entry is its length and then that many bytes. A length under 128 is one byte, a longer one two:
    the first holds the low seven bits and the flag 128, the second the rest.
    """
    if not path.is_file():
        raise WeightsMissingError(f"{path} is not there. Run: duplex models pull")
    data = path.read_bytes()
    vocabulary: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128 and at < len(data):
            length += data[at] * 128 - 128
            at += 1
        if at + length > len(data):
            raise WeightsCorruptError(f"{path} ends in the middle of a token. Run: duplex models verify")
        token = data[at : at + length]
        vocabulary.append(b"" if re.fullmatch(rb"<.{1,20}>", token) else token)
        at += length
    return vocabulary


def realigned(rest: list[int], written: int) -> tuple[bool, list[int]]:
    """After the model wrote ``written`` of its own: whether the draft goes on from there, and what is left of it."""
    for i, token in enumerate(rest[:_REALIGN_WITHIN]):
        if token == written:
            return True, rest[i + 1 :]
    return False, rest[1:]


def _as_input(output_name: str) -> str:
    return output_name.replace("present", "past_key_values")


def _log_softmax_at(logits: npt.NDArray[np.float32], index: int) -> float:
    top = float(logits.max())
    return float(logits[index]) - top - math.log(float(np.exp(logits - top).sum()))


def _share(logits: npt.NDArray[np.float32], of: Sequence[int]) -> float:
    """The probability of any of them."""
    weights = np.exp(logits - logits.max())
    return float(weights[list(of)].sum() / weights.sum())
