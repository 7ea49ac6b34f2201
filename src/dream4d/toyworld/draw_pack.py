"""What the fast renderers of toys, `draw_triton` and `draw_cpu`, are given: two tables of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.toyworld.draw import LIGHT
from dream4d.toyworld.world import Primitives

# Columns of a cone: directions from the camera's axes to the cone's (9, row by row), the world's origin in the cone's
# space (3), height, two radii, the side's slope, squared cosine and length, colour (3), stripes (3), the row of
# `Primitives.rest` for z (4), and the borders of its picture (u and v, least and largest; -1 to 1 is the image).
CONE = 32
LINEAR, OFFSET, HEIGHT, RADII, SIDE, COLOUR, STRIPES, REST, BORDERS = 0, 9, 12, 13, 15, 18, 21, 24, 28
VIEW = 7  # of a picture: the tangent of half of the field of view, the world's origin and the light in camera axes
_MARGIN = 1e-3  # of borders, in half images


def pack(primitives: Primitives, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Cones [b, p, CONE] and views [b, VIEW], contiguous."""
    rotation, position = cameras.camera_to_world[:, :3, :3].float(), cameras.position.float()
    tan = torch.tan(torch.deg2rad(cameras.fov_y.float()) / 2)
    linear = primitives.to_cone[..., :3] @ rotation[:, None]
    origin = -(rotation.mT @ position[..., None])[..., 0]
    light = (rotation.mT @ position.new_tensor(LIGHT)[:, None])[..., 0]
    cones = torch.cat([
        linear.flatten(2), primitives.to_cone[..., 3], primitives.height[..., None], primitives.radii,
        _side(primitives), primitives.colour, primitives.stripes, primitives.rest[..., 2, :],
        _borders(primitives, linear, origin[:, None], tan[:, None, None]),
    ], dim=-1)  # fmt: skip
    return cones.contiguous(), torch.cat([tan[:, None], origin, light], dim=1).contiguous()


def _side(primitives: Primitives) -> Tensor:
    """Slope, squared cosine and length of the lines between the balls, [b, p, 3]; the length is 0 if there are none."""
    ra, rb = primitives.radii.unbind(-1)
    slope = (ra - rb) / primitives.height.clamp(min=1e-6)
    cosine2 = (1 - slope**2).clamp(min=1e-6)
    exists = (primitives.height > 1e-6) & (slope.abs() < 1)
    return torch.stack([slope, cosine2, torch.where(exists, cosine2.sqrt() * primitives.height, 0.0)], dim=-1)


def _borders(primitives: Primitives, linear: Tensor, origin: Tensor, tan: Tensor) -> Tensor:
    """The rectangle around each cone's picture, [b, p, 4]; nothing for unused slots.

    A plane through the camera, n = (1, 0, u) for columns, touches the ellipsoid of centre c and shape S where
    (n c)^2 = n^T S n: a quadratic equation for u. A cone's picture is the convex hull of its two ellipsoids'.
    """
    a, b, c = linear.unbind(-2)
    inverse = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
    inverse = inverse / (a * inverse[..., 0]).sum(-1)[..., None, None]
    start = origin - (inverse @ primitives.to_cone[..., 3:])[..., 0]
    end = start + inverse[..., 2] * primitives.height[..., None]
    centre = torch.stack([start, end], dim=-2)  # [b, p, ball, 3] in camera axes
    shape = (inverse @ inverse.mT)[..., None, :, :] * primitives.radii[..., None, None] ** 2
    z, zz = centre[..., 2:], shape[..., 2, 2, None]
    xy, cross, own = centre[..., :2], shape[..., 2, :2], torch.diagonal(shape, dim1=-2, dim2=-1)[..., :2]
    root = (z**2 * own + xy**2 * zz - 2 * z * xy * cross + cross**2 - zz * own).clamp(min=0).sqrt()
    middle, scale = cross - xy * z, (z**2 - zz).clamp(min=1e-9)
    before = (-z > zz.sqrt()).all(-2)  # otherwise the cone reaches behind the camera
    low = torch.where(before, ((middle - root) / scale).amin(-2) / tan - _MARGIN, -2.0)
    high = torch.where(before, ((middle + root) / scale).amax(-2) / tan + _MARGIN, 2.0)
    used = primitives.radii[..., :1] > 0
    borders = torch.stack([torch.where(used, low, 3.0), torch.where(used, high, -3.0)], dim=-1)
    return borders.flatten(-2)
