"""What a network sees of a point, a time or a direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dream4d.ops.hashgrid import GridLayout, encode


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


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degrees 0 to 3 at unit vectors, [n, 3] -> [n, 16], orthonormal on the sphere."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    one, pi = torch.ones_like(x), math.pi
    return torch.stack(
        [
            one * math.sqrt(1 / (4 * pi)),
            math.sqrt(3 / (4 * pi)) * y,
            math.sqrt(3 / (4 * pi)) * z,
            math.sqrt(3 / (4 * pi)) * x,
            math.sqrt(15 / (4 * pi)) * x * y,
            math.sqrt(15 / (4 * pi)) * y * z,
            math.sqrt(5 / (16 * pi)) * (3 * zz - 1),
            math.sqrt(15 / (4 * pi)) * x * z,
            math.sqrt(15 / (16 * pi)) * (xx - yy),
            math.sqrt(35 / (32 * pi)) * y * (3 * xx - yy),
            math.sqrt(105 / (4 * pi)) * x * y * z,
            math.sqrt(21 / (32 * pi)) * y * (5 * zz - 1),
            math.sqrt(7 / (16 * pi)) * z * (5 * zz - 3),
            math.sqrt(21 / (32 * pi)) * x * (5 * zz - 1),
            math.sqrt(105 / (16 * pi)) * z * (xx - yy),
            math.sqrt(35 / (32 * pi)) * x * (xx - 3 * yy),
        ],
        dim=-1,
    )
