"""Calls to a model of the Moshi family through the real doors: the tiny one with random weights, on the CPU.

What it says means nothing, but it is what its codec and backbone made of what was heard, to the token: a call among
others is compared with the same frames in a call of their own.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from native_door import FRAME, Caller, SlotLog, Up, native_server, speech, tokens, until
from stock_client import Client, SoundCard, loud_s, stock_client
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from duplex.errors import AgentFullError
from duplex.testing import tone
from duplex.thinker_talker.native.checkpoints.text_tokens import ByteTokens
from duplex.transport import moshi_chat_wire as wire
from duplex.transport.client import CallClient

pytestmark = pytest.mark.timeout(240)

N = 30  # frames of a call: 2.4 s
BYTES = ByteTokens(320)


async def metrics(up: Up) -> dict[str, float]:
    """Name and labels to value, of everything at ``/metrics``."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(up.url + "/metrics")).text.splitlines()
    values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in values}


async def assert_as_alone(up: Up, log: SlotLog) -> None:
    """Every life of this slot said what the same frames are answered with in a call of their own."""
    for life in log.lives:
        frames, results = [frame for frame, _ in life], [result for _, result in life]
        assert tokens(results) == tokens(await up.model.alone(log.settings, frames))


async def refused(address: str) -> tuple[str, int | None]:
    """What the Moshi door tells a client that it does not serve, and its close code."""
    async with connect(address) as socket:
        message = await socket.recv()
        assert isinstance(message, bytes)
        assert message[0] == wire.Kind.ERROR
        await socket.wait_closed()
        return message[1:].decode(), socket.close_code


# --- a call ------------------------------------------------------------------------------------------------


async def test_a_model_is_talked_with_over_the_websocket_and_everything_is_counted() -> None:
    async with native_server() as up:
        caller = await Caller.connect(up)
        said = speech(0, N)
        await caller.say(said)
        await caller.told("response.created")
        await until(lambda: "duplex.playout" in caller.types() and len(caller.sound) > 24_000 and bool(caller.text))
        await until(lambda: len(up.model.logs[0].steps) >= N)
        kinds = caller.types()
        assert kinds.index("response.created") < kinds.index("response.output_audio.delta")
        assert "input_audio_buffer.speech_started" in kinds
        assert "error" not in kinds
        assert np.abs(caller.sound).max() > 0.05
        progress = await caller.told("duplex.playout", after=len(kinds))
        assert progress["sent_ms"] > 0

        [log] = up.model.logs
        heard = np.concatenate([frame.samples for frame, _ in log.steps])
        np.testing.assert_array_equal(heard[: len(said)], said)  # to the sample, and aligned with its beginning
        # What was passed on is the codec's sound, after 40 ms that came before the first word.
        made = next(result.samples for _, result in log.steps if result.samples is not None)
        np.testing.assert_allclose(caller.sound[960 : 960 + FRAME], made, atol=1e-4)

        counted = await metrics(up)
        name = "duplex_scheduler_{}".format
        assert counted[name("tick_seconds_count")] >= N
        assert counted[name("batch_size")] == 1
        assert 0 < counted[name("utilisation_ratio")] <= 1
        assert counted[name("deadline_misses_total")] >= 0
        assert counted[name("kv_bytes")] > 0
        assert (counted[name("slots_used")], counted[name("slots_max")]) == (1, 4)
        assert counted["duplex_sessions_live"] == 1
        await caller.hang_up()
        await until(lambda: up.hub.live == 0)
        assert log.left


async def test_calls_that_join_leave_and_begin_anew_say_what_each_says_alone() -> None:
    async with native_server() as up:
        callers: list[Caller] = []

        async def join(call: int) -> SlotLog:
            callers.append(await Caller.connect(up))
            await callers[-1].say(speech(call, 3 * N))
            log = up.model.logs[-1]
            await until(lambda: len(log.steps) >= 5)
            return log

        logs = [await join(call) for call in range(4)]
        await callers[1].hang_up()  # somebody leaves in the middle of a word …
        await until(lambda: up.hub.live == 3)
        logs[0].slot.reset()  # … a slot is made as new while the others speak …
        logs.append(await join(1))  # … and who had left calls again, in a place that was another's
        await until(lambda: len(logs[0].lives) == 2 and len(logs[0].lives[1]) >= N)
        await until(lambda: all(len(log.steps) >= N for log in (logs[2], logs[3], logs[4])))
        assert up.model.registry is not None
        batch_size = functools.partial(up.model.registry.get_sample_value, "duplex_scheduler_batch_size")
        await until(lambda: batch_size() == 4)
        for caller in (callers[0], *callers[2:]):
            await caller.hang_up()
        await until(lambda: up.hub.live == 0)
        assert len(logs[1].steps) < N
        for log in logs:
            await assert_as_alone(up, log)
        first, again = ([r.text_token for _, r in logs[i].steps] for i in (1, 4))
        n = min(len(first), len(again))
        assert first[:n] == again[:n]
        assert len({tuple(r.text_token for _, r in log.lives[0][:20]) for log in (logs[0], *logs[2:])}) == 4


# --- the stock client ----------------------------------------------------------------------------------------


async def test_two_stock_clients_at_once_talk_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [SoundCard() for _ in range(2)]
    package = stock_client(cards, monkeypatch)
    async with native_server() as up:
        clients = []
        for call, card in enumerate(cards):
            card.say(speech(call, N))
            clients.append(Client(package, up.url, card))
            await until(lambda: len(up.model.logs) > call)  # noqa: B023  (awaited right here)
        for client in clients:
            await client.until(lambda: loud_s(client.card.heard) > 1.0)  # noqa: B023
            await client.until(lambda: len(client.printed.getvalue()) > 10)  # noqa: B023
            assert "connected!" in client.logged.getvalue()
        assert up.hub.live == 2
        for client in clients:
            await client.hang_up()
        await until(lambda: up.hub.live == 0)
        for log in up.model.logs:
            assert len(log.steps) > 10
            await assert_as_alone(up, log)


# --- full ----------------------------------------------------------------------------------------------------


async def test_a_full_server_says_so_at_once_at_every_door() -> None:
    async with native_server(max_sessions=1, webrtc=True) as up:
        caller = await Caller.connect(up)
        with pytest.raises(InvalidStatus) as no:
            await connect(up.realtime).__aenter__()
        assert no.value.response.status_code == 503
        assert await refused(up.moshi) == ("All 1 places are taken. Try again when a call has ended.", 1013)
        with pytest.raises(AgentFullError, match="places are taken"):
            async with CallClient.connect(up.url):
                pass
        assert "error" not in caller.types()
        await caller.hang_up()


async def test_a_full_device_says_so_as_soon_although_the_server_has_places() -> None:
    async with native_server(max_slots=1, webrtc=True) as up:
        caller = await Caller.connect(up)
        with pytest.raises(InvalidStatus) as no:
            await connect(up.realtime).__aenter__()
        assert no.value.response.status_code == 503
        assert no.value.response.headers["Retry-After"] == "5"
        assert await refused(up.moshi) == ("All 1 slots are taken. Try again when a call has ended.", 1013)
        with pytest.raises(AgentFullError, match="slots are taken"):
            async with CallClient.connect(up.url):
                pass
        counted = await metrics(up)
        assert counted['duplex_sessions_refused_total{reason="full"}'] == 3
        assert counted['duplex_scheduler_calls_refused_total{reason="slots"}'] == 3
        await caller.say(speech(0, 5))
        await until(lambda: len(up.model.logs[0].steps) >= 5)
        assert "error" not in caller.types()
        await caller.hang_up()


# --- what is put before the model -------------------------------------------------------------------------------


async def test_text_that_is_sent_in_a_call_is_read_by_the_model_and_not_said() -> None:
    told = "It rains."
    async with native_server() as up:
        caller = await Caller.connect(up)
        await caller.say(speech(0, 5))
        await caller.told("response.created")
        item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": told}]}
        await caller.send("conversation.item.create", item=item)
        await caller.send("response.cancel")  # this model never rests, and reads only when it is quiet
        [log] = up.model.logs
        wanted = BYTES.encode(told)

        def read() -> list[int]:
            return [i for i, (frame, _) in enumerate(log.steps) if frame.silent and frame.forced_text is not None]

        await until(lambda: len(read()) == len(wanted) and len(log.steps) > read()[-1] + 5)
        assert [log.steps[i][1].text_token for i in read()] == wanted
        assert told not in caller.text
        await caller.hang_up()
        await assert_as_alone(up, log)
        # And it makes a difference: without it, the model goes on otherwise.
        without = [type(f)(f.samples, None, f.silent) for f, _ in log.steps]
        other = await up.model.alone(log.settings, without)
        after = read()[-1] + 1
        before = read()[0]
        assert tokens(other)[:before] == tokens([r for _, r in log.steps[:before]])
        assert tokens(other)[after:] != tokens([r for _, r in log.steps[after:]])


async def test_what_is_typed_is_read_before_the_reply_that_is_asked_for_with_it() -> None:
    """As the page does it: the line, then an end to the present reply, then a wish for another."""
    async with native_server() as up:
        caller = await Caller.connect(up)
        await caller.say(speech(0, 3))
        await caller.told("response.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi!"}]}
        await caller.send("conversation.item.create", item=item)
        await caller.send("response.cancel")
        await caller.told("response.done")
        so_far = len(caller.events)
        await caller.send("response.create")
        await caller.told("response.output_audio.delta", after=so_far)
        steps = up.model.logs[0].steps
        read = [i for i, (frame, _) in enumerate(steps) if frame.silent and frame.forced_text is not None]
        assert [steps[i][1].text_token for i in read] == BYTES.encode("The user wrote: Hi!")
        assert len(steps) > read[-1] + 1
        await caller.hang_up()


async def test_words_given_to_a_reply_are_what_the_model_says() -> None:
    async with native_server() as up:
        caller = await Caller.connect(up)
        await caller.say(speech(0, 3))
        await caller.told("response.created")
        await caller.send("response.cancel")
        await caller.told("response.done")
        so_far = len(caller.events)
        await caller.send("response.create", response={"duplex": {"say": "Good day to you."}})
        await until(lambda: "Good day to you." in caller.text)
        item = await caller.told("response.output_audio.delta", after=so_far)
        assert (
            item["response_id"] != next(e for e in caller.events if e["type"] == "response.created")["response"]["id"]
        )
        await caller.hang_up()


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    soundfile.write(folder / "Ann.wav", tone(0.8, hz=180.0), 24_000)
    soundfile.write(tmp_path / "secret.wav", tone(0.8, hz=90.0), 24_000)
    return folder


async def test_a_role_and_a_voice_are_read_before_the_call_at_every_door(voices: Path) -> None:
    async with native_server(voices_dir=voices, instructions="Be brief.") as up:
        caller = await Caller.connect(up)
        session = {"type": "realtime", "instructions": "Be kind.", "audio": {"output": {"voice": "Ann"}}}
        await caller.send("session.update", session=session)
        updated = await caller.told("session.updated")
        assert updated["session"]["audio"]["output"]["voice"] == "Ann"
        await caller.say(speech(0, 10))
        await until(lambda: len(up.model.logs) == 2 and len(up.model.logs[1].steps) >= 10)
        await caller.hang_up()
        async with connect(up.moshi + "?text_prompt=Be+kind.&voice_prompt=Ann.wav"):
            await until(lambda: len(up.model.logs) == 3)
        asked = [(log.settings.prompt, log.settings.voice) for log in up.model.logs]
        assert asked == [("Be brief.", None), ("Be kind.", "Ann"), ("Be kind.", "Ann")]
        frames = [frame for frame, _ in up.model.logs[1].steps[:10]]
        plain, told = [tokens(await up.model.alone(log.settings, frames)) for log in up.model.logs[:2]]
        assert told == tokens([result for _, result in up.model.logs[1].steps[:10]])
        assert plain != told


# --- when things go wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_folder", [True, False])
async def test_a_voice_that_is_a_path_is_refused_and_the_call_goes_on(voices: Path, with_folder: bool) -> None:
    async with native_server(**({"voices_dir": voices} if with_folder else {})) as up:
        caller = await Caller.connect(up)
        for name in ("../secret", str(voices.parent / "secret.wav"), "../../etc/passwd", "Bob"):
            so_far = len(caller.events)
            session = {"type": "realtime", "audio": {"output": {"voice": name}}}
            await caller.send("session.update", session=session)
            error = await caller.told("error", after=so_far)
            assert "voice" in error["error"]["message"]
            assert "voice" in (await refused(f"{up.moshi}?voice_prompt={name}"))[0]
        await caller.say(speech(0, 10))
        await until(lambda: len(up.model.logs[-1].steps) >= 10 and len(caller.sound) > 0)
        assert "session.updated" not in caller.types()
        assert len(up.model.logs) == 1  # nothing was opened for any of them
        await caller.hang_up()


async def _half_a_frame(caller: Caller) -> None:
    await caller.say(tone(0.04))


async def _ten_seconds_at_once(caller: Caller) -> None:
    await caller.say(speech(1, 125))


async def _nothing(caller: Caller) -> None: ...


@pytest.mark.parametrize("odd", [_half_a_frame, _ten_seconds_at_once, _nothing])
async def test_a_client_that_sends_oddly_is_served_and_harms_nobody(odd: Callable[[Caller], Any]) -> None:
    async with native_server() as up:
        good, other = await Caller.connect(up), await Caller.connect(up)
        await odd(other)
        await good.say(speech(0, N))
        mine, theirs = up.model.logs
        await until(lambda: len(mine.steps) >= N)
        stepped = len(theirs.steps)
        if odd is _nothing:
            assert stepped == 0  # nothing was heard, and nothing is made up
        elif odd is _half_a_frame:
            await until(lambda: bool(theirs.steps))  # the rest of it is silence
            first = theirs.steps[0][0].samples
            assert np.abs(first[: FRAME // 2]).max() > 0.1
            assert not first[FRAME // 2 :].any()
        else:
            assert stepped <= 2 * N  # at the speed of speech, not ten seconds in one go
            heard = np.concatenate([frame.samples for frame, _ in theirs.steps])
            np.testing.assert_array_equal(heard, speech(1, 125)[: len(heard)])
        assert "error" not in [*good.types(), *other.types()]
        if odd is _nothing:  # it may begin late
            await other.say(speech(1, 5))
            await until(lambda: len(theirs.steps) >= 5)
        await good.hang_up()
        await other.hang_up()
        await until(lambda: up.hub.live == 0)
        await assert_as_alone(up, mine)
        await assert_as_alone(up, theirs)


async def test_a_moshi_client_that_sends_damage_or_nothing_is_served_and_harms_nobody() -> None:
    async with native_server() as up:
        good = await Caller.connect(up)
        async with connect(up.moshi, max_queue=None) as damaged, connect(up.moshi, max_queue=None) as mute:
            assert await damaged.recv() == wire.HANDSHAKE
            assert await mute.recv() == wire.HANDSHAKE
            await damaged.send(wire.audio(b"OggS" + bytes(40)))  # no page of Opus
            await damaged.send(b"")
            await good.say(speech(0, N))
            await until(lambda: len(up.model.logs[0].steps) >= N)
            assert up.hub.live == 3
            async with asyncio.timeout(10):
                while (message := await damaged.recv())[0] != wire.Kind.ERROR:
                    assert message[0] in (wire.Kind.AUDIO, wire.Kind.TEXT)
        await good.hang_up()
        await until(lambda: up.hub.live == 0)
        await assert_as_alone(up, up.model.logs[0])


async def test_a_slot_whose_numbers_overflow_is_made_as_new_and_nobody_else_hears_of_it() -> None:
    async with native_server() as up:
        good, bad = await Caller.connect(up), await Caller.connect(up)
        mine, theirs = up.model.logs
        await good.say(speech(0, N))
        await bad.say(speech(1, N))
        await until(lambda: min(len(mine.steps), len(theirs.steps)) >= 5)
        up.model.poison(1)
        await until(lambda: min(len(mine.steps), len(theirs.steps)) >= N)
        assert len(theirs.faults) == 1
        assert len(theirs.lives) == 2
        done = await bad.told("response.done")
        assert done["response"]["status"] == "failed"
        assert "begins anew" in str(done)
        assert not mine.faults
        await good.hang_up()
        await bad.hang_up()
        await until(lambda: up.hub.live == 0)
        await assert_as_alone(up, mine)
        await assert_as_alone(up, theirs)
