"""Torch twin of the hash encoding: any device, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import GridLayout


def encode(points: Tensor, table: Tensor, layout: GridLayout, active_levels: int) -> Tensor:
    """As `hashgrid.encode`, differentiated by autograd."""
    corner = torch.arange(2**layout.dim, device=points.device)
    bits = corner[:, None] >> torch.arange(layout.dim, device=points.device) & 1  # [corners, dim]
    levels = [_level(points, table, layout, level, bits) for level in range(active_levels)]
    inactive = table.new_zeros(len(points), (layout.levels - active_levels) * layout.features)
    return torch.cat([*levels, inactive], dim=1)


def _level(points: Tensor, table: Tensor, layout: GridLayout, level: int, bits: Tensor) -> Tensor:
    """[n, features]"""
    resolution = layout.resolutions[level]
    scaled = points * resolution
    cell = scaled.detach().floor().long().clamp(0, resolution - 1)
    fraction = (scaled - cell)[:, None]
    weights = torch.where(bits == 1, fraction, 1 - fraction).prod(dim=-1)  # [n, corners]
    terms = [(cell[:, axis, None] + bits[:, axis]) * factor for axis, factor in enumerate(layout.factors[level])]
    row = terms[0]
    for term in terms[1:]:
        row = row ^ term if layout.hashed[level] else row + term
    if layout.hashed[level]:
        row = row & (layout.sizes[level] - 1)
    features = table[row + layout.offsets[level]]  # [n, corners, features]
    return (weights[..., None] * features).sum(dim=1).to(table.dtype)
