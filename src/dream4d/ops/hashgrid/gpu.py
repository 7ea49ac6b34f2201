"""Hash encoding on NVIDIA GPUs: Triton kernels. Tables are fp32 or fp16, sums are made in fp32.

Features and their gradients lie level by level in memory, [levels * features, n], and programs go through one level
after the other, so that a level's part of the table stays in the second-level cache.

Points along rays share cells, and thousands of atomic adds to the few rows of a coarse level would wait for one
another. Neighbouring points in one cell are therefore added up before they go to memory, and each coarse level has
copies of its gradient, which blocks take in turn and which are added up at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import GridLayout

BLOCK = 64  # points; the two sides of a cell along x, neighbours in memory, are neighbouring lanes
RUN = 16  # neighbouring points that a lane adds up
MOST_COPIES = 64
COPIED_ROWS = 2**18
"""As many rows as all copies of a level may have; they stay in the second-level cache."""
COLUMNS = 10
"""Numbers of a level: resolution, hash mask or 0, first row, rows, copies, first row of the copies, 4 factors."""


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """As `hashgrid.encode`; the result is the transpose of what is contiguous."""
    features: Tensor = _Encode.apply(points, table, layout, active_levels)
    return features


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
        points, table = points.contiguous(), table.contiguous()
        ctx.save_for_backward(points, table)
        ctx.layout, ctx.active_levels = layout, active_levels
        return features(points, table, layout, active_levels, table.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, table = ctx.saved_tensors
        layout, active = ctx.layout, ctx.active_levels
        columns = grad.T.contiguous()
        to_points, to_table = ctx.needs_input_grad[:2]
        return (
            gradient_of_points(points, table, columns, layout, active) if to_points else None,
            gradient_of_table(points, columns, layout, active).to(table.dtype) if to_table else None,
            None,
            None,
        )


def features(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int, dtype: torch.dtype) -> Tensor:
    """[levels * features, n]"""
    n = len(points)
    out = torch.empty(layout.levels * layout.features, n, dtype=dtype, device=points.device)
    out[active_levels * layout.features :] = 0
    if n and active_levels:
        _forward[(triton.cdiv(n, BLOCK), active_levels)](
            points, table, _levels(layout, points.device).numbers, out, n, **_sizes(layout)
        )
    return out


def gradient_of_points(
    points: Tensor, table: Tensor, grad: Tensor, layout: GridLayout, active_levels: int
) -> Tensor:  # fmt: skip
    """[n, dim] of features' gradient [levels * features, n]."""
    grad_points = torch.zeros_like(points)
    if len(points) and active_levels:
        _backward_points[(triton.cdiv(len(points), 2 * BLOCK),)](
            points, table, _levels(layout, points.device).numbers, grad, grad_points, len(points), active_levels,
            **(_sizes(layout) | {"BLOCK": 2 * BLOCK}),
        )  # fmt: skip
    return grad_points


def gradient_of_table(points: Tensor, grad: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """[rows, features] in fp32 of features' gradient [levels * features, n]."""
    levels = _levels(layout, points.device)
    sums = torch.zeros(levels.rows, layout.features, device=points.device)
    if len(points) and active_levels:
        _backward_table[(triton.cdiv(len(points), BLOCK * RUN), active_levels)](
            points, levels.numbers, grad, sums, len(points), RUN=RUN, **_sizes(layout)
        )
    if levels.rows == layout.rows:
        return sums
    copied = [
        sums[first : first + count * size].reshape(count, size, layout.features).sum(dim=0)
        for first, count, size in zip(levels.firsts, levels.copies, layout.sizes, strict=True)
        if first < levels.copied_rows
    ]
    return torch.cat([*copied, sums[levels.copied_rows :]])


def _sizes(layout: GridLayout) -> dict[str, int]:
    lanes = triton.next_power_of_2(layout.features)
    return {"DIM": layout.dim, "FEATURES": layout.features, "LANES": lanes, "BLOCK": BLOCK}


class _Levels(NamedTuple):
    """numbers: [levels, COLUMNS] int32. copies and firsts: how many gradients a level has, and their first row; rows:
    of all. Levels with more than one come first and end at `copied_rows`."""

    numbers: Tensor
    copies: list[int]
    firsts: list[int]
    copied_rows: int
    rows: int


@lru_cache(maxsize=16)
def _levels(layout: GridLayout, device: torch.device) -> _Levels:
    copies = [max(1, min(MOST_COPIES, COPIED_ROWS // size)) for size in layout.sizes]  # sizes never fall
    firsts, rows = [], 0
    for count, size in zip(copies, layout.sizes, strict=True):
        firsts.append(rows)
        rows += count * size
    copied_rows = next((first for first, count in zip(firsts, copies, strict=True) if count == 1), rows)
    masks = [size - 1 if hashed else 0 for size, hashed in zip(layout.sizes, layout.hashed, strict=True)]
    factors = [[*map(_as_int32, level), 0][:4] for level in layout.factors]
    columns = (layout.resolutions, masks, layout.offsets, layout.sizes, copies, firsts, *zip(*factors, strict=True))
    numbers = torch.tensor(columns, dtype=torch.int32, device=device).T.contiguous()
    return _Levels(numbers, copies, firsts, copied_rows, rows)


def _as_int32(factor: int) -> int:
    """The same low 32 bits; a hash keeps fewer."""
    return (factor + 2**31) % 2**32 - 2**31


@triton.jit
def _level(levels, number):
    """Resolution, hash mask, factors of the axes; first row; rows, copies and first row of the copies."""
    level = levels + number * 10
    factors = (tl.load(level + 6), tl.load(level + 7), tl.load(level + 8), tl.load(level + 9))
    grid = (tl.load(level).to(tl.float32), tl.load(level + 1), factors)
    return grid, tl.load(level + 2), (tl.load(level + 3), tl.load(level + 4), tl.load(level + 5))


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
def _cells(points, index, inside, DIM: tl.constexpr, resolution):
    """Cells and places in them along 4 axes."""
    c0, f0 = _axis(points, index, inside, 0, DIM, resolution)
    c1, f1 = _axis(points, index, inside, 1, DIM, resolution)
    c2, f2 = _axis(points, index, inside, 2, DIM, resolution)
    c3, f3 = _axis(points, index, inside, 3, DIM, resolution)
    return (c0, c1, c2, c3), (f0, f1, f2, f3)


@triton.jit
def _row(x, cell, grid, corner: tl.constexpr):
    """Row within its level of a corner of the cells, whose first axis has given the term `x`. Bit a of `corner` is its
    side along axis a + 1."""
    t1 = (cell[1] + (corner & 1)) * grid[2][1]
    t2 = (cell[2] + (corner >> 1 & 1)) * grid[2][2]
    t3 = (cell[3] + (corner >> 2 & 1)) * grid[2][3]
    return tl.where(grid[1] != 0, (x ^ t1 ^ t2 ^ t3) & grid[1], x + t1 + t2 + t3)


@triton.jit
def _side(fraction, upper: tl.constexpr):
    return fraction if upper else 1.0 - fraction


@triton.jit
def _weight(x, place, corner: tl.constexpr):
    return x * _side(place[1], corner & 1) * _side(place[2], corner >> 1 & 1) * _side(place[3], corner >> 2 & 1)


@triton.jit(do_not_specialize=["n"])
def _forward(
    points, table, levels, out, n, DIM: tl.constexpr, FEATURES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    lane, feature = tl.arange(0, 2 * BLOCK), tl.arange(0, LANES)
    upper, known = lane % 2, feature < FEATURES
    index = tl.program_id(0) * BLOCK + lane // 2
    inside = index < n
    here = inside[:, None] & known[None, :]
    number = tl.program_id(1)
    grid, first, _ = _level(levels, number)
    cell, place = _cells(points, index, inside, DIM, grid[0])
    x = (cell[0] + upper) * grid[2][0]
    along_x = tl.where(upper == 1, place[0], 1.0 - place[0])
    total = tl.zeros([2 * BLOCK, LANES], tl.float32)
    for corner in tl.static_range(1 << (DIM - 1)):
        row = first + _row(x, cell, grid, corner)
        value = tl.load(table + row[:, None] * FEATURES + feature[None, :], mask=here, other=0.0)
        total += _weight(along_x, place, corner)[:, None] * value.to(tl.float32)
    both = tl.sum(tl.reshape(total, [BLOCK, 2, LANES]), 1)
    column = (number * FEATURES + feature).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = (index < n)[:, None] & known[None, :]
    tl.store(out + column[None, :] * n + index[:, None], both.to(out.dtype.element_ty), mask=here)


@triton.jit
def _add_to_rows(
    sums, first, x, cell, grid, total, mask, DIM: tl.constexpr, FEATURES: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """Add what a lane has gathered for the corners of its cell."""
    feature = tl.arange(0, LANES)
    here = mask[:, None] & (feature < FEATURES)[None, :]
    for corner in tl.static_range(1 << (DIM - 1)):
        row = first + _row(x, cell, grid, corner)
        tl.atomic_add(sums + row[:, None] * FEATURES + feature[None, :], total[corner], mask=here, sem="relaxed")


@triton.jit(do_not_specialize=["n"])
def _backward_table(
    points, levels, grad, sums, n,
    DIM: tl.constexpr, FEATURES: tl.constexpr, LANES: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A lane goes through RUN neighbouring points, and to memory only where they leave a cell."""
    lane, feature = tl.arange(0, 2 * BLOCK), tl.arange(0, LANES)
    upper = lane % 2
    start = (tl.program_id(0) * BLOCK + lane // 2) * RUN
    number = tl.program_id(1)
    grid, _, copied = _level(levels, number)
    first = copied[2] + (tl.program_id(0) % copied[1]) * copied[0]
    column = (number * FEATURES + feature).to(tl.int64)
    total = (tl.zeros([2 * BLOCK, LANES], tl.float32),) * (1 << (DIM - 1))
    cell, _ = _cells(points, start, start < n, DIM, grid[0])
    for step in range(RUN):
        index = start + step
        inside = index < n
        now, place = _cells(points, index, inside, DIM, grid[0])
        left = inside & ((now[0] != cell[0]) | (now[1] != cell[1]) | (now[2] != cell[2]) | (now[3] != cell[3]))
        _add_to_rows(sums, first, (cell[0] + upper) * grid[2][0], cell, grid, total, left, DIM, FEATURES, LANES)
        here = inside[:, None] & (feature < FEATURES)[None, :]
        incoming = tl.load(grad + column[None, :] * n + index[:, None], mask=here, other=0.0).to(tl.float32)
        along_x = tl.where(upper == 1, place[0], 1.0 - place[0])
        gathered = ()
        for corner in tl.static_range(1 << (DIM - 1)):
            kept = tl.where(left[:, None], 0.0, total[corner])
            gathered = gathered + (kept + _weight(along_x, place, corner)[:, None] * incoming,)
        total = gathered
        cell = (
            tl.where(left, now[0], cell[0]), tl.where(left, now[1], cell[1]),
            tl.where(left, now[2], cell[2]), tl.where(left, now[3], cell[3]),
        )  # fmt: skip
    _add_to_rows(sums, first, (cell[0] + upper) * grid[2][0], cell, grid, total, start < n, DIM, FEATURES, LANES)


@triton.jit(do_not_specialize=["n"])
def _backward_points(
    points, table, levels, grad, grad_points, n, active,
    DIM: tl.constexpr, FEATURES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, LANES)
    inside = index < n
    here = inside[:, None] & (feature < FEATURES)[None, :]
    g0 = tl.zeros([BLOCK], tl.float32)
    g1 = tl.zeros([BLOCK], tl.float32)
    g2 = tl.zeros([BLOCK], tl.float32)
    g3 = tl.zeros([BLOCK], tl.float32)
    for number in range(active):
        grid, first, _ = _level(levels, number)
        cell, place = _cells(points, index, inside, DIM, grid[0])
        column = (number * FEATURES + feature).to(tl.int64)
        incoming = tl.load(grad + column[None, :] * n + index[:, None], mask=here, other=0.0).to(tl.float32)
        incoming *= grid[0]
        for side in tl.static_range(2):
            x = (cell[0] + side) * grid[2][0]
            w0 = _side(place[0], side)
            for corner in tl.static_range(1 << (DIM - 1)):
                row = first + _row(x, cell, grid, corner)
                value = tl.load(table + row[:, None] * FEATURES + feature[None, :], mask=here, other=0.0)
                along = tl.sum(incoming * value.to(tl.float32), 1)
                w1, w2, w3 = _side(place[1], corner & 1), _side(place[2], corner >> 1 & 1), _side(place[3], corner >> 2)
                g0 += along * w1 * w2 * w3 * (2.0 * side - 1.0)
                g1 += along * w0 * w2 * w3 * (2.0 * (corner & 1) - 1.0)
                g2 += along * w0 * w1 * w3 * (2.0 * (corner >> 1 & 1) - 1.0)
                g3 += along * w0 * w1 * w2 * (2.0 * (corner >> 2) - 1.0)
    to = grad_points + index * DIM
    tl.store(to, g0, mask=inside)
    tl.store(to + 1, g1, mask=inside)
    tl.store(to + 2, g2, mask=inside)
    if DIM == 4:
        tl.store(to + 3, g3, mask=inside)
