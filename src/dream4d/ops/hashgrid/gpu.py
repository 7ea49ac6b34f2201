"""Hash encoding on NVIDIA GPUs: Triton kernels, float32.

Points along rays share cells, and thousands of atomic adds to the few rows of a coarse level would wait for one
another. Each such level therefore has many copies of its gradient, which neighbouring points take in turn, and which
are added up at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import GridLayout

BLOCK = 128
MOST_COPIES = 64
COPIED_ROWS = 2**18
"""As many rows as all copies of a level may have; they stay in the second-level cache."""


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """As `hashgrid.encode`."""
    features: Tensor = _Encode.apply(points, table, layout, active_levels)
    return features


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
        points, table = points.contiguous(), table.contiguous()
        ctx.save_for_backward(points, table)
        ctx.layout, ctx.active_levels = layout, active_levels
        out = points.new_zeros(len(points), layout.levels * layout.features)
        if out.numel() and active_levels:
            grid = (triton.cdiv(len(points), BLOCK), active_levels)
            _forward[grid](
                points, table, _levels(layout, points.device)[0], out, len(points), out.shape[1],
                DIM=layout.dim, FEATURES=layout.features, BLOCK=BLOCK,
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, table = ctx.saved_tensors
        layout, active = ctx.layout, ctx.active_levels
        levels, copies, copied_offsets, rows = _levels(layout, points.device)
        to_points, to_table = ctx.needs_input_grad[:2]
        grad_points = torch.zeros_like(points) if to_points else None
        sums = table.new_zeros(rows, layout.features) if to_table else None
        if len(points) and active:
            _backward[(triton.cdiv(len(points), BLOCK),)](
                points, table, levels, grad.contiguous(), grad_points, sums, len(points), grad.shape[1], active,
                DIM=layout.dim, FEATURES=layout.features, TO_POINTS=to_points, TO_TABLE=to_table, BLOCK=BLOCK,
            )  # fmt: skip
        if sums is None:
            return grad_points, None, None, None
        parts = [
            sums[first : first + count * size].reshape(count, size, layout.features).sum(dim=0)
            for first, count, size in zip(copied_offsets, copies, layout.sizes, strict=True)
        ]
        return grad_points, torch.cat(parts), None, None


@lru_cache(maxsize=16)
def _levels(layout: GridLayout, device: torch.device) -> tuple[Tensor, list[int], list[int], int]:
    """Rows [resolution, hash mask or 0, first row, rows, copies, first row of the copies, 4 factors] by level, int32;
    copies of each level's gradient, their first rows, and the rows of all of them."""
    copies = [max(1, min(MOST_COPIES, COPIED_ROWS // size)) for size in layout.sizes]
    firsts, total = [], 0
    for count, size in zip(copies, layout.sizes, strict=True):
        firsts.append(total)
        total += count * size
    masks = [size - 1 if hashed else 0 for size, hashed in zip(layout.sizes, layout.hashed, strict=True)]
    factors = [[*map(_as_int32, level), 0][:4] for level in layout.factors]
    columns = (layout.resolutions, masks, layout.offsets, layout.sizes, copies, firsts, *zip(*factors, strict=True))
    return torch.tensor(columns, dtype=torch.int32, device=device).T.contiguous(), copies, firsts, total


def _as_int32(factor: int) -> int:
    """The same low 32 bits; a hash keeps fewer."""
    return (factor + 2**31) % 2**32 - 2**31


@triton.jit
def _axis(points, index, inside, axis: tl.constexpr, DIM: tl.constexpr, resolution):
    """Cell and place in it along an axis; along a fourth one that is not there, cell 0 and its lower side."""
    if axis >= DIM:
        cell = index * 0
        fraction = cell.to(tl.float32)
    else:
        scaled = tl.load(points + index * DIM + axis, mask=inside, other=0.0) * resolution
        whole = tl.minimum(tl.maximum(tl.floor(scaled), 0.0), resolution - 1.0)
        cell = whole.to(tl.int32)
        fraction = scaled - whole
    return cell, fraction


@triton.jit
def _row(c0, c1, c2, c3, level, hash_mask, corner: tl.constexpr):
    """Row within its level of a corner of the cells."""
    t0 = (c0 + (corner & 1)) * tl.load(level + 6)
    t1 = (c1 + (corner >> 1 & 1)) * tl.load(level + 7)
    t2 = (c2 + (corner >> 2 & 1)) * tl.load(level + 8)
    t3 = (c3 + (corner >> 3 & 1)) * tl.load(level + 9)
    return tl.where(hash_mask != 0, (t0 ^ t1 ^ t2 ^ t3) & hash_mask, t0 + t1 + t2 + t3)


@triton.jit
def _weight(fraction, upper: tl.constexpr):
    return fraction if upper else 1.0 - fraction


@triton.jit
def _forward(
    points, table, levels, out, n, width, DIM: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    number = tl.program_id(1)
    level = levels + number * 10
    resolution = tl.load(level).to(tl.float32)
    hash_mask = tl.load(level + 1)
    first = tl.load(level + 2)
    c0, f0 = _axis(points, index, inside, 0, DIM, resolution)
    c1, f1 = _axis(points, index, inside, 1, DIM, resolution)
    c2, f2 = _axis(points, index, inside, 2, DIM, resolution)
    c3, f3 = _axis(points, index, inside, 3, DIM, resolution)
    for feature in tl.static_range(FEATURES):
        total = tl.zeros([BLOCK], tl.float32)
        for corner in tl.static_range(1 << DIM):
            row = first + _row(c0, c1, c2, c3, level, hash_mask, corner)
            weight = _weight(f0, corner & 1) * _weight(f1, corner >> 1 & 1) * _weight(f2, corner >> 2 & 1)
            weight = weight * _weight(f3, corner >> 3 & 1)
            total += weight * tl.load(table + row * FEATURES + feature, mask=inside, other=0.0)
        tl.store(out + index.to(tl.int64) * width + number * FEATURES + feature, total, mask=inside)


@triton.jit
def _backward(
    points, table, levels, grad, grad_points, sums, n, width, active,
    DIM: tl.constexpr, FEATURES: tl.constexpr, TO_POINTS: tl.constexpr, TO_TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    g0 = tl.zeros([BLOCK], tl.float32)
    g1 = tl.zeros([BLOCK], tl.float32)
    g2 = tl.zeros([BLOCK], tl.float32)
    g3 = tl.zeros([BLOCK], tl.float32)
    for number in range(active):
        level = levels + number * 10
        resolution = tl.load(level).to(tl.float32)
        hash_mask = tl.load(level + 1)
        first = tl.load(level + 2)
        copy = tl.load(level + 5) + (index % tl.load(level + 4)) * tl.load(level + 3)
        c0, f0 = _axis(points, index, inside, 0, DIM, resolution)
        c1, f1 = _axis(points, index, inside, 1, DIM, resolution)
        c2, f2 = _axis(points, index, inside, 2, DIM, resolution)
        c3, f3 = _axis(points, index, inside, 3, DIM, resolution)
        for corner in tl.static_range(1 << DIM):
            row = _row(c0, c1, c2, c3, level, hash_mask, corner)
            w0 = _weight(f0, corner & 1)
            w1 = _weight(f1, corner >> 1 & 1)
            w2 = _weight(f2, corner >> 2 & 1)
            w3 = _weight(f3, corner >> 3 & 1)
            along = tl.zeros([BLOCK], tl.float32)
            for feature in tl.static_range(FEATURES):
                at = index.to(tl.int64) * width + number * FEATURES + feature
                incoming = tl.load(grad + at, mask=inside, other=0.0)
                if TO_TABLE:
                    tl.atomic_add(
                        sums + (copy + row) * FEATURES + feature, w0 * w1 * w2 * w3 * incoming, mask=inside,
                        sem="relaxed",
                    )  # fmt: skip
                if TO_POINTS:
                    along += incoming * tl.load(table + (first + row) * FEATURES + feature, mask=inside, other=0.0)
            if TO_POINTS:
                along = along * resolution
                g0 += along * w1 * w2 * w3 * (2.0 * (corner & 1) - 1.0)
                g1 += along * w0 * w2 * w3 * (2.0 * (corner >> 1 & 1) - 1.0)
                g2 += along * w0 * w1 * w3 * (2.0 * (corner >> 2 & 1) - 1.0)
                g3 += along * w0 * w1 * w2 * (2.0 * (corner >> 3 & 1) - 1.0)
    if TO_POINTS:
        place = grad_points + index * DIM
        tl.store(place, g0, mask=inside)
        tl.store(place + 1, g1, mask=inside)
        tl.store(place + 2, g2, mask=inside)
        if DIM == 4:
            tl.store(place + 3, g3, mask=inside)
