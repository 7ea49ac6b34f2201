"""What a network sees of a point, a time or a direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from dream4d.ops.encoded_mlp import encoded_mlp
from dream4d.ops.hashgrid import GridLayout, encode
from dream4d.ops.mlp import mlp


class HashGrid(nn.Module):
    """Trainable multi-resolution feature grid (paper supp. 2), the defaults being the canonical scene's."""

    def __init__(
        self, dim: int, *, levels: int = 16, features: int = 2, base: int = 16, growth: float = 1.447269,
        log2_size: int = 19,
    ) -> None:
        super().__init__()
        self.layout = GridLayout(dim, levels, features, base, growth, log2_size)
        self.width = levels * features
        self.table = nn.Parameter(torch.empty(self.layout.rows, features).uniform_(-1e-4, 1e-4))

    def forward(self, points: Tensor, active_levels: int | None = None) -> Tensor:
        """points: [n, dim] in [0, 1] -> [n, width]; the features of levels from `active_levels` on are zeros."""
        return encode(points, self.table, self.layout, active_levels)

    def mlp(self, points: Tensor, weights: Sequence[Tensor], active_levels: int | None = None) -> Tensor:
        """What an MLP of these weights makes of the features, [n, outputs]; see `ops.mlp`."""
        return encoded_mlp(points, self.table, self.layout, weights, active_levels)


class PositionalEncoding(nn.Module):
    """sin and cos of 2^k pi x for x in [-1, 1] (NeRF); the baseline of the paper's ablation (Sec. 4.3, Fig. 6)."""

    def __init__(self, dim: int, *, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.width = 2 * frequencies * dim

    def forward(self, points: Tensor, active_levels: int | None = None) -> Tensor:
        """points: [n, dim] in [0, 1] -> [n, width]; frequencies from `active_levels` on are zeros."""
        octave = torch.arange(self.frequencies, dtype=points.dtype, device=points.device)
        angles = math.pi * octave.exp2()[:, None] * (2 * points - 1)[:, None]  # [n, frequencies, dim]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if active_levels is not None:
            waves = waves * (octave < active_levels)[:, None]
        return waves.flatten(1)

    def mlp(self, points: Tensor, weights: Sequence[Tensor], active_levels: int | None = None) -> Tensor:
        """As `HashGrid.mlp`."""
        return mlp(self(points, active_levels), weights)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degrees 0 to 3 at unit vectors, [n, 3] -> [n, 16], orthonormal on the sphere."""
    ones = torch.cat([torch.ones_like(directions[:, :1]), directions], dim=1)  # 1, x, y, z
    products = (ones[:, :, None] * ones[:, None, :]).flatten(1)
    products = (products[:, :, None] * ones[:, None, :]).flatten(1)  # all of three factors, [n, 64]
    return products @ _harmonics(directions.dtype, directions.device)


@lru_cache(maxsize=8)
def _harmonics(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The harmonics as sums of products of three of 1, x, y, z, [64, 16]."""
    pi = math.pi
    terms: list[tuple[float, dict[str, float]]] = [
        (1 / (4 * pi), {"111": 1}),
        (3 / (4 * pi), {"y11": 1}),
        (3 / (4 * pi), {"z11": 1}),
        (3 / (4 * pi), {"x11": 1}),
        (15 / (4 * pi), {"xy1": 1}),
        (15 / (4 * pi), {"yz1": 1}),
        (5 / (16 * pi), {"zz1": 3, "111": -1}),
        (15 / (4 * pi), {"xz1": 1}),
        (15 / (16 * pi), {"xx1": 1, "yy1": -1}),
        (35 / (32 * pi), {"xxy": 3, "yyy": -1}),
        (105 / (4 * pi), {"xyz": 1}),
        (21 / (32 * pi), {"yzz": 5, "y11": -1}),
        (7 / (16 * pi), {"zzz": 5, "z11": -3}),
        (21 / (32 * pi), {"xzz": 5, "x11": -1}),
        (105 / (16 * pi), {"xxz": 1, "yyz": -1}),
        (35 / (32 * pi), {"xxx": 1, "xyy": -3}),
    ]
    matrix = torch.zeros(4, 4, 4, len(terms), dtype=torch.float64)
    for column, (square, sums) in enumerate(terms):
        for product, factor in sums.items():
            matrix[(*map("1xyz".index, product), column)] = factor * math.sqrt(square)
    return matrix.flatten(0, 2).to(dtype=dtype, device=device)
