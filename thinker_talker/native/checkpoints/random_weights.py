"""Random weights for a backbone of any size: for tests and capacity runs, whose time does not depend on values.

The model is built without memory (torch's meta device), then each tensor is drawn straight on the device in the dtype
it will have, so a 7B in bfloat16 needs its 14.3 GiB once and nothing on the host. A tensor's numbers depend on the seed
and on its name alone, not on the order of drawing. They differ between the CPU and a GPU, whose generators differ.

Left as the package initialises it, a model would be a poor stand-in: its tokens soon repeat, because the residual
stream drowns the last choice. Here every matrix keeps the size of what flows through it (standard deviation
1/sqrt(fan in)), and embeddings are as large as what the layers add, so a choice changes the next one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from .package import empty_lm
from .precision import Precision, apply_precision, set_dtypes

LOGIT_SPREAD = 2.0  # standard deviation of the logits: some tokens are likely, none is certain
EMBEDDING_SCALE = 4.0  # times the 1/sqrt(dim) of the family: the tokens of this step outweigh those of a minute ago


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int) -> None:
    """Draws every parameter of a backbone (``moshi``'s LMModel), in place, where it lies and in its dtype."""
    kinds = {f"{prefix}.weight" if prefix else "weight": child for prefix, child in module.named_modules()}
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        owner = kinds.get(name)
        if parameter.dim() != 2:
            _fill_vector(name, parameter)
            continue
        if isinstance(owner, torch.nn.Embedding):
            std = EMBEDDING_SCALE / math.sqrt(parameter.shape[1])
        else:
            std = 1.0 / math.sqrt(parameter.shape[1])
            if name.startswith(("text_linear.", "linears.")):
                std *= LOGIT_SPREAD
        generator = torch.Generator(parameter.device).manual_seed(tensor_seed(seed, name))
        parameter.normal_(0.0, std, generator=generator)


def tensor_seed(seed: int, name: str) -> int:
    """63 bits from the seed and the tensor's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _fill_vector(name: str, parameter: torch.Tensor) -> None:
    """What is no matrix: norms begin as the identity, biases at zero."""
    last = name.rpartition(".")[2]
    parameter.fill_(0.0 if last == "bias" else 1.0)


def random_lm(
    lm_kwargs: Mapping[str, Any], seed: int, device: torch.device, precision: Precision | torch.dtype = torch.float32
) -> Any:
    """An LMModel of the package with random weights, in evaluation mode and without gradients.

    ``lm_kwargs``: arguments of the package's ``LMModel`` (``ModelConfig.served_lm_kwargs``). Raises ``ConfigError`` if
    it cannot be built from them. Parts that are to be int8 are drawn in ``precision.compute`` and converted layer by
    layer.
    """
    if isinstance(precision, torch.dtype):
        model = empty_lm(lm_kwargs, precision)
    else:
        model = empty_lm(lm_kwargs, torch.float32)
        set_dtypes(model, precision)
    model.to_empty(device=device)
    fill(model, seed)
    if isinstance(precision, Precision):
        apply_precision(model, precision)
    return model
