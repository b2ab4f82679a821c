"""Configuration: where a setting comes from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from duplex.config import load_config
from duplex.errors import ConfigError


def test_flags_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "duplex.toml"
    file.write_text('[server]\nport = 1\nmax_sessions = 7\nhost = "0.0.0.0"\n')
    config = load_config(file, {"DUPLEX_SERVER__PORT": "2", "DUPLEX_SERVER__MAX_SESSIONS": "8"}, ["server.port=3"])
    assert (config.server.port, config.server.max_sessions, config.server.host) == (3, 8, "0.0.0.0")


def test_an_agents_own_table_passes_through() -> None:
    config = load_config(environ={}, assignments=["agent.options.turn.pause_s=0.1", "agent.options.voice=amy"])
    assert config.agent.options == {"turn": {"pause_s": 0.1}, "voice": "amy"}


def test_the_models_directory_is_not_a_setting() -> None:
    assert load_config(environ={"DUPLEX_MODELS_DIR": "/somewhere", "PATH": "/bin"}) == load_config(environ={})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("server.prot=1", "'server.prot'. Known here: .*port"),
        ("server.port=100000", "'server.port' = 100000"),
        ("server.port=high", "'server.port' = 'high'"),
        ("nothing", "NAME=VALUE"),
        ("session.playout.max_ahead_ms=5000", "max_ahead_ms"),
    ],
)
def test_a_wrong_setting_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(environ={}, assignments=[assignment])


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file at"):
        load_config(tmp_path / "none.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("port = ")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_config(broken, {})
