"""Bots by name: an entry point of ``duplex.bots``, a function of a file, or one of an importable module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from duplex.bots.contract import Bot, as_bot
from duplex.errors import ConfigError
from duplex.registry import lookup

if TYPE_CHECKING:
    from duplex.bots.call import HandOver

GROUP = "duplex.bots"


def load_bot(name: str) -> Bot:
    """``"support"``, ``"path/to/file.py:support"`` or ``"package.module:support"``. Raises ``ConfigError``.

    A file's folder is made importable, so that it may import what lies beside it.
    """
    return as_bot(_named(name) if ":" in name else lookup(GROUP, name))


def load_hand_over(name: str) -> HandOver:
    """The function of ``bot.hand_over``: ``async def f(call, to)``. Raises ``ConfigError``."""
    function = _named(name)
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"bot.hand_over = {name!r} is not a function 'async def f(call, to)'.")
    return cast("HandOver", function)


def _named(name: str) -> Any:
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute.isidentifier():
        raise ConfigError(f"{name!r} names no function. Write 'path/to/file.py:function' or 'package.module:function'.")
    module = _file(Path(where)) if where.endswith(".py") else _module(where)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(f"{where} has no {attribute!r}.") from error


def _file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    name = f"duplex_bot_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if (known := sys.modules.get(name)) is not None:
        return known
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type hints are looked up there
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"The module {name} cannot be loaded: {type(error).__name__}: {error}") from error
