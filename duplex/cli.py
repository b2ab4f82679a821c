"""The command line: ``duplex serve|call|keys|replay|models|bench|doctor``. Each command's module adds its parser."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duplex import __version__
from duplex.config import Config, load_config
from duplex.errors import DuplexError


def _parser() -> argparse.ArgumentParser:
    from duplex import cli_bench, cli_call, cli_doctor, cli_keys, cli_models, cli_replay

    parser = argparse.ArgumentParser(
        prog="duplex", description="Speech and vision agents that listen and speak at the same time."
    )
    parser.add_argument("--version", action="version", version=f"duplex {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands.add_parser("serve", help="run the server and its page"))
    for module in (cli_call, cli_keys, cli_replay, cli_models, cli_bench, cli_doctor):
        module.add_parser(commands)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs the server: page, WebRTC, WebSocket, metrics. Settings: file, environment, flags."
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (8998; 0 takes a free one)")
    parser.add_argument("--keys", metavar="FILE", help="ask for keys, also on this machine; see: duplex keys --help")
    parser.add_argument("--insecure", action="store_const", const="true", help="be open to the network, without keys")
    parser.add_argument("--tls-certificate", metavar="FILE", help="speak https and wss; PEM, read again when renewed")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.add_argument("--door", action="append", choices=("twilio", "asterisk"), help="open it to telephone calls")
    parser.add_argument("--agent", help="which agent answers (cascade)")
    parser.add_argument("--weights", help="a native agent's model: a folder, a hub repository, or a name")
    parser.add_argument("--thinker", help="a model name, a GGUF file, or openai:http://host:port/v1#model")
    parser.add_argument("--voice", help="the talker's voice")
    parser.add_argument("--instructions", help="the system prompt")
    parser.add_argument("--bot", metavar="NAME", help="who answers calls: file.py:function, see docs/bots.md")
    parser.add_argument("--record", metavar="DIR", help="write every session there; see: duplex replay --help")
    parser.add_argument("--log-format", choices=("text", "json"), help="for people (text), or an object a line")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="what is logged (info)")
    parser.add_argument("--max-sessions", type=int, help="calls at a time (what a native agent admits; else 4)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, e.g. agent.options.turn.pause_s=0.1",
    )
    parser.set_defaults(run=_serve)


_FLAGS = {
    "host": "server.host",
    "port": "server.port",
    "keys": "security.keys_file",
    "insecure": "security.insecure",
    "tls_certificate": "security.tls_certificate",
    "tls_key": "security.tls_key",
    "bot": "bot.name",
    "record": "record.dir",
    "log_format": "log.format",
    "log_level": "log.level",
    "max_sessions": "server.max_sessions",
    "agent": "agent.name",
    "weights": "agent.options.weights",
    "thinker": "agent.options.thinker",
    "voice": "agent.options.voice",
    "instructions": "agent.options.instructions",
}


def config_from(args: argparse.Namespace) -> Config:
    """The configuration that ``args`` of ``duplex serve`` describe."""
    flags = [f"{path}={value}" for name, path in _FLAGS.items() if (value := getattr(args, name)) is not None]
    if args.door is not None:
        flags.append(f"server.doors={json.dumps(args.door)}")
    return load_config(args.config, assignments=[*flags, *args.set])


def _serve(args: argparse.Namespace) -> int:
    config = config_from(args)
    try:
        from duplex.serve import run
    except ImportError as error:
        raise DuplexError(f"{error}. Run: pip install duplex-runtime") from error
    return run(config)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args: Any = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except DuplexError as error:
        print(f"duplex: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point ``duplex``."""
    return _run(_parser(), argv)


def serve_main(argv: Sequence[str] | None = None) -> int:
    """Entry point ``duplex-serve``."""
    parser = argparse.ArgumentParser(prog="duplex-serve")
    parser.add_argument("--version", action="version", version=f"duplex {__version__}")
    _add_serve(parser)
    return _run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
