"""The call-center example, and how a bot is found: by file, module or entry point, for a server or for one door."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from duplex import events as ev
from duplex import registry
from duplex.agent import AgentSettings
from duplex.bots import Bots, Call, load_bot
from duplex.cli import _add_serve, config_from, serve_main
from duplex.clock import VirtualClock
from duplex.config import BotConfig, RecordConfig, SessionConfig, load_config
from duplex.conversation import Item
from duplex.echo import EchoCancelledLine
from duplex.errors import ConfigError
from duplex.frames import Samples
from duplex.hub import SessionHub
from duplex.metrics import Metrics
from duplex.records.archive import Archive, find
from duplex.records.recorder import Recorder
from duplex.records.replay import replay
from duplex.requests import PressKey
from duplex.serve import running
from duplex.testing import LoopbackLine, ScriptedAgent, ScriptedReply, run_virtual, tone
from duplex.testing.agent import ScriptedCall
from duplex.testing.bots import PhoneLine

EXAMPLES = Path(__file__).parents[1] / "examples"
CALLCENTER = f"{EXAMPLES / 'callcenter_bot.py'}:callcenter"


def run_tests(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bot's tests in ``folder``, in a process of their own, with no plugin but duplex's."""
    plugin = ["-p", "duplex.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_callcenter_bot.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bot, its parser and its tests, copied the way a reader would copy them."""
    for name in ("callcenter_bot.py", "spoken_digits.py", "test_callcenter_bot.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text("utf-8"), "utf-8")
    return tmp_path


def test_the_bots_tests_pass(folder: Path) -> None:
    done = run_tests(folder)
    assert done.returncode == 0, done.stdout
    assert "29 passed" in done.stdout


MISTAKES = [
    ("except ToolError as error:", "except KeyError as error:", "test_a_database_that_is_broken"),
    ("PATIENCE = 2", "PATIENCE = 3", "test_silence_is_asked_again_and_then_handed_over"),
    ('"1") and not says(answer, NO, "2"):', '"1"):', "test_a_number_may_be_corrected"),
    ("await call.hand_over", "call.hand_over", "test_a_person_is_one_word_or_one_key_away"),
]


def test_the_bots_tests_notice_a_bot_that_misbehaves(folder: Path) -> None:
    text = (folder / "callcenter_bot.py").read_text("utf-8")
    for right, wrong, _ in MISTAKES:
        assert right in text
        text = text.replace(right, wrong)
    (folder / "callcenter_bot.py").write_text(text, "utf-8")
    done = run_tests(folder, "-k", " or ".join(test for _, _, test in MISTAKES), "--tb=no")
    assert done.returncode == 1, done.stdout
    assert not [test for _, _, test in MISTAKES if f"FAILED test_callcenter_bot.py::{test}" not in done.stdout]


TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
SMALL = f"zero one two three four five six seven eight nine ten eleven twelve {TEENS}".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"


def in_words(number: int) -> str:
    """Anything below a million, the way it is said."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return TENS.split()[number // 10] + (f"-{SMALL[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    return f"{in_words(number // size)} {name}" + (f" and {in_words(number % size)}" if number % size else "")


def test_every_number_is_understood_as_it_is_said() -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from spoken_digits import digits_in, spelled
    finally:
        sys.path.remove(str(EXAMPLES))
    for number in [*range(1000), *range(1000, 10_000, 7), *range(10_000, 1_000_000, 4_271)]:
        assert digits_in(in_words(number)) == str(number)
        assert digits_in(f"It is {spelled(str(number))}, please.") == str(number)
    for pair in range(1000, 10_000, 3):
        first, second = divmod(pair, 100)
        if first % 10 and second >= 10:  # "forty seventy-one" says 40 71 and nothing else, "forty one" could be both
            assert digits_in(f"{in_words(first)} {in_words(second)}") == str(pair)


def test_the_manuals_bots_work(duplex_call: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "bots.md").read_text("utf-8"), re.DOTALL)
    greeter: dict[str, Any] = {}
    exec(blocks[0], greeter)
    call = duplex_call.to(greeter["greeter"])
    assert call.hear() == "Hello. What is your name?"
    assert call.say("Ada").reply_text == "Goodbye, Ada."
    assert call.wait_ended() == "the bot hung up"

    def mind(history: Sequence[Item], said: str) -> ScriptedReply:
        wanted = ScriptedCall("to_a_person", {"why": said}) if "person" in said else ScriptedCall("look_up", {})
        return ScriptedReply("One moment.", 0.1, 0.6, calls=(wanted,))

    helpdesk: dict[str, Any] = {"ORDERS": {}}
    exec(blocks[1], helpdesk)
    call = duplex_call.to(helpdesk["helpdesk"], ScriptedAgent(answer=mind))
    assert call.hear() == "Hello, this is the help desk."
    call.say("I want a person")
    assert call.wait_ended() == "handed over to sales"
    assert call.heard_text.endswith("One moment.")


# --- finding a bot -----------------------------------------------------------------------------------


def test_a_bot_is_a_function_of_a_file_that_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_bot.py").write_text("NAME = 'Ada'\n", "utf-8")
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nfrom beside_the_bot import NAME\nfrom duplex.bots import Call, bot\n"
        "async def tool(call: Call, n: int) -> str: ...\n"
        "@bot(tools=[tool])\nasync def first(call: Call) -> None: ...\nasync def second(call): ...\nvalue = 3\n",
        "utf-8",
    )
    first = load_bot(f"{tmp_path / 'own.py'}:first")
    assert first.tools[0].call_parameter == "call"
    assert load_bot(f"{tmp_path / 'own.py'}:first") is first
    assert load_bot(f"{tmp_path / 'own.py'}:second").name == "second"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nobody", "There is no bot named 'nobody'"),
        ("nowhere.py:f", "There is no file"),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError"),
        ("duplex.frames:nothing", "duplex.frames has no 'nothing'"),
        ("duplex.frames:silence", "is no bot"),
        ("duplex.frames:", "names no function"),
        (f"{__file__}:not a name", "names no function"),
    ],
)
def test_a_bot_that_is_not_there_says_why(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Bots(BotConfig(name=name), Metrics())


def test_a_file_that_fails_says_how_and_may_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n", "utf-8")
    with pytest.raises(ConfigError, match=r"broken\.py cannot be loaded: ZeroDivisionError"):
        load_bot(f"{path}:f")
    path.write_text("async def f(call): ...\n", "utf-8")
    assert load_bot(f"{path}:f").name == "f"


async def registered(call: Call) -> None:
    await call.say("I am the one that is registered.")


def test_an_entry_point_names_a_bot(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EntryPoint("support", "test_bot_example:registered", "duplex.bots")
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: [mine] if wanted.get("name") == "support" else [])
    assert load_bot("support").name == "registered"


def test_the_bot_is_a_setting_like_any_other() -> None:
    config = load_config(environ={"DUPLEX_BOT__NAME": "a.py:b"}, assignments=["bot.tool_limit_s=3"])
    assert (config.bot.name, config.bot.tool_limit_s) == ("a.py:b", 3.0)


# --- calls on a hub ----------------------------------------------------------------------------------


def test_a_door_may_name_another_bot_than_the_servers() -> None:
    async def main() -> list[str]:
        bots, clock = Bots(BotConfig(name=CALLCENTER), Metrics()), VirtualClock()
        lines = LoopbackLine(), LoopbackLine()
        async with SessionHub(
            ScriptedAgent(), clock, SessionConfig(), max_sessions=3, make_session=bots.session
        ) as hub:
            hub.open(lines[0], AgentSettings())
            partial(hub.open, bot="test_bot_example:registered")(lines[1], AgentSettings())
            with pytest.raises(ConfigError, match="nobody"):
                hub.open(LoopbackLine(), AgentSettings(), bot="nobody")
            await clock.sleep_until(clock.now() + 8)
        return [" ".join(e.text for e in line.of(ev.ReplyFinished)) for line in lines]

    welcome, registered_said = run_virtual(main())
    assert welcome.startswith("Welcome to Meadow Furniture.")
    assert registered_said == "I am the one that is registered."


def test_without_a_bot_the_agent_answers() -> None:
    async def main() -> bool:
        clock, line = VirtualClock(), LoopbackLine()
        async with SessionHub(
            ScriptedAgent(), clock, SessionConfig(), max_sessions=1, make_session=Bots(BotConfig(), Metrics()).session
        ) as hub:
            hub.open(line, AgentSettings())
            line.say(tone(0.8))
            await clock.sleep_until(clock.now() + 4)
        return bool(line.of(ev.ReplyFinished))

    assert run_virtual(main())


class Nothing:
    """An echo canceller that cancels nothing."""

    latency_samples = 0

    def process(self, heard: Samples, reference: Samples) -> Samples:
        return heard

    def reset(self) -> None: ...


async def passes_on(call: Call) -> None:
    await call.say(f"Good day, {call.facts['caller']}.")
    await call.hand_over("sales")


def test_a_line_behind_an_echo_canceller_is_still_the_doors() -> None:
    async def main() -> PhoneLine:
        clock, line = VirtualClock(), PhoneLine(facts={"caller": "Ada"})
        bots = Bots(BotConfig(name="test_bot_example:passes_on"), Metrics())
        async with SessionHub(
            ScriptedAgent(),
            clock,
            SessionConfig(),
            max_sessions=1,
            make_session=bots.session,
            make_canceller=Nothing,
        ) as hub:
            session = hub.open(line, AgentSettings())
            assert isinstance(session._line.inner, EchoCancelledLine)  # type: ignore[attr-defined]
            await clock.sleep_until(clock.now() + 5)
        return line

    assert run_virtual(main()).transfers == ["sales"]


def test_a_recorded_call_of_a_bot_is_lived_again(tmp_path: Path) -> None:
    metrics = Metrics()
    recorder = Recorder(RecordConfig(dir=tmp_path), metrics)
    line = LoopbackLine()

    async def main() -> None:
        clock = VirtualClock()
        bots = Bots(BotConfig(name=CALLCENTER), metrics, make_session=recorder.session)
        async with SessionHub(
            ScriptedAgent(), clock, SessionConfig(), max_sessions=1, metrics=metrics, make_session=bots.session
        ) as hub:
            session = hub.open(line, AgentSettings())
            await clock.sleep_until(clock.now() + 1.0)
            for key in "4271#1":
                session.request(PressKey(key))
                await clock.sleep_until(clock.now() + 0.2)
            await clock.sleep_until(clock.now() + 16)
            session.stop("enough")
            await clock.sleep_until(clock.now() + 0.2)

    run_virtual(main())
    recorder.close()
    replayed = replay(Archive(find(tmp_path)))
    assert replayed.same, replayed.comparison.differences[0]
    assert replayed.events == line.events
    assert any(isinstance(e, ev.ReplyFinished) and "two blue armchairs" in e.text for e in replayed.events)


# --- the server --------------------------------------------------------------------------------------


async def test_the_server_answers_with_its_bot() -> None:
    parser = argparse.ArgumentParser()
    _add_serve(parser)
    config = config_from(parser.parse_args(["--port", "0", "--agent", "echo", "--bot", CALLCENTER]))
    silence = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(24_000)).decode()}
    async with running(config) as server, asyncio.timeout(20):
        address = server.url.replace("http", "ws") + "/v1/realtime?model=duplex"
        async with connect(address) as call:
            await call.send(json.dumps(silence))  # this agent lives by what it hears
            said = [json.loads(await call.recv())]
            while said[-1]["type"] != "response.output_audio_transcript.delta":
                said.append(json.loads(await call.recv()))
    assert said[-1]["delta"].startswith("Welcome to Meadow Furniture.")


def test_a_server_does_not_start_without_its_bot(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_main(["--port", "0", "--agent", "echo", "--bot", "nobody"]) == 1
    assert "There is no bot named 'nobody'" in capsys.readouterr().out
