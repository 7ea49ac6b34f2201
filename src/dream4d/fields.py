"""The three fields of a scene: what is where, how it moves, and what lies behind (paper supp. 2)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dream4d.encodings import HashGrid, HexPlane, PositionalEncoding, spherical_harmonics
from dream4d.ops.mlp import mlp


def build_mlp(width: int, hidden: int, layers: int, out: int) -> nn.Sequential:
    """`layers` hidden layers with ReLU, no biases."""
    widths = [width] + [hidden] * layers
    body = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b, bias=False), nn.ReLU(inplace=True))]
    return nn.Sequential(*body, nn.Linear(widths[-1], out, bias=False))


def weights_of(network: nn.Sequential) -> list[Tensor]:
    """Those of each layer, for `ops.mlp`."""
    return [layer.weight for layer in network if isinstance(layer, nn.Linear)]


class RadianceField(nn.Module):
    """The canonical scene: density and colour of points in [-1, 1]^3, two MLPs on one grid (paper Sec. 3.1, supp. 2).

    The density starts as a ball, softplus(MLP + blob_scale * (1 - |x| / blob_radius)). On a `HexPlane` in place of the
    hash grid it is a scene that may change with time, [n] in [0, 1]; None is the scene before its planes of time.
    """

    def __init__(
        self, grid: HashGrid | HexPlane, *, hidden: int = 64, blob_scale: float = 10.0, blob_radius: float = 0.5
    ) -> None:
        super().__init__()
        self.grid = grid
        self.blob_scale, self.blob_radius = blob_scale, blob_radius
        self.density_mlp = build_mlp(grid.width, hidden, 1, 1)
        self.color_mlp = build_mlp(grid.width, hidden, 1, 3)

    def forward(self, points: Tensor, time: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """points: [n, 3] -> density [n] per scene unit, rgb [n, 3] in [0, 1]."""
        heads = [weights_of(self.density_mlp), weights_of(self.color_mlp)]
        (density_in, density_out), (color_in, color_out) = heads
        both = [torch.cat([density_in, color_in]), torch.block_diag(density_out, color_out)]  # side by side, as one MLP
        density, rgb = self.grid.mlp(_unit(points, time), both).split([1, 3], dim=1)
        return self._density(points, density[:, 0]), rgb.sigmoid()

    def density(self, points: Tensor, time: Tensor | None = None) -> Tensor:
        """points: [n, 3] -> [n]"""
        return self._density(points, self.grid.mlp(_unit(points, time), weights_of(self.density_mlp))[:, 0])

    def _density(self, points: Tensor, learned: Tensor) -> Tensor:
        slope = self.blob_scale / self.blob_radius
        return F.softplus(torch.sub(learned + self.blob_scale, points.norm(dim=-1), alpha=slope))


class DeformationField(nn.Module):
    """Where a point of the moving scene lies in the canonical one (paper Sec. 3.2, supp. 2): x_c = x_d + D(x_d, t)."""

    def __init__(
        self, encoding: HashGrid | PositionalEncoding, *, hidden: int = 64, layers: int = 4, at_rest: bool = False
    ) -> None:
        """at_rest: D is what the network says less what it says of time 0, so that nothing is displaced there."""
        super().__init__()
        self.encoding, self.at_rest = encoding, at_rest
        self.mlp = build_mlp(encoding.width, hidden, layers, 3)
        if isinstance(encoding, PositionalEncoding):
            nn.init.uniform_(weights_of(self.mlp)[-1], -1e-4, 1e-4)

    def forward(self, points: Tensor, time: Tensor, active_levels: int | None = None) -> Tensor:
        """points: [n, 3] in [-1, 1]; time: [n] in [0, 1] -> D in scene units, [n, 3] in (-2, 2), or in (-4, 4) if
        `at_rest`, where the scene's box bounds it.

        D is 2 sigmoid(MLP) - 1 in a cube of side 1, hence the outer 2 in ours of side 2. An MLP without biases on
        features near 0 starts it near 0; on those of a positional encoding, a last layer near 0 does.
        """
        displacement = self._learned(points, time, active_levels)
        if self.at_rest:
            displacement = displacement - self._learned(points, torch.zeros_like(time), active_levels)
        return displacement

    def _learned(self, points: Tensor, time: Tensor, active_levels: int | None) -> Tensor:
        learned = self.encoding.mlp(_unit(points, time), weights_of(self.mlp), active_levels)
        displacement: Tensor = 2 * (2 * learned.sigmoid() - 1)
        return displacement


def _unit(points: Tensor, time: Tensor | None) -> Tensor:
    """Points [n, 3] in [-1, 1], and times [n] if there are any, as encodings want them: [n, 3 or 4] in [0, 1]."""
    unit = (points + 1) / 2
    return unit if time is None else torch.cat([unit, time[:, None]], dim=-1)


class Background(nn.Module):
    """What is infinitely far away: colour by direction (paper supp. 2)."""

    def __init__(self, *, hidden: int = 64) -> None:
        super().__init__()
        self.mlp = build_mlp(16, hidden, 3, 3)

    def forward(self, directions: Tensor) -> Tensor:
        """directions: unit vectors [n, 3] -> rgb [n, 3] in [0, 1]."""
        return mlp(spherical_harmonics(directions), weights_of(self.mlp)).sigmoid()
