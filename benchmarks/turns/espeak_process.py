"""eSpeak NG in a process of its own: text on standard input, 16-bit sound at 22 050 Hz on standard output.

Run by its path, with ``python -I -S``, so that it starts in a few tens of milliseconds. A process for each
utterance, because the synthesiser's flutter and breath go on from one utterance to the next: in one process, the
same text sounds different the second time, and a stimulus would depend on what was said before it.

Arguments: library, data folder, voice, words per minute, pitch (0 to 99).
"""

from __future__ import annotations

import ctypes
import sys

RATE_HZ = 22_050
# speak_lib.h of eSpeak NG 1.52
_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000
_RATE, _PITCH = 1, 3
_BY_CHARACTER = 1
_UTF8, _PHONEMES = 0x01, 0x100


def main(library: str, data: str, voice: str, words_per_minute: str, pitch: str) -> int:
    espeak = ctypes.CDLL(library)
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def write(samples: ctypes._Pointer[ctypes.c_short] | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            sys.stdout.buffer.write(ctypes.string_at(samples, 2 * count))
        return 0

    rate_hz = espeak.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
    if rate_hz != RATE_HZ:
        sys.stderr.write(f"eSpeak NG did not start with the data in {data} ({rate_hz})\n")
        return 1
    callback = callback_type(write)  # held here, or it is gone when it is called
    espeak.espeak_SetSynthCallback(callback)
    if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
        sys.stderr.write(f"eSpeak NG has no voice {voice!r}\n")
        return 1
    espeak.espeak_SetParameter(_RATE, int(words_per_minute), 0)
    espeak.espeak_SetParameter(_PITCH, int(pitch), 0)
    text = sys.stdin.buffer.read() + b"\0"
    synth = espeak.espeak_Synth
    synth.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
    synth.argtypes += (ctypes.c_void_p, ctypes.c_void_p)
    return int(synth(text, len(text), 0, _BY_CHARACTER, 0, _UTF8 | _PHONEMES, None, None))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
