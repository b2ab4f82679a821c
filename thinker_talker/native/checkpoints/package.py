"""The ``moshi`` package, imported in the one way that suits a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from duplex.errors import ConfigError, MissingDependencyError


def moshi_loaders() -> Any:
    """The module ``moshi.models.loaders``. Raises ``MissingDependencyError`` that names what to install."""
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # read at import; compiling takes seconds and a C++ compiler
    try:
        from moshi.models import loaders
    except ImportError as error:
        # `import moshi` works without its own dependencies; name what is missing, not what asked for it.
        raise MissingDependencyError((error.name or "moshi").partition(".")[0], "moshi") from error
    return loaders


class _Undrawn(TorchFunctionMode):
    """Modules are made without drawing their first weights: drawing what has no memory still takes torch's compiler
    along, three seconds of imports."""

    _DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "erfinv_"})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def empty_lm(lm_kwargs: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The package's ``LMModel`` without memory (every tensor on the meta device), in evaluation mode, no gradients.

    Raises ``ConfigError`` if the package cannot build one from ``lm_kwargs``.
    """
    moshi_loaders()
    from moshi.models.lm import LMModel

    try:
        # The device as context, too: the package makes some of its linears on the default device first.
        with torch.device("meta"), _Undrawn():
            model = LMModel(device=torch.device("meta"), dtype=dtype, **lm_kwargs)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"No model can be built from this config.json: {type(error).__name__}: {error}.") from error
    return model.eval().requires_grad_(False)
