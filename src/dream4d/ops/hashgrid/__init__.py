"""Multi-resolution hash encoding of points in three or four dimensions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from . import cpu, reference
from .layout import GridLayout

__all__ = ["GridLayout", "encode"]


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int | None = None) -> Tensor:
    """Multilinear features of each level, side by side (Müller et al. 2022, Sec. 3; paper supp. 2).

    points: [n, dim] in [0, 1]; beyond it the outermost cells are extrapolated. table: [layout.rows, features], of the
    same dtype. Levels from `active_levels` on are zeros (None: all are active).
    Returns [n, levels * features], with gradients to points and table. ValueError where a shape does not fit.
    """
    if points.ndim != 2 or points.shape[1] != layout.dim:
        raise ValueError(f"points are [n, {layout.dim}], not {list(points.shape)}")
    if table.shape != (layout.rows, layout.features):
        raise ValueError(f"this layout's table is [{layout.rows}, {layout.features}], not {list(table.shape)}")
    active = layout.levels if active_levels is None else max(0, min(active_levels, layout.levels))
    return _path(points, table)(points, table, layout, active)


def _path(points: Tensor, table: Tensor) -> Callable[..., Tensor]:
    if not points.dtype == table.dtype == torch.float32:
        return reference.encode
    if points.device.type == "cpu":
        return cpu.encode
    if points.is_cuda and find_spec("triton"):
        from . import gpu

        return gpu.encode
    return reference.encode
