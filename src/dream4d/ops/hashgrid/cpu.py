"""Hash encoding on CPUs: Numba kernels, float32.

They work on blocks of points, level by level: positions, weights and rows of a block vectorise, and its reads from the
table do not wait for one another.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..threads import compiled, spread
from .layout import GridLayout

POINTS_A_RANGE = 4096  # the features of a range stay in the second-level cache from level to level
FAST = {"contract", "reassoc", "nsz"}  # but numbers may be infinite or none, and then still read inside the table
BLOCK = 128  # its corners stay in the first-level cache


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """As `hashgrid.encode`."""
    features: Tensor = _Encode.apply(points, table, layout, active_levels)
    return features


def _levels(layout: GridLayout, active_levels: int) -> tuple[np.ndarray, ...]:
    """Resolutions, factors, first rows, and the hash mask (0 for a dense level) of the active levels."""
    masks = [size - 1 if hashed else 0 for size, hashed in zip(layout.sizes, layout.hashed, strict=True)]
    columns = (layout.resolutions, layout.factors, layout.offsets, masks)
    return tuple(np.array(column, dtype=np.int64)[:active_levels] for column in columns)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
        points, table = points.contiguous(), table.contiguous()
        ctx.save_for_backward(points, table)
        ctx.layout, ctx.active_levels = layout, active_levels
        out = points.new_empty(len(points), layout.levels * layout.features)
        arrays = (points.detach().numpy(), table.detach().numpy(), out.numpy())
        spread(_forward, len(points), POINTS_A_RANGE, _levels(layout, active_levels), *arrays)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, table = (saved.detach() for saved in ctx.saved_tensors)
        levels = _levels(ctx.layout, ctx.active_levels)
        grad = grad.contiguous()
        grad_points = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_points = torch.empty_like(points)
            arrays = (points.numpy(), table.numpy(), grad.numpy(), grad_points.numpy())
            spread(_backward_points, len(points), POINTS_A_RANGE, levels, *arrays)
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table)
            spread(_backward_table, ctx.active_levels, 1, levels, points.numpy(), grad.numpy(), grad_table.numpy())
        return grad_points, grad_table, None, None


@numba.njit(inline="always")
def _scratch(dim):
    """For a block: positions in the cell [dim, BLOCK], weights and table rows of the corners [2^dim, BLOCK]."""
    corners = (1 << dim, BLOCK)
    return np.empty((dim, BLOCK), np.float32), np.empty(corners, np.float32), np.empty(corners, np.int32)


@numba.njit(fastmath=FAST)
def _locate(points, first, size, level, levels, scratch):
    """Fills the scratch for `size` points from `first` on. Bit a of a corner's number is its side along axis a."""
    resolutions, factors, offsets, masks = levels
    resolution, mask = np.float32(resolutions[level]), np.int32(masks[level])
    last = resolution - np.float32(1)
    fraction, weights, rows = scratch
    low = np.empty(BLOCK, np.int32)
    weights[0, :size] = 1
    rows[0, :size] = 0
    for axis in range(points.shape[1]):
        factor = np.int32(factors[level, axis])
        for i in range(size):
            scaled = points[first + i, axis] * resolution
            cell = np.floor(scaled)
            cell = cell if cell > 0 else np.float32(0)  # also where it is not a number
            cell = cell if cell < last else last
            fraction[axis, i] = scaled - cell
            low[i] = np.int32(cell) * factor
        width = 1 << axis
        for c in range(width):
            near, far = c, c + width
            for i in range(size):
                weights[far, i] = weights[near, i] * fraction[axis, i]
                weights[near, i] -= weights[far, i]
            if mask:
                for i in range(size):
                    rows[far, i] = rows[near, i] ^ (low[i] + factor)
                    rows[near, i] ^= low[i]
            else:
                for i in range(size):
                    rows[near, i] += low[i]
                    rows[far, i] = rows[near, i] + factor
    offset = np.int32(offsets[level])
    for c in range(1 << points.shape[1]):
        for i in range(size):
            rows[c, i] = offset + (rows[c, i] & mask if mask else rows[c, i])


@compiled(fastmath=FAST)
def _forward(first, last, levels, points, table, out):
    features = table.shape[1]
    scratch = _scratch(points.shape[1])
    _, weights, rows = scratch
    total = np.empty(BLOCK, np.float32)
    active = len(levels[0])
    out[first:last, active * features :] = 0
    for level in range(active):
        for start in range(first, last, BLOCK):
            size = min(BLOCK, last - start)
            _locate(points, start, size, level, levels, scratch)
            for f in range(features):
                total[:size] = 0
                for c in range(len(rows)):
                    for i in range(size):
                        total[i] += weights[c, i] * table[rows[c, i], f]
                out[start : start + size, level * features + f] = total[:size]


@compiled(fastmath=FAST)
def _backward_table(first, last, levels, points, grad, grad_table):
    """Over levels: no two of them share a row, so that threads never race."""
    features = grad_table.shape[1]
    scratch = _scratch(points.shape[1])
    _, weights, rows = scratch
    for level in range(first, last):
        for start in range(0, len(points), BLOCK):
            size = min(BLOCK, len(points) - start)
            _locate(points, start, size, level, levels, scratch)
            for i in range(size):
                for f in range(features):
                    g = grad[start + i, level * features + f]
                    for c in range(len(rows)):
                        grad_table[rows[c, i], f] += weights[c, i] * g


@compiled(fastmath=FAST)
def _backward_points(first, last, levels, points, table, grad, grad_points):
    """Contracts the corners axis by axis; `slopes[a]` is what remains of the derivative along axis a."""
    dim, features = points.shape[1], table.shape[1]
    scratch = _scratch(dim)
    fraction, _, rows = scratch
    values, slopes = np.empty((1 << dim, BLOCK), np.float32), np.empty((dim, 1 << dim, BLOCK), np.float32)
    grad_points[first:last] = 0
    for level in range(len(levels[0])):
        for start in range(first, last, BLOCK):
            size = min(BLOCK, last - start)
            _locate(points, start, size, level, levels, scratch)
            for c in range(1 << dim):
                for i in range(size):
                    total = np.float32(0)
                    for f in range(features):
                        total += grad[start + i, level * features + f] * table[rows[c, i], f]
                    values[c, i] = total
            for axis in range(dim - 1, -1, -1):
                width = 1 << axis
                for c in range(width):
                    for i in range(size):
                        slopes[axis, c, i] = values[c + width, i] - values[c, i]
                        values[c, i] += fraction[axis, i] * slopes[axis, c, i]
                    for done in range(axis + 1, dim):
                        for i in range(size):
                            change = slopes[done, c + width, i] - slopes[done, c, i]
                            slopes[done, c, i] += fraction[axis, i] * change
            for axis in range(dim):
                for i in range(size):
                    grad_points[start + i, axis] += np.float32(levels[0][level]) * slopes[axis, 0, i]
