"""Triton kernels; all arithmetic is fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Numbers that a program writes."""


def geglu(x: Tensor) -> Tensor:
    """As `pointwise.geglu`, of a contiguous tensor."""
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    rows = out.numel() // max(1, width)
    columns = min(width & -width, 1024)  # the largest power of two that divides the width
    if columns < 64:
        columns = min(triton.next_power_of_2(width), 1024)
    if rows:
        grid = triton.cdiv(rows, TILE // columns), triton.cdiv(width, columns)
        _geglu[grid](x, out, rows, width, ROWS=TILE // columns, COLUMNS=columns, num_warps=4)
    return out


def add_bias(x: Tensor, bias: Tensor, other: Tensor | None) -> Tensor:
    """As `pointwise.add_bias`, of a channels_last tensor, in place."""
    if other is not None and other.stride() != x.stride():
        other = torch.empty_like(x).copy_(other)
    if x.numel():
        grid = (triton.cdiv(x.numel(), TILE),)
        _add_bias[grid](x, bias, other, x.numel(), x.shape[1], OTHER=other is not None, TILE=TILE, num_warps=4)
    return x


@triton.jit
def _geglu(x, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    source = x + row[:, None] * (2 * width) + column[None, :]
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    gate = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row[:, None] * width + column[None, :], value * gate, mask=inside)


@triton.jit
def _add_bias(x, bias, other, count, channels, OTHER: tl.constexpr, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    inside = start + lane < count
    channel = ((start % channels).to(tl.int32) + lane) % channels
    total = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if OTHER:
        total += tl.load(other + start + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + start + lane, total, mask=inside)
