"""The official ``openai`` package talks with our default models, out loud, by changing its URL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from difflib import SequenceMatcher

import numpy as np
import pytest
import pytest_asyncio
import soxr
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeServerEvent
from serving import NoCalls, running_app, running_hub
from voices import Voice

from duplex.clock import MonotonicClock
from duplex.codecs import g711
from duplex.config import Config, SessionConfig
from duplex.frames import SAMPLE_RATE_HZ, Samples
from duplex.registry import create_agent
from duplex.transport.app import create_app
from duplex.transport.pcm import from_pcm16, to_pcm16
from duplex.weights import ModelStore

# Waits are for a machine that does many things at once; on an idle one each test takes a few seconds.
pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
WAIT_S = 120

CHUNK_S = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def base_url(models: ModelStore) -> AsyncIterator[str]:
    # One thread: on a machine that tests other things meanwhile, two wait for each other most of the time.
    agent = create_agent("cascade", {"models_dir": models.root, "temperature": 0, "thinker_threads": 1})
    config = Config(session=SessionConfig(think_limit_s=WAIT_S))
    async with running_hub(agent, config) as hub, running_app(create_app(hub, config, door=NoCalls())) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def voice(models: ModelStore) -> Voice:
    return Voice(models)


def alike(one: str, other: str) -> float:
    """How many of two texts' letters are the same, in order: 0 to 1. A small listener mishears an ending or two."""
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


class Conversation:
    """A connection of the official client, its events as they come, and a microphone."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.connection = connection
        self.events: list[RealtimeServerEvent] = []

    async def until(self, kind: str) -> RealtimeServerEvent:
        """The next event of this type. An ``error`` on the way fails the test."""
        async with asyncio.timeout(WAIT_S):
            async for event in self.connection:
                self.events.append(event)
                assert event.type != "error", event
                if event.type == kind:
                    return event
        raise AssertionError(f"closed before {kind}; saw {[event.type for event in self.events]}")

    async def speak(self, samples: Samples) -> None:
        """A microphone: chunks of 100 ms in real time, then nothing."""
        clock, chunk = MonotonicClock(), round(CHUNK_S * SAMPLE_RATE_HZ)
        due_s = clock.now()
        for start in range(0, len(samples), chunk):
            audio = base64.b64encode(to_pcm16(samples[start : start + chunk])).decode()
            await self.connection.input_audio_buffer.append(audio=audio)
            due_s += CHUNK_S
            await clock.sleep_until(due_s)

    def audio_of(self, response_id: str) -> Samples:
        deltas = [
            e.delta for e in self.events if e.type == "response.output_audio.delta" and e.response_id == response_id
        ]
        return from_pcm16(b"".join(base64.b64decode(delta) for delta in deltas))


@asynccontextmanager
async def conversation(base_url: str) -> AsyncIterator[Conversation]:
    client = AsyncOpenAI(base_url=base_url, api_key="x")
    async with client.realtime.connect(model="duplex") as connection:
        talk = Conversation(connection)
        await talk.until("session.created")
        yield talk
    await client.close()


async def test_a_spoken_question_gets_a_spoken_answer(base_url: str, voice: Voice) -> None:
    question = await asyncio.to_thread(voice.say, "What is the capital of France?")
    async with conversation(base_url) as talk:
        await talk.connection.session.update(
            session={
                "type": "realtime",
                "output_modalities": ["audio"],
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24000},
                        "turn_detection": {"type": "semantic_vad"},
                    },
                    "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
                },
            }
        )
        await talk.until("session.updated")
        await talk.speak(question)
        done = await talk.until("response.done")
        assert done.type == "response.done"
        assert done.response.status == "completed"
        [heard] = [e for e in talk.events if e.type == "conversation.item.input_audio_transcription.completed"]
        assert "capital of france" in heard.transcript.lower()
        assert done.response.id is not None
        assert done.response.output is not None
        [item] = done.response.output
        assert item.type == "message"
        assert item.role == "assistant"
        text = item.content[0].transcript or ""
        assert "Paris" in text
        sound = await asyncio.to_thread(voice.write_down, talk.audio_of(done.response.id))
        assert alike(sound, text) > 0.7, (sound, text)


async def test_talking_over_the_answer_stops_it_and_the_new_question_is_answered(base_url: str, voice: Voice) -> None:
    first = await asyncio.to_thread(voice.say, "Please tell me a long story about a dragon and a princess.")
    second = await asyncio.to_thread(voice.say, "Wait, stop. What is the capital of Italy?")
    async with conversation(base_url) as talk:
        await talk.speak(first)
        started = await talk.until("response.output_audio.delta")
        assert started.type == "response.output_audio.delta"
        for _ in range(40):  # let it talk for a little
            await talk.until("response.output_audio.delta")
        interruption = asyncio.create_task(talk.speak(second))
        truncated = await talk.until("conversation.item.truncated")
        done = await talk.until("response.done")
        await interruption
        assert truncated.type == "conversation.item.truncated"
        assert truncated.item_id == started.item_id
        assert done.type == "response.done"
        assert (done.response.id, done.response.status) == (started.response_id, "cancelled")
        assert done.response.status_details is not None
        assert done.response.status_details.reason == "turn_detected"
        sent_ms = len(talk.audio_of(started.response_id)) * 1000 / SAMPLE_RATE_HZ
        assert 0 < truncated.audio_end_ms <= sent_ms
        for _ in range(2):  # "Wait, stop." may be taken for a turn of its own, and is answered by silence
            again = await talk.until("response.done")
            assert again.type == "response.done"
            assert again.response.id is not None
            assert again.response.status == "completed"
            if len(talk.audio_of(again.response.id)):
                break
        assert len(talk.audio_of(again.response.id)) > SAMPLE_RATE_HZ // 2
        heard = [e for e in talk.events if e.type == "conversation.item.input_audio_transcription.completed"]
        assert "italy" in heard[-1].transcript.lower()
        after = talk.events[talk.events.index(done) :]
        assert not [
            e for e in after if e.type == "response.output_audio.delta" and e.response_id == started.response_id
        ]


async def test_the_readme_example_typed_text_in_text_out(base_url: str) -> None:
    async with conversation(base_url) as talk:
        await talk.connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await talk.connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What is the capital of France?"}],
            }
        )
        await talk.connection.response.create()
        done = await talk.until("response.done")
        text = "".join(event.delta for event in talk.events if event.type == "response.output_text.delta")
        assert "Paris" in text
        assert not [event for event in talk.events if event.type == "response.output_audio.delta"]
        assert done.type == "response.done"
        assert done.response.output_modalities == ["text"]


async def test_push_to_talk_on_a_telephones_line(base_url: str, voice: Voice) -> None:
    question = await asyncio.to_thread(voice.say, "What is the capital of France?")
    mu_law = g711.encode_ulaw(soxr.resample(question, SAMPLE_RATE_HZ, g711.RATE_HZ))
    async with conversation(base_url) as talk:
        await talk.connection.session.update(
            session={
                "type": "realtime",
                "audio": {
                    "input": {"format": {"type": "audio/pcmu"}, "turn_detection": None},
                    "output": {"format": {"type": "audio/pcmu"}},
                },
            }
        )
        await talk.until("session.updated")
        await talk.connection.input_audio_buffer.append(audio=base64.b64encode(mu_law).decode())
        await talk.connection.input_audio_buffer.commit()
        await talk.connection.response.create()
        done = await talk.until("response.done")
        assert done.type == "response.done"
        assert done.response.status == "completed"
        [heard] = [e for e in talk.events if e.type == "conversation.item.input_audio_transcription.completed"]
        assert "capital of france" in heard.transcript.lower()
        assert done.response.output is not None
        assert done.response.output[0].type == "message"
        text = done.response.output[0].content[0].transcript or ""
        assert "Paris" in text
        spoken = b"".join(base64.b64decode(e.delta) for e in talk.events if e.type == "response.output_audio.delta")
        sound = soxr.resample(g711.decode_ulaw(spoken), g711.RATE_HZ, SAMPLE_RATE_HZ)
        written = await asyncio.to_thread(voice.write_down, sound.astype(np.float32))
        assert alike(written, text) > 0.7, (written, text)
        assert not [e for e in talk.events if e.type == "input_audio_buffer.speech_started"]


async def test_a_quick_upload_is_answered_like_speech(base_url: str, voice: Voice) -> None:
    question = await asyncio.to_thread(voice.say, "What color is the sky?")
    async with conversation(base_url) as talk:
        audio = base64.b64encode(to_pcm16(np.concatenate([question, np.zeros(2400, np.float32)]))).decode()
        await talk.connection.input_audio_buffer.append(audio=audio)
        done = await talk.until("response.done")
        [heard] = [e for e in talk.events if e.type == "conversation.item.input_audio_transcription.completed"]
        assert "sky" in heard.transcript.lower()
        assert done.type == "response.done"
        assert done.response.status == "completed"
