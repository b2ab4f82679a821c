"""How precise each part of a native model is, and what that costs in memory.

=============  =================================================  ==============================
part           what it is                                         choices
=============  =================================================  ==============================
``codec``      sound to codes and back                            float32, bfloat16
``temporal``   the big transformer, over time                     float32, bfloat16, int8
``depth``      the small transformer, over a frame's codebooks    float32, bfloat16, int8
``kv``         keys and values the big one remembers              float32, bfloat16, int8
=============  =================================================  ==============================

Written ``auto``, one word for all (``bfloat16``), or part by part: ``temporal=int8,depth=bfloat16,kv=int8``; parts that
are not named are as in ``auto``: float32 on the CPU; on CUDA bfloat16, and float32 for the codec, whose codes are
decided by small differences. ``int8`` alone means the two transformers and ``kv``.

What each is worth is measured by ``precision_error.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from duplex.config import Settings
from duplex.errors import ConfigError

from .int8_linear import Int8Linear

Part = Literal["codec", "temporal", "depth", "kv"]
Format = Literal["float32", "bfloat16", "int8"]

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SHORT = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16"}
_DEPTH = ("depformer.", "depformer_in.", "depformer_emb.", "depformer_text_emb.", "depformer_norms.", "linears.")


class Precision(Settings):
    """One format a part; ``compute``: of everything in an int8 part that is no weight of a linear layer."""

    codec: Literal["float32", "bfloat16"] = "float32"
    temporal: Format = "float32"
    depth: Format = "float32"
    kv: Format = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"

    def dtype(self, part: Part) -> torch.dtype:
        """The dtype of a part's activations (and of its weights, unless those are int8)."""
        return DTYPES.get(getattr(self, part), DTYPES[self.compute])


def precision_of(text: str, device: torch.device) -> Precision:
    """A precision as written. Raises ``ConfigError`` that says what is accepted."""
    wide: Literal["float32", "bfloat16"] = "bfloat16" if device.type == "cuda" else "float32"
    parts: dict[str, Any] = {"temporal": wide, "depth": wide, "kv": wide, "compute": wide}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = (word.strip() for word in item.partition("="))
        word = _SHORT.get(value or name, value or name)
        if equals:
            parts[name] = word
        elif word == "int8":
            parts |= {"temporal": word, "depth": word, "kv": word}
        elif word != "auto":
            parts |= {"codec": word, "temporal": word, "depth": word, "kv": word, "compute": word}
    try:
        return Precision.model_validate(parts)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"precision = {text!r}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}. Write auto, float32, "
            "bfloat16, int8, or parts: codec=float32,temporal=int8,depth=bfloat16,kv=int8."
        ) from error


def part_of(name: str) -> Literal["temporal", "depth"]:
    """The part of a backbone (the package's LMModel) that a parameter or module belongs to."""
    return "depth" if f"{name}.".startswith(_DEPTH) else "temporal"


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer that int8 replaces, with its path: all of them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            yield name, module


@torch.no_grad()
def apply_precision(model: nn.Module, precision: Precision) -> None:
    """Converts a backbone in place, layer by layer, so that a second copy of a layer is all the memory it takes.

    Layers become :class:`Int8Linear` where the part is int8: whoever steps the model calls its modules, and does not
    multiply by ``linear.weight``. int8 is for good: a later call cannot make a part wider again.
    """
    for name, linear in linears(model):
        if getattr(precision, part_of(name)) == "int8":
            model.set_submodule(name, Int8Linear.of(linear))
    set_dtypes(model, precision)
    join_parts(model)


def set_dtypes(model: nn.Module, precision: Precision) -> None:
    """Each part's dtype, for everything that is not int8."""
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(precision.dtype(part_of(name)))


def join_parts(model: nn.Module) -> None:
    """Lets the depth transformer take what the temporal one gives, when their dtypes differ: a cast where they meet."""
    inputs = getattr(model, "depformer_in", ())
    text = getattr(model, "depformer_text_emb", None)
    if text is None:
        return
    dtype = text.weight.dtype
    temporal = model.text_emb.weight.dtype  # type: ignore[union-attr]
    for module in inputs:
        module._forward_pre_hooks.clear()
        if temporal != dtype:
            module.register_forward_pre_hook(lambda _, given, dtype=dtype: tuple(x.to(dtype) for x in given))


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of a backbone's parameters and buffers, by part (``temporal``, ``depth``)."""
    return _bytes(model, lambda _: True)


def read_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of weights that a step reads, by part: all but the embeddings, of which it reads a row each.

    With the keys and values this is what bounds a step on a GPU: bytes over memory bandwidth.
    """
    return _bytes(model, lambda module: not isinstance(module, nn.Embedding))


def _bytes(model: nn.Module, counts: Any) -> dict[str, int]:
    total = {"temporal": 0, "depth": 0}
    for name, module in model.named_modules():
        if counts(module):
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            total[part_of(name)] += sum(tensor.numel() * tensor.element_size() for tensor in own)
    return total
