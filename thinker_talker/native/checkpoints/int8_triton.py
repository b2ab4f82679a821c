"""The product with int8 weights as a Triton kernel: weights are read once, as int8, and widened in registers.

Each program makes a block of outputs and walks along ``in``; the order of its sum depends on neither the batch nor the
other rows. Imported only on CUDA: ``triton`` comes with torch's CUDA builds, and has no types to check against.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

BLOCK_OUT, BLOCK_IN = 32, 256
FEWEST_ROWS, MOST_ROWS = 16, 64  # of a program: tensor cores want 16


# No annotations but constexpr: the compiler looks each of them up as a value.
def _int8_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale,
    y,
    n_rows,
    n_out,
    n_in,
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_OUT: tl.constexpr,  # noqa: N803
    BLOCK_IN: tl.constexpr,  # noqa: N803
):
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    step = tl.arange(0, BLOCK_IN)
    in_rows, in_out = row < n_rows, out < n_out
    # 64 bits: a matrix may have more than 2^31 entries.
    x_at = x + row.to(tl.int64)[:, None] * n_in + step[None, :]
    weight_at = weight + out.to(tl.int64)[None, :] * n_in + step[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.float32)
    for start in range(0, n_in, BLOCK_IN):
        inside = start + step < n_in
        xs = tl.load(x_at + start, mask=in_rows[:, None] & inside[None, :], other=0.0)
        ws = tl.load(weight_at + start, mask=in_out[None, :] & inside[:, None], other=0)
        total = tl.dot(xs, ws.to(xs.dtype), total, input_precision="ieee")
    total *= tl.load(scale + out, mask=in_out, other=0.0)[None, :]
    y_at = y + row.to(tl.int64)[:, None] * n_out + out[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=in_rows[:, None] & in_out[None, :])


_kernel: Any = triton.jit(_int8_kernel)


def int8_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x`` [rows, in], ``weight`` int8[out, in], ``scale`` float32[out] to [rows, out] in ``x``'s dtype."""
    x = x.contiguous()
    (n_rows, n_in), n_out = x.shape, weight.shape[0]
    y = torch.empty((n_rows, n_out), dtype=x.dtype, device=x.device)
    block_rows = min(MOST_ROWS, max(FEWEST_ROWS, triton.next_power_of_2(n_rows)))
    grid = (triton.cdiv(n_out, BLOCK_OUT), triton.cdiv(n_rows, block_rows))
    _kernel[grid](x, weight, scale, y, n_rows, n_out, n_in, block_rows, BLOCK_OUT, BLOCK_IN, num_warps=4, num_stages=3)
    return y
