# mypy: disable-error-code="import-not-found, misc, no-any-unimported, no-any-return, untyped-decorator"
"""A Pipecat bot over its SmallWebRTC transport, all models local. Runs in an environment of its own.

    python pipecat_bot.py SETTINGS.json

It is Pipecat's own voice example (``examples/voice/voice-moonshine.py``, ``voice-piper.py``) with local
services in place of hosted ones: the same order of processors, its turn strategies and all its defaults.
README.md beside this file lists each choice and why. SETTINGS.json is written by ``pipecat_server.py``;
its keys are the fields of :class:`Settings`.

The door: ``POST /api/offer`` is Pipecat's own; ``POST /v1/realtime/calls`` (SDP in, 201 and SDP out,
``DELETE`` hangs up) is what our client speaks. Both lead to the same connection class of Pipecat's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import xllamacpp
from fastapi import FastAPI, HTTPException, Request, Response
from loguru import logger
from moonshine_voice import ModelArch, Transcriber
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    InterruptionWorkerFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnStoppedMessage,
)
from pipecat.services.moonshine.stt import Model, MoonshineSTTService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.piper.tts import PiperTTSService
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.turns.user_start import MinWordsUserTurnStartStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner
from piper import PiperVoice
from reply_events import ReplyEvents

_START_LIMIT_S = 20.0


@dataclass(frozen=True)
class Settings:
    """What a run fixes. ``examples``: (role, text) shown before the conversation, as to our own thinker."""

    port: int
    moonshine_dir: str
    piper_onnx: str
    gguf: str
    instructions: str
    examples: Sequence[tuple[str, str]]
    sampling: Mapping[str, Any]
    max_reply_tokens: int
    thinker_threads: int
    context_tokens: int
    strategy: str = "defaults"  # or "min-words"
    log_level: str = "WARNING"


class LocalMoonshine(MoonshineSTTService):
    """Pipecat's service on a model that is already on disk and loaded, instead of one it would download."""

    transcriber: Transcriber

    def _load(self) -> Transcriber:
        return self.transcriber


class Models:
    """What is loaded once per process: the listener's model, the voice, and the thinker behind an OpenAI endpoint."""

    def __init__(self, settings: Settings) -> None:
        LocalMoonshine.transcriber = Transcriber(settings.moonshine_dir, ModelArch.TINY)
        LocalMoonshine.transcriber.transcribe_without_streaming([0.0] * 32_000, 16_000)
        voice = PiperVoice.load(settings.piper_onnx)
        for _ in voice.synthesize("Hello there."):  # the first synthesis is slow, and ours is warm by then
            pass
        PiperVoice.load = staticmethod(lambda _path, **_options: voice)  # each call's service asks for it again
        self._llama = _start_llama(settings)
        self.endpoint = f"{self._llama.listening_address.rstrip('/')}/v1"
        self._shown = _shown(settings)
        self.read_prompt(settings.instructions)

    def read_prompt(self, instructions: str) -> None:
        """Puts the prompt's fixed part into llama.cpp's cache, as our thinker does when a call begins. Blocks."""
        messages = [{"role": "system", "content": instructions}, *self._shown, {"role": "user", "content": "."}]
        self._llama.handle_chat_completions({"messages": messages, "max_tokens": 1, "stream": True}, lambda _: False)


def _start_llama(settings: Settings) -> Any:
    """llama.cpp's server on loopback, with the settings our own thinker gives it."""
    params = xllamacpp.CommonParams()
    params.model.path = settings.gguf
    params.verbosity = 0
    params.n_parallel = 2  # a reply that is interrupted and the next one
    params.n_ctx = 2 * settings.context_tokens
    params.n_batch = params.n_ubatch = 32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.thinker_threads
    params.ctx_shift = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.ui = params.endpoint_slots = False
    params.hostnames, params.port = ["127.0.0.1"], 0
    return xllamacpp.Server(params)


def _shown(settings: Settings) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in settings.examples]


class Bot:
    """One call: Pipecat's pipeline on one of its connections."""

    def __init__(self, settings: Settings, models: Models, connection: SmallWebRTCConnection, instructions: str):
        self.connection = connection
        self.events = ReplyEvents(connection.send_app_message)
        transport = SmallWebRTCTransport(
            webrtc_connection=connection, params=TransportParams(audio_in_enabled=True, audio_out_enabled=True)
        )
        voice = Path(settings.piper_onnx)
        stt = LocalMoonshine(settings=MoonshineSTTService.Settings(model=Model.TINY))
        llm = OpenAILLMService(
            api_key="none needed",
            base_url=models.endpoint,
            settings=OpenAILLMService.Settings(
                model="local",
                system_instruction=instructions,
                max_tokens=settings.max_reply_tokens,
                temperature=settings.sampling["temperature"],
                top_p=settings.sampling["top_p"],
                extra={"extra_body": {k: v for k, v in settings.sampling.items() if k not in {"temperature", "top_p"}}},
            ),
        )
        tts = PiperTTSService(download_dir=voice.parent, settings=PiperTTSService.Settings(voice=voice.stem))
        user_params = LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
        if settings.strategy == "min-words":  # examples/turn-management/turn-management-interruption-config.py
            user_params.user_turn_strategies = UserTurnStrategies(start=[MinWordsUserTurnStartStrategy(min_words=3)])
        user, assistant = LLMContextAggregatorPair(LLMContext(_shown(settings)), user_params=user_params)
        self.worker = PipelineWorker(
            Pipeline([transport.input(), stt, user, llm, tts, transport.output(), assistant]),
            params=PipelineParams(),
            enable_rtvi=False,  # messages for Pipecat's own page; less work without
            idle_timeout_secs=None,  # a call on which nobody speaks may last
        )
        self.runner = WorkerRunner(handle_sigint=False)
        self.started = asyncio.Event()
        self._listen(transport, user, assistant)

    def _listen(self, transport: SmallWebRTCTransport, user: Any, assistant: Any) -> None:
        events, worker = self.events, self.worker
        worker.set_reached_downstream_filter((BotStartedSpeakingFrame, BotStoppedSpeakingFrame))

        @worker.event_handler("on_pipeline_started")
        async def on_pipeline_started(_worker: PipelineWorker, _frame: Frame) -> None:
            self.started.set()

        @worker.event_handler("on_frame_reached_downstream")
        async def on_frame(_worker: PipelineWorker, frame: Frame) -> None:
            if isinstance(frame, BotStartedSpeakingFrame):
                events.speaking_started()
            else:
                events.speaking_stopped()

        @assistant.event_handler("on_assistant_turn_started")
        async def on_assistant_turn_started(_aggregator: Any) -> None:
            events.thinking_started()

        @assistant.event_handler("on_assistant_turn_stopped")
        async def on_assistant_turn_stopped(_aggregator: Any, message: AssistantTurnStoppedMessage) -> None:
            events.thinking_stopped(message.content, message.interrupted)

        @user.event_handler("on_user_turn_started")
        async def on_user_turn_started(_aggregator: Any, _strategy: Any) -> None:
            events.turn_started()

        @user.event_handler("on_user_turn_stopped")
        async def on_user_turn_stopped(_aggregator: Any, _strategy: Any, message: UserTurnStoppedMessage) -> None:
            events.turn_stopped(message.content or "")

        @transport.event_handler("on_app_message")
        async def on_app_message(_transport: Any, message: Mapping[str, Any], _sender: str) -> None:
            if frame := asked_for(message):
                await worker.queue_frames([frame])

        @transport.event_handler("on_client_disconnected")
        async def on_client_disconnected(_transport: Any, _client: Any) -> None:
            await self.runner.cancel()

    async def run(self) -> None:
        await self.runner.add_workers(self.worker)
        await self.runner.run()


def asked_for(message: Mapping[str, Any]) -> Frame | None:
    """What a client event asks of the pipeline: to take in a text, to reply, to stop. Others are ignored."""
    match message.get("type"):
        case "conversation.item.create":
            item = message["item"]
            text = " ".join(part.get("text", "") for part in item.get("content", ()))
            return LLMMessagesAppendFrame([{"role": item.get("role", "user"), "content": text}], run_llm=False)
        case "response.create":
            return LLMRunFrame()
        case "response.cancel":
            return InterruptionWorkerFrame()
    return None


@dataclass
class Calls:
    settings: Settings
    models: Models
    open: dict[str, tuple[Bot, asyncio.Task[None]]] = field(default_factory=dict)

    async def take(self, sdp: str, asked: Mapping[str, Any]) -> SmallWebRTCConnection:
        """Answers an offer once the pipeline behind it runs, so that no word finds it still loading."""
        instructions = asked.get("instructions") or self.settings.instructions
        await asyncio.to_thread(self.models.read_prompt, instructions)
        connection = SmallWebRTCConnection()
        await connection.initialize(sdp=sdp, type="offer")
        bot = Bot(self.settings, self.models, connection, instructions)
        task = asyncio.create_task(bot.run())
        self.open[connection.pc_id] = (bot, task)
        task.add_done_callback(lambda _task: self.open.pop(connection.pc_id, None))
        async with asyncio.timeout(_START_LIMIT_S):
            await bot.started.wait()
        return connection

    async def hang_up(self, call_id: str) -> None:
        bot, task = self.open[call_id]
        await bot.connection.disconnect()
        await bot.runner.cancel()
        await asyncio.wait([task], timeout=5.0)


def app_for(calls: Calls) -> FastAPI:
    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/api/offer")
    async def offer(request: Request) -> Any:
        body = await request.json()
        return (await calls.take(body["sdp"], {})).get_answer()

    @app.post("/v1/realtime/calls")
    async def call(request: Request) -> Response:
        asked: Mapping[str, Any] = {}
        if request.headers.get("Content-Type", "").startswith("multipart/form-data"):
            form = await request.form()
            sdp, asked = str(form["sdp"]), json.loads(str(form.get("session", "{}")))
        else:
            sdp = (await request.body()).decode()
        connection = await calls.take(sdp, asked)
        where = {"Location": f"/v1/realtime/calls/{connection.pc_id}"}
        return Response(connection.get_answer()["sdp"], 201, where, "application/sdp")

    @app.delete("/v1/realtime/calls/{call_id:path}")
    async def hang_up(call_id: str) -> None:
        if call_id not in calls.open:
            raise HTTPException(404, "there is no such call, or it is over")
        await calls.hang_up(call_id)

    return app


def main() -> None:
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    logger.remove()
    logger.add(sys.stderr, level=settings.log_level)
    app = app_for(Calls(settings, Models(settings)))
    uvicorn.run(app, host="127.0.0.1", port=settings.port, log_level="warning")


if __name__ == "__main__":
    main()
