"""A Triton kernel: each program holds some rows whole."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers that a program holds, unless one row has more."""


def add_layer_norm(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `layernorm.add_layer_norm`."""
    x = x.contiguous()
    total = x if other is None else torch.empty_like(x)
    normal = torch.empty_like(x)
    channels = x.shape[-1]
    columns = triton.next_power_of_2(channels)
    rows = max(1, TILE // columns)
    if x.numel():
        grid = (triton.cdiv(x.numel() // channels, rows),)
        _add_layer_norm[grid](
            x, None if other is None else other.contiguous(), weight, bias, total, normal, x.numel() // channels,
            channels, eps, OTHER=other is not None, ROWS=rows, COLUMNS=columns, num_warps=8,
        )  # fmt: skip
    return total, normal


@triton.jit
def _add_layer_norm(
    x, other, weight, bias, total, normal, rows, channels, eps,
    OTHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    known = column < channels
    inside = (row < rows)[:, None] & known[None, :]
    place = row[:, None] * channels + column[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if OTHER:
        value += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + place, value, mask=inside)
    mean = tl.sum(value, 1) / channels
    off = tl.where(inside, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(off * off, 1) / channels + eps)
    scale = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    base = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    tl.store(normal + place, off * rstd[:, None] * scale[None, :] + base[None, :], mask=inside)
