"""Embed an agent in your own asyncio program: audio in, audio out, no HTTP.

python examples/embed.py question.wav answer.wav       any sound file
python examples/embed.py question.pcm answer.pcm       raw 16-bit mono at 24 kHz
"""

import asyncio
import sys

import numpy as np
import soundfile
import soxr

from duplex.agent import AgentSettings
from duplex.clock import MonotonicClock
from duplex.config import SessionConfig
from duplex.events import Event, ReplyFinished, UserTranscriptFinal
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.hub import SessionHub
from duplex.pcm_line import PcmLine
from duplex.registry import create_agent

RAW = {"samplerate": SAMPLE_RATE_HZ, "channels": 1, "subtype": "PCM_16", "format": "RAW"}


async def main(source: str, target: str) -> None:
    sound, rate = soundfile.read(source, dtype="float32", always_2d=True, **(RAW if source.endswith(".pcm") else {}))
    answer: list[Samples] = []
    answered = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, UserTranscriptFinal | ReplyFinished):
            print("you:  " if isinstance(event, UserTranscriptFinal) else "agent:", event.text)
        if isinstance(event, ReplyFinished) and event.status != "cancelled":
            answered.set()

    hub = SessionHub(create_agent("cascade", {}), MonotonicClock(), SessionConfig(), max_sessions=1)
    await hub.start()
    line = PcmLine(answer.append, on_event)
    hub.open(line, AgentSettings(instructions="You are a helpful voice assistant. Answer in one short sentence."))
    line.hear(soxr.resample(sound.mean(axis=1), rate, SAMPLE_RATE_HZ))
    await asyncio.wait_for(answered.wait(), timeout=len(sound) / rate + 30)
    soundfile.write(
        target, np.concatenate(answer), **(RAW if target.endswith(".pcm") else {"samplerate": SAMPLE_RATE_HZ})
    )
    await hub.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
