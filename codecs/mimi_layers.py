"""Causal convolutions that go on where they stopped, slot by slot, over the weights of the moshi package's modules.

A convolution needs the ``kernel - stride`` samples before its input, a transposed one the ``kernel - stride`` samples
that its last input left for the next output. Both lie in one window per layer (:mod:`duplex.codecs.mimi_state`) and
are written in place, only where a slot is active: nothing is reallocated, so a CUDA graph can be captured over it.

The sums are those of the package's modules, up to the order of their terms. One difference: its streaming transposed
convolution adds the bias to a tail and takes it off again, this one adds it once, as running over the whole does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from duplex.errors import ConfigError

from .mimi_state import Half


@dataclass(frozen=True, slots=True)
class Tick:
    """What a layer needs to know of one step. Masks are bool[n, 1, 1]; ``fresh``: the slot is as new."""

    half: Half
    active: torch.Tensor
    fresh: torch.Tensor


class Layer(Protocol):
    """[n, channels, samples] to the same, at its own rates."""

    def __call__(self, x: torch.Tensor, tick: Tick) -> torch.Tensor: ...


SHORT = 16
"""Steps up to which a convolution is computed as a matrix product: the weights are then most of what is read, and
libraries for convolutions read them badly. Measured on a CPU with Mimi's shapes: 1.5 to 7 times as fast up to 16 steps,
slower from 96 on."""


MIN_CPU_ROWS = 4
"""MKL multiplies matrices of one row, of two or three, and of more with kernels whose last bits differ."""


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``, [rows, k] or [n, T, k]; on a CPU the same for a row whatever the number of rows."""
    n_rows = x.numel() // x.shape[-1]
    if x.is_cuda or n_rows >= MIN_CPU_ROWS:
        return functional.linear(x, weight, bias)
    padded = functional.pad(x.reshape(n_rows, -1), (0, 0, 0, MIN_CPU_ROWS - n_rows))
    return functional.linear(padded, weight, bias)[:n_rows].view(*x.shape[:-1], -1)


class Convolution:
    """``replicate``: a fresh slot's past is its first sample, repeated, rather than zeros."""

    def __init__(self, conv: nn.Conv1d, window: int, replicate: bool) -> None:
        self._conv, self._window, self._replicate = conv, window, replicate
        (self._kernel,), (self._stride,), (self._dilation,) = conv.kernel_size, conv.stride, conv.dilation
        self.past = (self._kernel - 1) * self._dilation + 1 - self._stride
        self._dense = conv.groups == 1 and self._dilation == 1

    def __call__(self, x: torch.Tensor, tick: Tick) -> torch.Tensor:
        conv, n_out = self._conv, x.shape[-1] // self._stride
        if self.past:
            window = tick.half.windows[self._window]
            past = torch.where(tick.fresh, x[..., :1], window) if self._replicate else window
            x = torch.cat([past, x], dim=-1)
            torch.where(tick.active, x[..., -self.past :], window, out=window)
        if n_out > SHORT or not self._dense:
            return functional.conv1d(x, conv.weight, conv.bias, self._stride, 0, self._dilation, conv.groups)
        seen = x.unfold(-1, self._kernel, self._stride).transpose(1, 2).flatten(2)  # [n, T, channels · kernel]
        return product(seen, conv.weight.flatten(1), conv.bias).transpose(1, 2)


class TransposedConvolution:
    def __init__(self, conv: nn.ConvTranspose1d, window: int) -> None:
        self._conv, self._window = conv, window
        (self._stride,) = conv.stride
        self.left = conv.kernel_size[0] - self._stride
        self._rows: torch.Tensor | None = None  # [out · kernel, in]
        if conv.groups == 1 and self.left == self._stride:
            rows = conv.weight.detach().permute(1, 2, 0).contiguous()
            conv.weight.data = rows.permute(2, 0, 1)  # the same weight in an order in memory that serves both
            self._rows = rows.flatten(0, 1)

    def __call__(self, x: torch.Tensor, tick: Tick) -> torch.Tensor:
        conv, bias = self._conv, self._conv.bias
        window = tick.half.windows[self._window]
        y: torch.Tensor
        if self._rows is not None and x.shape[-1] <= SHORT:
            pieces = product(x.transpose(1, 2), self._rows)
            head, tail = torch.unflatten(pieces, -1, (-1, 2, self._stride)).unbind(-2)  # [n, T, out, stride] each
            y = head + torch.cat([window[:, None], tail[:, :-1]], dim=1)
            torch.where(tick.active, tail[:, -1], window, out=window)
            y = y.transpose(1, 2).flatten(2)
        else:
            y = functional.conv_transpose1d(x, conv.weight, None, self._stride, groups=conv.groups)
            if self.left:
                y[..., : self.left] += window
                torch.where(tick.active, y[..., -self.left :], window, out=window)
                y = y[..., : -self.left]
        if bias is not None:
            y = y + bias[:, None]
        return y


class Pointwise:
    """A module without memory."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, tick: Tick) -> torch.Tensor:
        y: torch.Tensor = self._module(x)
        return y


class Residual:
    """Two branches, added."""

    def __init__(self, shortcut: Sequence[Layer], block: Sequence[Layer]) -> None:
        self._shortcut, self._block = shortcut, block

    def __call__(self, x: torch.Tensor, tick: Tick) -> torch.Tensor:
        return run(self._shortcut, x, tick) + run(self._block, x, tick)


def run(layers: Sequence[Layer], x: torch.Tensor, tick: Tick) -> torch.Tensor:
    for layer in layers:
        x = layer(x, tick)
    return x


STATELESS = (nn.ELU, nn.ReLU, nn.GELU, nn.Tanh, nn.LeakyReLU, nn.SiLU)


def layers_of(module: Any, windows: list[tuple[int, int]]) -> list[Layer]:
    """The layers of a module of the package, in the order in which they run. Windows they need are added to
    ``windows``. Raises ``ConfigError`` for a kind of module that is not known to work by slots."""
    match type(module).__name__:
        case "Sequential":
            return [layer for child in module for layer in layers_of(child, windows)]
        case "SEANetEncoder" | "SEANetDecoder":
            return layers_of(module.model, windows)
        case "SEANetResnetBlock":
            shortcut = layers_of(module.shortcut, windows)
            return [Residual(shortcut, layers_of(module.block, windows))]
        case "ConvDownsample1d" if module.learnt:
            return layers_of(module.conv, windows)
        case "ConvTrUpsample1d" if module.learnt:
            return layers_of(module.convtr, windows)
        case "StreamingConv1d":
            conv = module.conv.conv
            layer = Convolution(conv, len(windows), module.pad_mode == "replicate")
            windows.append((conv.in_channels, layer.past))
            return [layer]
        case "StreamingConvTranspose1d":
            transposed = module.convtr.convtr
            upward = TransposedConvolution(transposed, len(windows))
            windows.append((transposed.out_channels, upward.left))
            return [upward]
        case "Identity":
            return []
        case _ if isinstance(module, STATELESS):
            return [Pointwise(module)]
        case kind:
            raise ConfigError(f"This Mimi has a layer of kind {kind}, which cannot be run by slots.")
