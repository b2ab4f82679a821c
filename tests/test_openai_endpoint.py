"""The endpoint thinker against a real HTTP server on the loopback interface, well and badly behaved."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from chat_endpoint import WAIT_S, StandIn, standing_in

from duplex.errors import AgentFullError, ConfigError, ThinkerUnavailableError
from duplex.frames import Image
from duplex.thinker_talker.openai_endpoint import EndpointTimeouts, OpenAIThinker, parse_spec
from duplex.thinker_talker.thinker import CollectingSink, Message, ThinkRequest

_KEY = "sk-test-not-a-secret-4711"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with standing_in() as stand_in:
        yield stand_in


@pytest.fixture
def thinker(server: StandIn) -> Iterator[OpenAIThinker]:
    quick = EndpointTimeouts(connect_s=3.0, first_token_s=0.5, stall_s=0.5)
    engine = OpenAIThinker(server.spec, api_key=_KEY, timeouts=quick)
    yield engine
    engine.close()


def _ask(thinker: OpenAIThinker, *messages: Message, **options: Any) -> CollectingSink:
    sink = CollectingSink()
    thought = thinker.open().think(ThinkRequest(messages or (Message("user", "hi"),), **options), sink)
    assert thought.wait_over(WAIT_S)
    return sink


def test_streams_a_reply(server: StandIn, thinker: OpenAIThinker) -> None:
    sink = _ask(thinker, Message("system", "Be brief."), Message("user", "hi"), max_tokens=9, temperature=0.5, seed=3)
    assert sink.texts == ["Hel", "lo", " th", "ere."]
    assert (sink.reason, sink.error) == ("stop", None)
    assert (sink.usage.prompt_tokens, sink.usage.reply_tokens) == (7, 4)
    body = server.bodies[0]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("toy", 9, 0.5, 3)
    assert server.keys == [f"Bearer {_KEY}"]


def test_says_when_the_limit_cut_the_reply(server: StandIn, thinker: OpenAIThinker) -> None:
    server.mode = "length"
    assert _ask(thinker).reason == "length"


def test_newer_name_of_the_token_limit(server: StandIn, thinker: OpenAIThinker) -> None:
    server.mode = "new-field"
    assert _ask(thinker, max_tokens=5).text == "Hello there."
    assert server.bodies[-1]["max_completion_tokens"] == 5
    assert "max_tokens" not in server.bodies[-1]


def test_images_arrive_as_data_urls(server: StandIn, thinker: OpenAIThinker) -> None:
    jpeg = b"\xff\xd8\xff\xe0 not much of a picture"
    _ask(thinker, Message("user", "What is this?", (Image(0, jpeg, 4, 3),)))
    text, image = server.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == jpeg


def test_images_stay_home_when_the_model_takes_none(server: StandIn) -> None:
    engine = OpenAIThinker(server.spec, takes_images=False)
    _ask(engine, Message("user", "hi", (Image(0, b"x", 4, 3),)))
    engine.close()
    assert server.bodies[0]["messages"][0]["content"] == "hi"


def test_cancel_closes_the_stream(server: StandIn, thinker: OpenAIThinker) -> None:
    server.mode = "endless"
    session = thinker.open()
    got = threading.Event()

    class Sink(CollectingSink):
        def on_text(self, delta: str) -> None:
            super().on_text(delta)
            got.set()

    sink = Sink()
    thought = session.think(ThinkRequest((Message("user", "hi"),)), sink)
    assert got.wait(WAIT_S)
    thought.cancel()
    count = len(sink.texts)
    assert server.hung_up.wait(WAIT_S)
    assert len(sink.texts) == count
    assert (sink.reason, sink.error, thought.cancelled) == (None, None, True)


def test_a_new_thought_cancels_the_last(server: StandIn, thinker: OpenAIThinker) -> None:
    server.mode = "endless"
    session = thinker.open()
    first = session.think(ThinkRequest((Message("user", "one"),)), CollectingSink())
    server.mode = "well"
    sink = CollectingSink()
    second = session.think(ThinkRequest((Message("user", "two"),)), sink)
    assert first.cancelled
    assert second.wait_over(WAIT_S)
    assert sink.text == "Hello there."


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("401", "Set OPENAI_API_KEY"),
        ("404", "serves the model 'toy'"),
        ("429", "rate limit"),
        ("500", "HTTP 500"),
        ("silent", "said nothing for 0.5 s"),
        ("stall", "stopped for 0.5 s in mid-reply"),
        ("garbage", "did not answer with a chat stream"),
        ("page", "did not answer with a chat stream"),
        ("breaks", "out of memory"),
    ],
)
def test_misbehaviour_is_one_clear_error(server: StandIn, thinker: OpenAIThinker, mode: str, words: str) -> None:
    server.mode = mode
    sink = _ask(thinker)
    assert isinstance(sink.error, ThinkerUnavailableError)
    assert words in str(sink.error)
    assert sink.reason is None
    assert _KEY not in str(sink.error)
    server.mode = "well"
    assert _ask(thinker).text == "Hello there."


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_there() -> None:
    engine = OpenAIThinker(f"openai:http://127.0.0.1:{_unused_port()}/v1#toy")
    sink = _ask(engine)
    assert isinstance(sink.error, ThinkerUnavailableError)
    assert "is not reachable" in str(sink.error)
    with pytest.raises(ThinkerUnavailableError, match="Start the endpoint"):
        engine.warm_up()
    engine.close()


def test_warm_up_finds_a_wrong_key(server: StandIn, thinker: OpenAIThinker) -> None:
    thinker.warm_up()
    server.mode = "401"
    with pytest.raises(ThinkerUnavailableError, match="Set OPENAI_API_KEY"):
        thinker.warm_up()


def test_the_key_comes_from_the_environment(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " from-env\n")
    engine = OpenAIThinker(server.spec)
    _ask(engine)
    engine.close()
    assert server.keys == ["Bearer from-env"]


def test_places_are_bounded_and_come_back(server: StandIn) -> None:
    engine = OpenAIThinker(server.spec, sessions=1)
    session = engine.open()
    with pytest.raises(AgentFullError):
        engine.open()
    session.close()
    engine.open().close()
    engine.close()


def test_close_ends_what_runs(server: StandIn) -> None:
    server.mode = "endless"
    engine = OpenAIThinker(server.spec)
    thought = engine.open().think(ThinkRequest((Message("user", "hi"),)), CollectingSink())
    engine.close()
    assert thought.cancelled
    assert not engine._thread.is_alive()


def test_spec() -> None:
    spec = parse_spec("openai:https://host:8443/api/v1/#org/model:7b")
    assert (spec.base_url, spec.model) == ("https://host:8443/api/v1", "org/model:7b")
    assert parse_spec("openai:http://h/v1/chat/completions#m").base_url == "http://h/v1"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("http://h/v1#m", "openai:"),
        ("openai:h/v1#m", "http://"),
        ("openai:ftp://h/v1#m", "http://"),
        ("openai:http:///v1#m", "host"),
        ("openai:http://h/v1", "model"),
        ("openai:http://h/v1# ", "model"),
        ("openai:http://h:99999/v1#m", "cannot be read"),
        ("openai:http://h/v1?x=1#m", "query"),
        ("openai:http://me:hunter2@h/v1#m", "OPENAI_API_KEY"),
    ],
)
def test_wrong_spec(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_spec(spec)
    assert "hunter2" not in str(caught.value)
