"""Models of triangles, drawn exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.cameras import Cameras, Rays
from dream4d.ops.raycast import Hits, Tree, raycast

LIGHT = (0.53, 0.33, 0.78)
"""Toward the light of shaded models, fixed in the world: what shines with the camera is no colour of a point."""


@dataclass(frozen=True)
class Mesh:
    """f triangles, on the CPU.

    tree: where they are. colours: [f, 3, 4], of each corner, in [0, 1]. uv:
    [f, 3, 2], from the lower left of the texture. texture: [f], -1 for none. pixels: [p, 4], uint8, of all textures
    together, rows from the top. places: [k, 3], of each texture its first pixel, height and width.

    Colours are display colours, and so are products of them. A point that is less than half opaque is not there.
    """

    tree: Tree
    colours: Tensor
    uv: Tensor
    texture: Tensor
    pixels: Tensor
    places: Tensor


@dataclass(frozen=True)
class Picture:
    """rgb: [.., 3], premultiplied by opacity; opacity: [..]; depth: [..], distance along the ray times opacity."""

    rgb: Tensor
    opacity: Tensor
    depth: Tensor


@torch.no_grad()
def draw(mesh: Mesh, rays: Rays, *, light: float = 0.0) -> Picture:
    """What `rays`, [n, 3], see, on their device.

    light: 0 for the plain colours; up to 1, how much darker the sides are that face away from `LIGHT`.
    """
    origins, directions = rays.origins.cpu(), rays.directions.cpu()
    rgb, depth, beyond = torch.zeros(len(origins), 3), torch.zeros(len(origins)), torch.zeros(len(origins))
    left = torch.arange(len(origins))
    while len(left):  # past what is transparent
        hits = raycast(mesh.tree, origins[left], directions[left], beyond[left])
        met = hits.face >= 0
        left, hits = left[met], Hits(hits.face[met], hits.weights[met], hits.distance[met])
        colour = _colour(mesh, hits)
        if light:
            colour[:, :3] *= 1 - light * (1 - _shade(mesh, hits, directions[left]))[:, None]
        solid = colour[:, 3] >= 0.5
        rgb[left[solid]], depth[left[solid]] = colour[solid, :3], hits.distance[solid]
        beyond[left] = hits.distance * (1 + 1e-6)
        left = left[~solid]
    return Picture(*(value.to(rays.origins) for value in (rgb, (depth > 0).float(), depth)))


def draw_images(mesh: Mesh, cameras: Cameras, size: int, *, samples: int = 2, light: float = 0.0) -> Picture:
    """Square pictures from all cameras, [b, size, size, ..], the mean of `samples` squared rays a pixel."""
    side = size * samples
    seen = draw(mesh, cameras.rays(side, side).flatten(), light=light)

    def mean(values: Tensor) -> Tensor:
        return values.view(len(cameras), size, samples, size, samples, -1).mean(dim=(2, 4))

    return Picture(mean(seen.rgb), mean(seen.opacity)[..., 0], mean(seen.depth)[..., 0])


def _colour(mesh: Mesh, hits: Hits) -> Tensor:
    """RGBA of points on the surface, [n, 4]."""
    colour = (hits.weights[..., None] * mesh.colours[hits.face]).sum(dim=1)
    texture = mesh.texture[hits.face]
    painted = texture >= 0
    if painted.any():
        uv = (hits.weights[painted, :, None] * mesh.uv[hits.face[painted]]).sum(dim=1)
        colour[painted] *= _texel(mesh, mesh.places[texture[painted]], uv)
    return colour


def _texel(mesh: Mesh, places: Tensor, uv: Tensor) -> Tensor:
    """Textures at uv [n, 2], bilinear and repeating, RGBA in [0, 1], [n, 4]."""
    first, height, width = places.unbind(-1)
    x, y = uv[:, 0] % 1 * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    left, top = x.floor().long(), y.floor().long()
    right_share, below_share = (x - left)[:, None], (y - top)[:, None]

    def row(shift: int) -> Tensor:
        start = first + (top + shift) % height * width
        one, other = (mesh.pixels[start + (left + i) % width].float() / 255 for i in (0, 1))
        return one + right_share * (other - one)

    above = row(0)
    return above + below_share * (row(1) - above)


def _shade(mesh: Mesh, hits: Hits, directions: Tensor) -> Tensor:
    """From 0, away from the light, to 1, [n]."""
    corners = mesh.tree.triangles[hits.face]
    normals = F.normalize(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1)
    toward_camera = -(normals * directions).sum(dim=-1).sign()
    return 0.5 + 0.5 * toward_camera * (normals @ normals.new_tensor(LIGHT))
