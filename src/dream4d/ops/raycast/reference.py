"""Rays and triangles in plain torch: the tree of boxes that the kernel goes through, and the oracle that needs none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAF = 4
"""Triangles of a leaf."""
FAR = 1e9
"""The distance of a ray that meets nothing."""
EDGE = 1e-9
"""How far outside, in barycentric coordinates, a point still is of a triangle: no ray slips through a common edge."""
_BITS = 16


@dataclass(frozen=True)
class Hits:
    """face [n], -1 for nothing; weights [n, 3] of its corners; distance [n] in units of the direction, `FAR` for
    nothing."""

    face: Tensor
    weights: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Tree:
    """A complete binary tree of boxes, in a heap: the children of node i are 2i and 2i + 1, the root is 1.

    triangles: [f, 3, 3], float32. order: [f], of which leaf k holds `LEAF` from k * LEAF on. boxes: [2 * leaves, 6],
    least and largest coordinates.
    """

    triangles: Tensor
    order: Tensor
    boxes: Tensor


def build(triangles: Tensor) -> Tree:
    """The tree of `triangles`, [f, 3, 3] with f > 0, sorted along a Z-order curve (Lauterbach et al. 2009)."""
    triangles = triangles.detach().cpu().float().contiguous()
    order = _z_order(triangles.mean(dim=1)).argsort(stable=True)
    leaves = 1 << (-(-len(triangles) // LEAF) - 1).bit_length()
    low, high = torch.full((2 * leaves, 3), torch.inf), torch.full((2 * leaves, 3), -torch.inf)
    leaf = (torch.arange(len(triangles)) // LEAF + leaves)[:, None].expand(-1, 3)
    low.scatter_reduce_(0, leaf, triangles[order].amin(dim=1), "amin")
    high.scatter_reduce_(0, leaf, triangles[order].amax(dim=1), "amax")
    first = leaves
    while first > 1:
        children, parents = slice(first, 2 * first), slice(first // 2, first)
        low[parents] = low[children].view(-1, 2, 3).amin(dim=1)
        high[parents] = high[children].view(-1, 2, 3).amax(dim=1)
        first //= 2
    boxes = torch.cat([low, high], dim=1)
    boxes[(low > high).any(dim=1)] = 1e30  # an empty box is where no ray gets
    return Tree(triangles, order, boxes)


def raycast(triangles: Tensor, origins: Tensor, directions: Tensor, beyond: Tensor, chunk: int = 256) -> Hits:
    """Every ray against every triangle (Möller and Trumbore 1997), in double precision; `triangles` as for `build`."""
    corners = triangles.double()
    parts = zip(*(v.double().split(chunk) for v in (origins, directions, beyond)), strict=True)
    found = [_nearest(corners, *part) for part in parts]
    face, weights, distance = (torch.cat(values) for values in zip(*found, strict=True))
    return Hits(face, weights.to(origins), distance.to(origins))


def _nearest(corners: Tensor, origins: Tensor, directions: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, edge1, edge2 = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = torch.linalg.cross(directions[:, None], edge2[None])
    determinant = (edge1 * p).sum(-1)
    inverse = torch.where(determinant == 0, 0.0, 1 / determinant)
    from_a = origins[:, None] - a
    u = (from_a * p).sum(-1) * inverse
    q = torch.linalg.cross(from_a, edge1[None].expand_as(from_a))
    v = (directions[:, None] * q).sum(-1) * inverse
    t = (edge2 * q).sum(-1) * inverse
    inside = (determinant != 0) & (u >= -EDGE) & (v >= -EDGE) & (u + v <= 1 + EDGE) & (t > beyond[:, None])
    distance, face = torch.where(inside, t, FAR).min(dim=1)
    u, v = (value.gather(1, face[:, None])[:, 0] for value in (u, v))
    hit = distance < FAR
    weights = torch.stack([1 - u - v, u, v], dim=1) * hit[:, None]
    return torch.where(hit, face, -1), weights, distance


def _z_order(points: Tensor) -> Tensor:
    """Places of points [n, 3] on a Z-order curve through their box, [n]."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    cells = ((points - low) / (high - low).clamp(min=1e-12) * (2**_BITS - 1)).long()
    code = torch.zeros(len(points), dtype=torch.long)
    for bit in range(_BITS):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return code
