"""Multi-resolution hash encoding of points in three or four dimensions."""

from __future__ import annotations

from torch import Tensor

from ..paths import path_of
from . import cpu, reference
from .layout import GridLayout

__all__ = ["GridLayout", "encode"]


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int | None = None) -> Tensor:
    """Multilinear features of each level, side by side (Müller et al. 2022, Sec. 3; paper supp. 2).

    points: [n, dim] in [0, 1]; beyond it the outermost cells are extrapolated. table: [layout.rows, features], of the
    same dtype or fp16, which the features then are as well. Levels from `active_levels` on are zeros (None: all are
    active). Returns [n, levels * features], with gradients to points and table. ValueError where a shape does not fit.
    """
    if points.ndim != 2 or points.shape[1] != layout.dim:
        raise ValueError(f"points are [n, {layout.dim}], not {list(points.shape)}")
    if table.shape != (layout.rows, layout.features):
        raise ValueError(f"this layout's table is [{layout.rows}, {layout.features}], not {list(table.shape)}")
    active = layout.levels if active_levels is None else max(0, min(active_levels, layout.levels))
    arguments = (points, table, layout, active)
    match path_of(points, half=table):
        case "cpu":
            return cpu.encode(*arguments)
        case "gpu":
            from . import gpu

            return gpu.encode(*arguments)
    return reference.encode(*arguments)
