"""``duplex serve --agent moshi`` with what cannot work: one clear sentence, an exit status, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from native_tiny import tiny_checkpoint

from duplex.cli import serve_main
from duplex.config import Config, validated
from duplex.thinker_talker.native.checkpoints.precision import precision_of
from duplex.thinker_talker.native.options import NativeOptions


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def directory(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "model"))


def configure(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(path: Path) -> None:
    torch.save({"text_emb.weight": torch.zeros(1)}, path)


def pickled_by_name(directory: Path) -> None:
    pickled(directory / "model.pt")
    configure(directory, moshi_name="model.pt")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


WRONG: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "other shapes": (lambda d: configure(d, dim=128), ("model.safetensors does not fit", "emb.0.weight is [65, 64]")),
    "fewer layers": (
        lambda d: configure(d, num_layers=1),
        ("does not fit", "not of this model", "transformer.layers.1"),
    ),
    "other vocabulary": (lambda d: configure(d, text_card=512), ("does not fit", "text_emb.weight")),
    "other codebooks": (lambda d: configure(d, card=128), ("does not fit", "emb.0.weight")),
    "no such field": (lambda d: configure(d, dimm=64), ("config.json", "'dimm'")),
    "a field that cannot be": (lambda d: configure(d, delays=[0]), ("config.json", "delays has 1 entries")),
    "no JSON": (lambda d: (d / "config.json").write_text("{") and None, ("config.json cannot be read as JSON",)),
    "another tokenizer": (
        lambda d: (d / "text.model").write_bytes(b"no tokenizer") and None,
        ("text.model", "Fetch it"),
    ),
    "no tokenizer": (lambda d: (d / "text.model").unlink(), ("text.model", "the text tokenizer")),
    "a pickle": (lambda d: pickled(d / "model.safetensors"), ("model.safetensors", "pickle")),
    "a pickle by name": (pickled_by_name, ("model.pt", "pickle")),
    "a pickled codec": (lambda d: pickled(d / "mimi.safetensors"), ("mimi.safetensors", "pickle")),
    "cut short": (lambda d: cut_short(d / "model.safetensors"), ("model.safetensors",)),
    "a codec cut short": (lambda d: cut_short(d / "mimi.safetensors"), ("mimi.safetensors",)),
    "a codec of other shapes": (
        lambda d: (
            (d / "mimi.json").write_text((d / "mimi.json").read_text().replace('"n_filters": 4', '"n_filters": 8'))
            and None
        ),
        ("mimi.safetensors",),
    ),
    "a way out": (lambda d: configure(d, moshi_name="../../secret"), ("moshi_name", "inside")),
    "nothing there": (lambda d: shutil.rmtree(d), ("neither a directory nor in the weights manifest",)),
}


def serve(*flags: str) -> int:
    return serve_main(["--agent", "moshi", "--port", "0", "--set", "agent.options.device=cpu", *flags])


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_that_cannot_be_served_is_told_in_a_sentence(
    directory: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, says = WRONG[what]
    spoil(directory)
    assert serve("--weights", str(directory)) == 1
    captured = capsys.readouterr()
    told = captured.out + captured.err
    assert "Traceback" not in told
    assert "Ready" not in told
    for words in says:
        assert words in " ".join(told.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "agent.options.preset=moshi-8b"], "There is no preset 'moshi-8b'. Known: tiny"),
        (["--set", "agent.options.voices_dir=/nowhere"], "is no directory"),
        (["--voice", "Bob"], "There is no voice 'Bob'"),
        (["--set", "agent.options.precision=int3"], "int3"),
        (["--set", "agent.options.device=abacus"], "abacus"),
        (["--set", "agent.options.max_slots=65"], "agent.options.max_slots"),
        (["--set", "agent.options.max_slot=2"], "agent.options.max_slot"),
        (["--weights", "nobody/nothing", "--set", "agent.options.preset=tiny"], "not both"),
    ],
)
def test_settings_that_cannot_work_are_told_in_a_sentence(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(*flags) == 1
    captured = capsys.readouterr()
    told = captured.out + captured.err
    assert says in " ".join(told.split())
    assert "Traceback" not in told


def test_the_process_ends_with_that_sentence_and_an_exit_status(directory: Path) -> None:
    pickled(directory / "model.safetensors")
    command = [str(Path(sys.executable).with_name("duplex-serve")), "--agent", "moshi", "--port", "0"]
    ended = subprocess.run(
        [*command, "--weights", str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert ended.returncode == 1
    assert "pickle" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_the_settings_in_the_documentation_are_settings() -> None:
    text = (Path(__file__).parents[1] / "docs" / "native.md").read_text()
    config = validated(Config, tomllib.loads(text.split("```toml\n")[1].split("```")[0]))
    assert config.agent.name == "moshi"
    options = validated(NativeOptions, config.agent.options, "agent.options")
    assert options.sinks == 4
    precision_of(options.precision, torch.device("cuda"))
