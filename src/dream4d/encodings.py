"""What a network sees of a point, a time or a direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """x in [-1, 1], then sin and cos of 2^k pi x (NeRF); the baseline of the paper's ablation (Sec. 4.1, Fig. 6).

    Without x itself both ends of an axis would look the same, and a motion would have to end where it began.
    """

    def __init__(self, dim: int, *, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.width = (1 + 2 * frequencies) * dim

    def forward(self, points: Tensor, active_levels: int | None = None) -> Tensor:
        """points: [n, dim] in [0, 1] -> [n, width]; octaves from `active_levels` on are zeros."""
        octave = torch.arange(self.frequencies, dtype=points.dtype, device=points.device)
        x = 2 * points - 1
        angles = math.pi * octave.exp2()[:, None] * x[:, None]  # [n, frequencies, dim]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if active_levels is not None:
            waves = waves * (octave < active_levels)[:, None]
        return torch.cat([x, waves.flatten(1)], dim=1)

    def mlp(self, points: Tensor, weights: Sequence[Tensor], active_levels: int | None = None) -> Tensor:
        """As `HashGrid.mlp`."""
        return mlp(self(points, active_levels), weights)


class HexPlane(nn.Module):
    """Features of points in space and time from planes (Cao and Johnson 2023): products of the complementary planes xy
    and zt, xz and yt, yz and xt, side by side, at several resolutions. The paper's ablation (Sec. 4.1, Fig. 5).

    Until `add_time` there are only planes of space. Those of time begin as ones and so change nothing (K-Planes).
    """

    def __init__(self, *, levels: int = 4, size: int = 512, features: int = 8) -> None:
        """size: rows of the finest level's planes along an axis of space; each level before it has half as many.

        Raises ValueError where the coarsest would have none to interpolate between.
        """
        super().__init__()
        if size >> (levels - 1) < 2:
            raise ValueError(f"{levels} levels of planes need {2**levels} rows or more, not {size}: raise plane_size")
        self.features, self.width = features, 3 * levels * features
        self.sizes = [size >> halvings for halvings in reversed(range(levels))]
        self.space = nn.ParameterList(torch.empty(3, features, n, n).uniform_(-1e-4, 1e-4) for n in self.sizes)
        self.time: nn.ParameterList | None = None

    def add_time(self, rows: int) -> None:
        """New planes of time, with so many rows along it, on the device of the others."""
        device = self.space[0].device
        self.time = nn.ParameterList(torch.ones(3, self.features, rows, n, device=device) for n in self.sizes)

    def forward(self, points: Tensor) -> Tensor:
        """points: [n, 3], or [n, 4] with the time, in [0, 1] -> [n, width]."""
        x, y, z, *time = (2 * points - 1).unbind(1)
        space = torch.stack([torch.stack(pair, dim=-1) for pair in ((x, y), (x, z), (y, z))])[:, None]
        features = [_bilinear(planes, space) for planes in self.space]
        if time and self.time is not None:
            moments = torch.stack([torch.stack([axis, time[0]], dim=-1) for axis in (z, y, x)])[:, None]
            features = [f * _bilinear(planes, moments) for f, planes in zip(features, self.time, strict=True)]
        return torch.cat(features, dim=1).flatten(0, 1).T

    def mlp(self, points: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """As `HashGrid.mlp`."""
        return mlp(self(points), weights)


def _bilinear(planes: Tensor, places: Tensor) -> Tensor:
    """planes [p, features, rows, columns] at places [p, 1, n, 2], (column, row) in [-1, 1] -> [p, features, n]."""
    return F.grid_sample(planes, places, align_corners=True, padding_mode="border")[:, :, 0]


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
