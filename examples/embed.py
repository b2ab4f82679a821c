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

RAW = {"subtype": "PCM_16", "format": "RAW"}


async def main(source: str, target: str) -> None:
    raw = {"samplerate": SAMPLE_RATE_HZ, "channels": 1, **RAW} if source.endswith(".pcm") else {}
    sound, rate = soundfile.read(source, dtype="float32", always_2d=True, **raw)
    answer: list[Samples] = []
    answered = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, UserTranscriptFinal | ReplyFinished):
            print("you:  " if isinstance(event, UserTranscriptFinal) else "agent:", event.text)
        if isinstance(event, ReplyFinished) and event.status != "cancelled":
            answered.set()

    agent = create_agent("cascade", {})
    settings = AgentSettings(instructions="You answer questions briefly, in plain spoken English.")
    async with SessionHub(agent, MonotonicClock(), SessionConfig(), max_sessions=1) as hub:
        line = PcmLine(answer.append, on_event)
        hub.open(line, settings)
        line.hear(soxr.resample(sound.mean(axis=1), rate, SAMPLE_RATE_HZ))
        await asyncio.wait_for(answered.wait(), timeout=len(sound) / rate + 60)
    soundfile.write(target, np.concatenate(answer), SAMPLE_RATE_HZ, **(RAW if target.endswith(".pcm") else {}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
